"""What does each of CausalCLIP's two modules add to a linear probe, on paired seeds?

    python jobs/ablation_sd14.py --images ROOT --layout genimage --train-generator sd14 \
        --val-generators glide --seeds 5 --study ablation

The four arms of the paper's Table 5 as one study on one feature store, and one table beside the paper's; the
same command continues whatever was interrupted, and with more --seeds extends it.
"""

import sys
from pathlib import Path

# a checkout's job runs the checkout's package, installed or not: Python put only jobs/ on the path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from causal_tune.cli.ablation import ablation_job

main = ablation_job(
    name="ablation_sd14.py",
    question="Repeat the paper's ablation: neither module, each alone, and both, on the same seeds.",
    space="ablation",
    encoder="vit-l-14",
)

if __name__ == "__main__":
    main()
