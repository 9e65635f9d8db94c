"""Does CausalCLIP beat the field's other heads on the same features, with the same number of trials?

    python jobs/heads_sd14.py --images ROOT --layout genimage --train-generator sd14 \
        --val-generators glide --trials 20 --study heads

One study a head on one feature store, named STUDY-HEAD, and one table of their winners; the same command
continues whatever was interrupted.
"""

import sys
from pathlib import Path

# a checkout's job runs the checkout's package, installed or not: Python put only jobs/ on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from causal_tune.cli.heads import heads_job

main = heads_job(
    name="heads_sd14.py",
    question="Tune every head on images of one generator and compare them on unseen ones.",
    encoder="vit-l-14",
)

if __name__ == "__main__":
    main()
