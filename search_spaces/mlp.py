"""A multilayer perceptron: do more parameters alone generalise?"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

QUESTION = """
Is what CausalCLIP gains more than what a perceptron of the same size gains on the same features?
"""

EXPECTED = """
A few milliseconds a step on one CPU core. Perceptrons fit the training generator best and tend to carry over worst.
"""

SPACE = {
    "mlp_width": CategoricalDistribution([64, 128, 256, 512]),
    "mlp_depth": IntDistribution(1, 3),
    "dropout": FloatDistribution(0.0, 0.7),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "learning_rate": FloatDistribution(3e-5, 3e-3, log=True),
    "normalisation": CategoricalDistribution(["none", "l2", "standardised"]),
}

DEFAULTS = {
    "head": "mlp",
    "mlp_width": 256,
    "mlp_depth": 1,
    "dropout": 0.5,
    "weight_decay": 1e-3,
    "learning_rate": 3e-4,
    "normalisation": "none",
}

ENQUEUED = [{}]
