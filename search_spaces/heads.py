"""All heads in one study: the searcher spends its trials where they pay."""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

QUESTION = """
Which head on frozen features carries over to unseen generators, each with its own settings, when one budget of
trials is shared by all?
"""

EXPECTED = """
Seconds a trial for most heads, minutes for `causal` and `vib`. The searcher drops the weak heads after a dozen
trials each, so give it 100 or more. For one table with the same number of trials a head take jobs/heads_sd14.py.
"""

SPACE = {
    "head": CategoricalDistribution(["causal", "linear", "mlp", "nearest", "prototypes", "svm", "vib"]),
    "normalisation": CategoricalDistribution(["none", "l2", "standardised"]),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "lambda1": FloatDistribution(3e-5, 1e-3, log=True),
    "lambda2": FloatDistribution(1e-1, 1e1, log=True),
    "alpha": FloatDistribution(1e-2, 1.0, log=True),
    "beta": FloatDistribution(1e-2, 1e1, log=True),
    "tau": FloatDistribution(0.1, 2.0, log=True),
    "p": FloatDistribution(0.05, 0.5),
    "mlp_width": CategoricalDistribution([64, 128, 256, 512]),
    "mlp_depth": IntDistribution(1, 3),
    "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.7),
    "bottleneck": CategoricalDistribution([64, 128, 256]),
    "vib_beta": FloatDistribution(1e-5, 1e-1, log=True),
    "neighbours": CategoricalDistribution([1, 3, 5, 9]),
    "shots": CategoricalDistribution([5, 10, 20, 50]),
    "svm_c": FloatDistribution(1e-3, 1e2, log=True),
}

# A field is searched with the heads that read it; with others it keeps its default.
CONDITIONS = {
    "learning_rate": {"head": ["causal", "linear", "mlp", "vib"]},
    **{name: {"head": ["causal"]} for name in ("lambda1", "lambda2", "alpha", "beta", "tau", "p")},
    **{name: {"head": ["mlp"]} for name in ("mlp_width", "mlp_depth", "weight_decay")},
    "dropout": {"head": ["mlp", "vib"]},
    **{name: {"head": ["vib"]} for name in ("bottleneck", "vib_beta")},
    "neighbours": {"head": ["nearest"]},
    "shots": {"head": ["prototypes"]},
    "svm_c": {"head": ["svm"]},
}

DEFAULTS = {
    "head": "linear",
    "normalisation": "none",
    "learning_rate": 1e-3,
    "lambda1": 1e-4,
    "lambda2": 10.0,
    "alpha": 0.1,
    "beta": 1.0,
    "tau": 0.5,
    "p": 0.2,
    "mlp_width": 256,
    "mlp_depth": 1,
    "weight_decay": 1e-3,
    "dropout": 0.5,
    "bottleneck": 256,
    "vib_beta": 1e-3,
    "neighbours": 1,
    "shots": 10,
    "svm_c": 1.0,
}

ENQUEUED = [
    {},  # UnivFD's linear probe
    {"head": "causal", "learning_rate": 1e-4},
    {"head": "mlp", "learning_rate": 3e-4},
    {"head": "vib"},
    {"head": "svm"},
    {"head": "nearest"},
    {"head": "prototypes"},
]
