"""The nearest neighbours of UnivFD: how many, and on which features."""

from optuna.distributions import CategoricalDistribution

QUESTION = """
How well do the nearest training images, by cosine distance, tell generated images of unseen generators?
"""

EXPECTED = """
A second a trial, more for large training sets: every image is compared with all of them. There are 8 different
configurations, so more trials repeat some.
"""

SPACE = {
    "neighbours": CategoricalDistribution([1, 3, 5, 9]),
    # l2 is no choice of its own here: the cosine distance normalises already
    "normalisation": CategoricalDistribution(["none", "standardised"]),
}

DEFAULTS = {"head": "nearest", "neighbours": 1, "normalisation": "none"}

ENQUEUED = [{}]
