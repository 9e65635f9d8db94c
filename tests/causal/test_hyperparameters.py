"""Each hyperparameter does to a trained head what the paper says that it does.

Heads are trained on `synthetic` features, where it is known which dimensions tell the label, once for each of
`SEEDS` (a seed is other images, another start and other noise); every claim is a paired one-sided t-test over
them at 1 %. The mistakes that are planted at the end must fail the same checks.
Run as a program it prints the measured tables: `python -m tests.causal.test_hyperparameters`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from causal_tune.causal import losses, mask, trainer
from causal_tune.heads import load_head
from causal_tune.training import train
from causal_tune.trial import TrialConfig
from tests.causal import synthetic
from tests.causal.checks import assert_rate

SEEDS = range(5)
T_CRITICAL = {4: 3.747}
"""One-sided 1 % point of Student's t, by degrees of freedom: number of seeds - 1."""
T_TWO_SIDED = {4: 2.776}
"""Two-sided 5 % point: half width of a 95 % interval in standard errors."""
DROP_RATE = 0.2
"""At which the counterfactual consistency is tested, whatever p a head was trained with."""

BASE = TrialConfig(
    precision="float32",
    learning_rate=1e-2,
    batch_size=128,
    max_epochs=1,  # the last state, not that of the lowest loss: all arms are compared after the same steps
    min_epoch_steps=64,
    lambda1=3e-3,
    lambda2=0.0,  # has arms of its own: doubles the time of a step
    alpha=0.3,
    beta=1.0,
    tau=0.5,
    p=0.2,
    adversary_width=32,
)
NO_ADVERSARY = replace(BASE, lambda1=1e-3, alpha=0.0)
"""Of the label, much is left in Znc: what alpha and lambda2 have to work on."""


@dataclass(frozen=True)
class Measured:
    """One head on held-out images of the training domain, by the evaluation mask."""

    mean_mask: float
    noise_mask: float
    """Mean of the mask over the noise dimensions."""
    informative_auc: float
    """How often the mean mask of an informative dimension is above that of a noise dimension."""
    spurious_auc: float
    """The same for a spurious dimension."""
    probe_auc: float
    """AUC of a logistic regression fitted to Znc and Y from scratch, on images that it was not fitted to."""
    hsic: float
    """HSIC(Zc, Znc)."""
    kl: float
    """KL(h(Zc) || h(Zcf)) at `DROP_RATE`, the same drops for every head."""
    change: float
    """Mean absolute difference of the probabilities h(Zc) and h(Zcf)."""
    flips: float
    """Share of decisions that the drops turn round."""
    logit_size: float
    """Mean absolute logit h(Zc)."""
    accuracy: float
    reversed_accuracy: float
    """Where the spurious dimensions say the opposite."""


def measure_one(config: TrialConfig, seed: int) -> Measured:
    data = synthetic.study_data(seed)
    result = train(replace(config, seed=seed), data)
    head = load_head(result.head_config, result.head_state)
    held_out = data.generators["training"]
    with torch.inference_mode():
        fitted_znc = mask.split(data.train.features, head.mask(data.train.features))[1].numpy()
        m = head.mask(held_out.features)
        zc, znc = mask.split(held_out.features, m)
        probe = LogisticRegression(max_iter=1000).fit(fitted_znc, data.train.labels.numpy())
        drops = torch.rand(zc.shape, generator=torch.Generator().manual_seed(99)) < DROP_RATE
        logits = head.logits(held_out.features).double()
        dropped_logits = head.classifier(zc * ~drops)[:, 0].double()
        by_dimension = m.mean(dim=0).numpy()
        return Measured(
            mean_mask=m.mean().item(),
            noise_mask=m[:, synthetic.NOISE].mean().item(),
            informative_auc=_auc(by_dimension[synthetic.INFORMATIVE], by_dimension[synthetic.NOISE]),
            spurious_auc=_auc(by_dimension[synthetic.SPURIOUS], by_dimension[synthetic.NOISE]),
            probe_auc=float(roc_auc_score(held_out.labels.numpy(), probe.decision_function(znc.numpy()))),
            hsic=losses.hsic(zc, znc).item(),
            kl=losses.invariance(logits, dropped_logits).item(),
            change=(logits.sigmoid() - dropped_logits.sigmoid()).abs().mean().item(),
            flips=((logits > 0) != (dropped_logits > 0)).double().mean().item(),
            logit_size=logits.abs().mean().item(),
            accuracy=result.generators["training"]["accuracy"],
            reversed_accuracy=result.generators["reversed"]["accuracy"],
        )


def _auc(above: NDArray[np.float32], below: NDArray[np.float32]) -> float:
    order = np.sign(above[:, None] - below[None, :])
    return float((order + 1).mean() / 2)


measure_one_cached = cache(measure_one)
Measure = Callable[[TrialConfig, int], Measured]


def over_seeds(config: TrialConfig, name: str, measure: Measure = measure_one_cached) -> NDArray[np.float64]:
    return np.array([getattr(measure(config, seed), name) for seed in SEEDS])


