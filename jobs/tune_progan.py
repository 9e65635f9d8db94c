"""Which settings of CausalCLIP generalise from ProGAN to other GANs and to diffusion models?

    python jobs/tune_progan.py --images ROOT --layout forensynths --train-generator progan \
        --val-generators stylegan --trials 100 --study progan
    ray job submit --working-dir . -- python jobs/tune_progan.py --images /data/ForenSynths ...

The protocol of ForenSynths and UnivFD; otherwise as tune_sd14.py.
"""

import sys
from pathlib import Path

# a checkout's job runs the checkout's package, installed or not: Python put only jobs/ on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from causal_tune.cli.job import job_command

main = job_command(
    name="tune_progan.py",
    question="Tune CausalCLIP heads on ProGAN's images and judge them on other generators, end to end.",
    space="progan",
    encoder="vit-l-14",
    example="--images ForenSynths --layout forensynths --train-generator progan --val-generators stylegan "
    "--trials 100 --study progan",
)

if __name__ == "__main__":
    main()
