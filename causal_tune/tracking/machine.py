"""What the machine does while a study runs, as MLflow's system metrics.

MLflow's monitors read the processors, memory, disk, network and GPUs; its thread around them is left aside: it asks the
server for the run at every sample, gives up at the first request that fails, leaves out what lasts less than one
interval, and writes beside the driver. Here samples wait in memory until the driver delivers them.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Machine"]

_log = logging.getLogger(__name__)


class Machine:
    """Samples of the machine that the driver runs on."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []
        """Seconds since 1970 and values by name, oldest first; whoever delivers them takes them out."""

    @contextmanager
    def watched(self, run_id: str, uri: str) -> Iterator[None]:
        """Sample every ten seconds, and at the end. $MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is another time."""
        ended = threading.Event()
        thread = threading.Thread(target=self._sample, args=(ended, run_id, uri), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=10)

    def _sample(self, ended: threading.Event, run_id: str, uri: str) -> None:
        try:
            monitor = _monitor(run_id, uri)
            while not ended.wait(monitor.sampling_interval):
                self.samples.append(_read(monitor))
            self.samples.append(_read(monitor))
        except Exception as error:  # noqa: BLE001 - a machine that does not tell is no reason to stop a study
            _log.warning("The machine cannot be watched: %s", error)


def _monitor(run_id: str, uri: str) -> Any:
    # says at every start that there is no GPU
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
    _read(monitor)  # a load is that since the reading before
    return monitor


def _read(monitor: Any) -> tuple[float, dict[str, float]]:
    monitor.collect_metrics()
    values = monitor.aggregate_metrics()
    for one in monitor.monitors:
        one.clear_metrics()
    return time.time(), {name: float(value) for name, value in values.items()}
