"""Few-shot class means: how many images of a generator does it take?"""

from optuna.distributions import CategoricalDistribution, IntDistribution

QUESTION = """
How far do the means of a few images of each class carry, and how much do the images that were drawn matter?
"""

EXPECTED = """
A second a trial. Each trial draws other images, so trials with the same number of shots differ: at 5 shots by
several points. Classes with fewer images than `shots` fail the trial with that reason.
"""

SPACE = {
    "shots": IntDistribution(1, 100, log=True),
    "normalisation": CategoricalDistribution(["none", "l2", "standardised"]),
}

DEFAULTS = {"head": "prototypes", "shots": 10, "normalisation": "l2"}

ENQUEUED = [{}]
