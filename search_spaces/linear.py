"""The linear probe of UnivFD, tuned: what every other head has to beat."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

QUESTION = """
How well does a tuned linear probe on frozen features detect generators that were never trained on?
"""

EXPECTED = """
A second or two a trial. The learning rate decides how far the probe is trained when early stopping ends it.
"""

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 3e-2, log=True),
    "normalisation": CategoricalDistribution(["none", "l2", "standardised"]),
}

# UnivFD: raw features, batch 256; its learning rate of 1e-4 needs far more steps than a trial has
DEFAULTS = {"head": "linear", "learning_rate": 1e-3, "normalisation": "none"}

ENQUEUED = [{}]
