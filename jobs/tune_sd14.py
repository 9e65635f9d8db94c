"""Which settings of CausalCLIP generalise from Stable Diffusion v1.4 to unseen generators?

    python jobs/tune_sd14.py --images ROOT --layout genimage --train-generator sd14 \
        --val-generators glide --trials 100 --study sd14
    ray job submit --working-dir . -- python jobs/tune_sd14.py --images /data/GenImage ...

Index, extraction, study, MLflow, table and exported detector in one command; the same command continues
whatever was interrupted.
"""

import sys
from pathlib import Path

# a checkout's job runs the checkout's package, installed or not: Python put only jobs/ on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from causal_tune.cli.job import job_command

main = job_command(
    name="tune_sd14.py",
    question="Tune CausalCLIP heads on images of one generator and judge them on unseen ones, end to end.",
    space="sd14",
    encoder="vit-l-14",
    example="--images GenImage --layout genimage --train-generator sd14 --val-generators glide --trials 100 "
    "--study sd14",
)

if __name__ == "__main__":
    main()
