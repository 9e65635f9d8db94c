"""VIB-Net: how much information about the features its bottleneck may keep."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

QUESTION = """
Does an information bottleneck on frozen features generalise to unseen generators further than a linear probe?
"""

EXPECTED = """
About 20 ms a step on one CPU core. A large vib_beta closes the bottleneck: all scores are then 1/2.
"""

SPACE = {
    # unpublished; 1e-3 is usual for such bottlenecks
    "vib_beta": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.7),
    "bottleneck": CategoricalDistribution([32, 64, 128, 256]),
    "learning_rate": FloatDistribution(3e-5, 1e-3, log=True),
    "normalisation": CategoricalDistribution(["none", "l2", "standardised"]),
}

DEFAULTS = {
    "head": "vib",
    "vib_beta": 1e-3,
    "dropout": 0.5,
    "bottleneck": 256,
    "learning_rate": 1e-4,
    "normalisation": "none",
}

ENQUEUED = [{}]
