"""How good is a detector on these labelled images, generator by generator?

    python jobs/evaluate.py --detector detectors/real --images ROOT --layout genimage
    ray job submit --working-dir . -- python jobs/evaluate.py --detector /data/detectors/real ...

Index, features and table in one job; what is encoded already is not encoded again.
"""

import sys
from pathlib import Path

# a checkout's job runs the checkout's package, installed or not: Python put only jobs/ on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from causal_tune.cli.evaluate import evaluate_job

main = evaluate_job(
    name="evaluate.py",
    question="Judge an exported detector on labelled images, generator by generator, end to end.",
)

if __name__ == "__main__":
    main()