def assert_falls(before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    """Paired over seeds, `after` is below `before`: Student's t, one-sided, 1 %."""
    differences = before - after
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    # with equal arms both sides are 0, which is no fall
    assert differences.mean() > T_CRITICAL[len(differences) - 1] * error, differences


def check_falls(arms: Sequence[TrialConfig], name: str, measure: Measure = measure_one_cached) -> None:
    """What is measured falls from each arm to the next."""
    values = [over_seeds(arm, name, measure) for arm in arms]
    for before, after in itertools.pairwise(values):
        assert_falls(before, after)


def check_ranking(config: TrialConfig, name: str = "informative_auc") -> None:
    assert (over_seeds(config, name) >= 0.95).all()


def arms(base: TrialConfig, name: str, values: Sequence[float]) -> list[TrialConfig]:
    return [replace(base, **{name: value}) for value in values]


LAMBDA1 = arms(BASE, "lambda1", (0.0, 3e-3, 1e-2))
ALPHA = arms(NO_ADVERSARY, "alpha", (0.0, 0.3))
LARGE_ALPHA = arms(NO_ADVERSARY, "alpha", (1.0, 10.0))
LAMBDA2 = arms(NO_ADVERSARY, "lambda2", (0.0, 15.0))
LAMBDA2_NORMALISED = [NO_ADVERSARY, replace(NO_ADVERSARY, hsic="normalised", lambda2=1.0)]
COLLAPSED = replace(NO_ADVERSARY, lambda2=100.0)
BETA = arms(BASE, "beta", (0.0, 10.0, 100.0))
P = arms(replace(BASE, beta=10.0), "p", (0.05, 0.2, 0.5))


@pytest.fixture(autouse=True)
def one_thread():
    """The same sums in the same order on every machine, and no fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_lambda1_makes_the_mask_sparser():
    check_falls(LAMBDA1, "mean_mask")


@pytest.mark.slow
def test_mask_ranks_informative_dimensions_above_noise():
    check_ranking(BASE)


@pytest.mark.slow
def test_mask_does_not_tell_spurious_dimensions_from_informative_ones():
    """Nothing in one training domain could: the spurious dimensions are kept as surely, and on images where they
    are reversed the head is no better than a coin."""
    check_ranking(BASE, "spurious_auc")
    assert (over_seeds(BASE, "accuracy") > 0.95).all()
    assert (over_seeds(BASE, "reversed_accuracy") < 0.6).all()


@pytest.mark.slow
def test_alpha_takes_the_label_out_of_the_non_causal_part():
    check_falls(ALPHA, "probe_auc")


@pytest.mark.slow
def test_large_alpha_opens_the_mask_and_takes_out_no_more():
    """From alpha 1 to 10 the AUC of the probe goes from 0.60 to 0.64 (no fall), the mean mask from 0.30 to 0.44."""
    check_falls(LARGE_ALPHA[::-1], "mean_mask")
    with pytest.raises(AssertionError):
        check_falls(LARGE_ALPHA, "probe_auc")


@pytest.mark.slow
def test_lambda2_lowers_the_dependence_of_the_parts():
    check_falls(LAMBDA2, "hsic")


@pytest.mark.slow
def test_lambda2_on_normalised_hsic_lowers_the_dependence_of_the_parts():
    check_falls(LAMBDA2_NORMALISED, "hsic")
    assert (over_seeds(LAMBDA2_NORMALISED[1], "mean_mask") < 0.9).all()


@pytest.mark.slow
def test_large_lambda2_collapses_the_mask():
    """Where it lowers HSIC most, it does so by leaving nothing in Znc."""
    assert (over_seeds(COLLAPSED, "mean_mask") > 0.99).all()
    check_falls([LAMBDA2[1], COLLAPSED], "hsic")


@pytest.mark.slow
def test_beta_makes_predictions_consistent():
    check_falls(BETA, "kl")


@pytest.mark.slow
def test_p_makes_predictions_consistent():
    check_falls(P, "kl")


@pytest.mark.slow
def test_beta_does_not_save_decisions_nor_always_probabilities():
    """KL falls from 0.027 to 0.023 to 0.0005 at beta 0, 10, 100. The mean change of a probability goes from 0.053
    up to 0.058 before it falls to 0.012: less sure scores lie where a logit moves them most. The share of decisions
    that are turned round, to which the size of the logits is nothing, does not fall: 0.019, 0.021, 0.029."""
    check_falls(BETA, "logit_size")
    check_falls([BETA[1], BETA[0]], "change")
    check_falls([BETA[0], BETA[2]], "change")
    with pytest.raises(AssertionError):
        check_falls([BETA[0], BETA[2]], "flips")


@pytest.mark.slow
def test_p_does_not_save_decisions_nor_always_probabilities():
    """The same with p at 0.05, 0.2, 0.5: change 0.054, 0.058, 0.024; turned round 0.019, 0.021, 0.022."""
    check_falls([P[1], P[0]], "change")
    check_falls([P[0], P[2]], "change")
    with pytest.raises(AssertionError):
        check_falls([P[0], P[2]], "flips")


def check_temperature(function: Callable[..., torch.Tensor]) -> None:
    for logit in (-1.0, 0.0, 1.0):
        logits = torch.full((100, 100), logit)
        noises = [mask.gumbel_noise((100, 100), torch.Generator().manual_seed(100 + seed)) for seed in SEEDS]
        spreads = []
        for tau in (0.1, 0.3, 1.0, 3.0):
            masks = torch.stack([function(logits, tau, noise) for noise in noises])
            assert_rate(masks > 0.5, 1 - math.exp(-math.exp(logit)))
            spreads.append(masks.std(dim=(1, 2)).double().numpy())
        for before, after in itertools.pairwise(spreads):
            assert_falls(before, after)


def test_tau_changes_the_spread_of_the_mask_and_not_its_rate():
    """The rate of M > 1/2 is 1 - exp(-exp(l)) at every temperature; the higher it is, the closer M is to 1/2."""
    check_temperature(mask.gumbel_sigmoid)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda logits, tau, noise: torch.sigmoid(logits + noise),
        lambda logits, tau, noise: torch.sigmoid(logits / tau + noise),
    ],
    ids=["temperature_ignored", "noise_after_the_temperature"],
)
def test_wrong_temperature_is_found(wrong):
    with pytest.raises(AssertionError):
        check_temperature(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (LAMBDA1, "mean_mask"),
        (ALPHA, "probe_auc"),
        (LAMBDA2, "hsic"),
        (BETA, "kl"),
        (P, "kl"),
    ],
    ids=["lambda1", "alpha", "lambda2", "beta", "p"],
)
def test_exchanged_or_equal_arms_are_found(settings, name):
    with pytest.raises(AssertionError):
        check_falls(settings[::-1], name)
    with pytest.raises(AssertionError):
        check_falls([settings[0], settings[0]], name)


@pytest.mark.slow
def test_mask_that_learnt_nothing_is_found():
    with pytest.raises(AssertionError):
        check_ranking(replace(BASE, learning_rate=1e-9, min_epoch_steps=1))


def measure_anew_unless(weight: str) -> Measure:
    """With the planted mistake, which does nothing to a head whose `weight` is 0."""
    return lambda config, seed: (measure_one if getattr(config, weight) > 0 else measure_one_cached)(
        config, seed
    )


@pytest.mark.slow
def test_sparsity_left_out_is_found(monkeypatch):
    right = losses.total_weights
    monkeypatch.setattr(losses, "total_weights", lambda *, lambda1, **rest: right(lambda1=0.0, **rest))
    with pytest.raises(AssertionError):
        check_falls([LAMBDA1[0], LAMBDA1[-1]], "mean_mask", measure_anew_unless("lambda1"))


@pytest.mark.slow
def test_flipped_adversary_is_found(monkeypatch):
    right = losses.total_weights
    monkeypatch.setattr(losses, "total_weights", lambda *, alpha, **rest: right(alpha=-alpha, **rest))
    with pytest.raises(AssertionError):
        check_falls(ALPHA, "probe_auc", measure_anew_unless("alpha"))


@pytest.mark.slow
def test_p_as_keep_rate_is_found(monkeypatch):
    monkeypatch.setattr(
        trainer, "drop_noise", lambda shape, p, generator: 1 - mask.drop_noise(shape, p, generator)
    )
    with pytest.raises(AssertionError):
        check_falls([P[0], P[-1]], "kl", measure_one)


if __name__ == "__main__":
    torch.set_num_threads(1)
    adversaries = [
        replace(NO_ADVERSARY, alpha=alpha, adversary_depth=depth, adversary_loss=loss)
        for depth, loss in itertools.product((0, 1), losses.ADVERSARY_LOSSES)
        for alpha in (0.3, 1.0, 10.0)
    ]
    tables = {
        "lambda1": LAMBDA1,
        "lambda2": arms(NO_ADVERSARY, "lambda2", (0.0, 10.0, 30.0, 100.0)),
        "lambda2 normalised": arms(replace(NO_ADVERSARY, hsic="normalised"), "lambda2", (1.0, 10.0)),
        "beta": arms(BASE, "beta", (0.0, 1.0, 10.0, 100.0)),
        "p at beta 10": P,
        "p at beta 1": arms(BASE, "p", (0.05, 0.2, 0.5)),
        "alpha": [NO_ADVERSARY, *adversaries],
    }
    for title, settings in tables.items():
        print(title)
        for config in settings:
            described = {name: getattr(config, name) for name in ("lambda1", "lambda2", "alpha", "beta", "p")}
            described |= {name: getattr(config, name) for name in ("adversary_depth", "adversary_loss")}
            print("  " + " ".join(f"{name}={value}" for name, value in described.items()))
            for name in Measured.__dataclass_fields__:
                values = over_seeds(config, name)
                half = T_TWO_SIDED[len(values) - 1] * values.std(ddof=1) / math.sqrt(len(values))
                print(f"    {name:18} {values.mean():.4g} +- {half:.2g}", flush=True)
