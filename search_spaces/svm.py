"""A linear support vector machine, after Cozzolino et al. (CVPR 2024): its C, which they do not publish."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

QUESTION = """
How well does a linear support vector machine on normalised features detect generators that were never trained on?
"""

EXPECTED = """
A second or two a trial. Its authors fit it on the features before CLIP's projection (the layer `pre`).
"""

SPACE = {
    "svm_c": FloatDistribution(1e-3, 1e2, log=True),
    "normalisation": CategoricalDistribution(["l2", "standardised"]),
}

DEFAULTS = {"head": "svm", "svm_c": 1.0, "normalisation": "l2"}

ENQUEUED = [{}]
