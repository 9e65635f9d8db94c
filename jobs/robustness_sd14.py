"""How much JPEG compression and blur does a detector that was tuned on Stable Diffusion v1.4 withstand?

    python jobs/robustness_sd14.py --images ROOT --layout genimage --train-generator sd14 \
        --val-generators glide --trials 100 --study robust

The study of tune_sd14.py on a store that also holds the degraded views of the paper's Figure 4: JPEG of quality 100 to
30 and Gaussian blur of sigma 1 to 4, of every image that judges. The table and the curves stand in the report;
`--degrade genimage` takes GenImage's six instead.
"""

import sys
from pathlib import Path

# a checkout's job runs the checkout's package, installed or not: Python put only jobs/ on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from causal_tune.cli.job import job_command

main = job_command(
    name="robustness_sd14.py",
    question="Tune CausalCLIP heads and measure what JPEG compression and blur cost them.",
    space="sd14",
    encoder="vit-l-14",
    example="--images GenImage --layout genimage --train-generator sd14 --val-generators glide --trials 100 "
    "--study robust",
    degrade=("figure4",),
)

if __name__ == "__main__":
    main()
