"""The paper's ablation (Table 5): four arms, with and without factorisation and masking."""

from optuna.distributions import FloatDistribution

QUESTION = """
What do the two modules of CausalCLIP add to a linear probe on the same features, each alone and both together:
the factorisation (mask, adversary, HSIC, L1) and the masking (Bernoulli counterfactuals and their consistency)?
"""

EXPECTED = """
4 trials a seed; on 400 training images 5 seeds took 6 minutes on 2 cores. The paper prints one
number an arm and no spread. With a few hundred images a generator differences below a point are noise, and the
factorisation may collapse (its mask lets everything through) and then equals the probe.
"""

# `jobs/ablation_sd14.py` searches nothing: it repeats the four arms below with the same seeds for each. As the
# space of an ordinary study the ranges are those of sd14.
SPACE = {
    "lambda1": FloatDistribution(1e-5, 1e-2, log=True),
    "lambda2": FloatDistribution(1e-1, 1e3, log=True),
    "alpha": FloatDistribution(1e-2, 1.0, log=True),
    "beta": FloatDistribution(1e-2, 1e1, log=True),
    "tau": FloatDistribution(0.1, 2.0, log=True),
    "p": FloatDistribution(0.05, 0.5),
}

# The paper states none of the six values; these are the defaults of a trial. Its learning rate is the paper's.
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
    {"head": "linear", "learning_rate": 1e-3},  # neither: UnivFD's linear probe, as in sd14
    {},  # both: the method
    {"beta": 0.0},  # factorisation only: nothing reads the counterfactuals
    # masking only: the probe again, its rate too, with the consistency under dropped features
    {"mask_scope": "none", "learning_rate": 1e-3},
]
