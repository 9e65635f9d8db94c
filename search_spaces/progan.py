"""Train on ProGAN (the protocol of ForenSynths and UnivFD), find the weights that carry over."""

from optuna.distributions import FloatDistribution

QUESTION = """
Trained on ProGAN alone, which weights of CausalCLIP's terms detect other GANs and diffusion models, and
do they beat a linear probe on the same features?
"""

EXPECTED = """
With all 20 ProGAN classes (720,000 images) an epoch is 2,800 steps of 15-50 ms on one CPU core: give the
study a sample of the index, GPUs or a cluster. In-distribution AP is above 0.99 for nearly every
configuration and cannot rank them: name at least one diffusion model among --val-generators.
"""

SPACE = {
    "lambda1": FloatDistribution(3e-5, 1e-3, log=True),  # summed L1
    "lambda2": FloatDistribution(1e-1, 1e1, log=True),
    "alpha": FloatDistribution(1e-2, 1.0, log=True),
    "beta": FloatDistribution(1e-2, 1e1, log=True),
    "tau": FloatDistribution(0.1, 2.0, log=True),
    "p": FloatDistribution(0.05, 0.5),
}

# The paper states none of the six values; these lie inside the ranges and are the defaults of a trial.
# Its learning rate is the paper's.
DEFAULTS = {
    "lambda1": 1e-4,
    "lambda2": 10.0,
    "alpha": 0.1,
    "beta": 1.0,
    "tau": 0.5,
    "p": 0.2,
    "learning_rate": 1e-4,
}

ENQUEUED = [
    {"head": "linear", "learning_rate": 1e-3},  # UnivFD's linear probe: what the method has to beat
    {},  # the paper-like default
]
