"""The embedded demo: the protocol of `sd14` in small, a minute or two on 2 cores."""

from optuna.distributions import FloatDistribution

QUESTION = """
Does the whole way work on this machine: images, features, a study, the best detector? Trained on the
latent autoencoder, which weights carry over to tiny generators of other families?
"""

EXPECTED = """
A few seconds a trial, a minute or two for 12 trials on 2 cores. A few hundred tiny crops rank nothing
reliably: the table shows how a study is read, not which configuration is good.
"""

SPACE = {
    "lambda1": FloatDistribution(1e-5, 1e-2, log=True),
    "lambda2": FloatDistribution(1e-1, 1e3, log=True),
    "alpha": FloatDistribution(1e-2, 1.0, log=True),
    "beta": FloatDistribution(1e-2, 1e1, log=True),
    "tau": FloatDistribution(0.1, 2.0, log=True),
    "p": FloatDistribution(0.05, 0.5),
    # Few images make few steps an epoch, so a larger step than the paper's 1e-4 may pay.
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}

DEFAULTS = {
    "lambda1": 1e-4,
    "lambda2": 10.0,
    "alpha": 0.1,
    "beta": 1.0,
    "tau": 0.5,
    "p": 0.2,
    "learning_rate": 1e-3,
    "batch_size": 128,
}

ENQUEUED = [
    {"head": "linear", "learning_rate": 3e-3},
    {},
]
