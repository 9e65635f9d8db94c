"""A study on a cluster of which one node is lost and another joins: run as a program, WORKSPACE NUM_TRIALS."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
import tiny
from ray.cluster_utils import Cluster

from causal_tune.study.run import StudyResult, run_study


def main() -> None:
    workspace, num_trials = Path(sys.argv[1]), int(sys.argv[2])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)

    def study() -> StudyResult:
        spec = tiny.make_tiny_spec(workspace)
        return run_study(spec, num_trials=num_trials, workspace=workspace, work=tiny.placed)

    with ThreadPoolExecutor() as pool:
        result = pool.submit(study)
        while node.node_id not in tiny.nodes_used(workspace):
            time.sleep(0.05)
        (workspace / "lost").touch()
        cluster.remove_node(node, allow_graceful=False)
        joined = cluster.add_node(num_cpus=1)
        told = {"lost": node.node_id, "joined": joined.node_id, "finished": result.result().num_finished}
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps({**told, "nodes": tiny.nodes_used(workspace)}))


# Ray's workers do not have this folder on their path
ray.cloudpickle.register_pickle_by_value(tiny)

if __name__ == "__main__":
    main()
