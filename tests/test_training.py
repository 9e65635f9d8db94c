import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from causal_tune import training
from causal_tune.errors import InvalidConfig, TrialFailed, UnknownName
from causal_tune.features import FeatureSet, StudyData
from causal_tune.heads import HEADS, load_head
from causal_tune.metrics import score_metrics
from causal_tune.processor import has_bfloat16
from causal_tune.training import train
from causal_tune.trial import TrialConfig

WIDTH = 10
STEPPED = sorted(name for name, head in HEADS.items() if hasattr(head, "trainer"))
FAST = TrialConfig(learning_rate=1e-2, max_epochs=6, min_epoch_steps=4, lambda1=1e-4, adversary_width=8)


def toy(n: int, seed: int, gap: float = 1.0) -> FeatureSet:
    labels = (torch.arange(n) % 2).float()
    features = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    features[:, :3] += gap * (2 * labels[:, None] - 1)
    return FeatureSet(features, labels)


def study_data(n: int = 64, gap: float = 1.0) -> StudyData:
    only_generated = FeatureSet(toy(8, 4).features, torch.ones(8))
    return StudyData(
        toy(n, 0, gap),
        toy(40, 1, gap),
        {"near": toy(30, 2, gap), "far": toy(20, 3, -gap), "fake": only_generated},
    )


def repeatable(result):
    epochs = [{key: value for key, value in epoch.items() if key != "time_s"} for epoch in result.epochs]
    state = {name: value.tolist() for name, value in result.head_state.items()}
    return epochs, state, result.validation, result.generators, result.mask, result.head_config


@pytest.mark.parametrize("head", sorted(HEADS))
def test_same_seed_same_result_whatever_the_global_random_state(head):
    torch.manual_seed(0)
    first = train(replace(FAST, head=head), study_data())
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state()
    second = train(replace(FAST, head=head), study_data())
    assert torch.equal(torch.get_rng_state(), before)
    assert repeatable(first) == repeatable(second)


def test_another_seed_is_another_result():
    assert repeatable(train(FAST, study_data())) != repeatable(train(replace(FAST, seed=1), study_data()))


@pytest.mark.parametrize("head", STEPPED)
def test_result_is_the_state_of_the_best_epoch(head):
    """A learning rate that overfits: the best epoch is not the last, and the state is the one it had."""
    # at 0.1 VIB-Net's units die and most of its scores are ties, whose order is that of rounding errors
    learning_rate = 3e-3 if head == "vib" else 0.1
    config = replace(FAST, head=head, learning_rate=learning_rate, max_epochs=12, patience=12)
    data = study_data(16, gap=0.5)
    result = train(config, data)
    losses = [epoch["validation/loss"] for epoch in result.epochs]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert result.best_epoch < len(losses)
    assert result.validation["loss"] == min(losses)
    with torch.inference_mode():
        loaded = load_head(result.head_config, result.head_state)
        for metrics, one in [
            (result.validation, data.validation),
            *((result.generators[name], data.generators[name]) for name in data.generators),
        ]:
            again = score_metrics(loaded.logits(one.features).numpy(), one.labels.numpy())
            assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
            assert (again["ap"], again["accuracy"]) == (metrics["ap"], metrics["accuracy"])
    shorter = train(replace(config, max_epochs=result.best_epoch), data)
    assert repeatable(shorter)[1] == repeatable(result)[1]


def test_training_stops_by_patience_when_there_is_no_progress():
    result = train(replace(FAST, learning_rate=1e-9, patience=2, max_epochs=50), study_data())
    assert result.stopped_by == "patience"
    assert len(result.epochs) == 3
    result = train(replace(FAST, max_epochs=2), study_data())
    assert (result.stopped_by, len(result.epochs)) == ("max_epochs", 2)


def test_slow_but_steady_progress_is_progress():
    """Less than `min_progress` an epoch, and more than that within the patience."""
    config = replace(
        FAST,
        head="linear",
        learning_rate=1e-4,
        patience=5,
        max_epochs=30,
        min_epoch_steps=1,
        min_progress=3e-4,
    )
    result = train(config, study_data())
    losses = [epoch["validation/loss"] for epoch in result.epochs]
    assert max(earlier - later for earlier, later in itertools.pairwise(losses)) < 3e-4
    assert result.stopped_by == "max_epochs"


@pytest.mark.parametrize(
    ("n", "batch_size", "min_epoch_steps", "steps"),
    [(64, 256, 4, 4), (64, 20, 4, 4), (64, 20, 5, 8), (300, 100, 2, 3), (5, 4, 1, 2)],
)
def test_an_epoch_is_whole_passes_with_enough_steps(n, batch_size, min_epoch_steps, steps):
    config = replace(FAST, batch_size=batch_size, min_epoch_steps=min_epoch_steps, max_epochs=2)
    result = train(config, study_data(n))
    assert [epoch["steps"] for epoch in result.epochs] == [steps, 2 * steps]
    assert result.num_steps == 2 * steps


def test_batches_are_of_one_size_and_a_pass_shows_no_row_twice(monkeypatch):
    seen = []

    class Watching:
        def __init__(self, trainer):
            self.trainer = trainer

        def step(self, features, labels):
            seen.append(features[:, 0].clone())
            return self.trainer.step(features, labels)

    original = HEADS["linear"].trainer
    monkeypatch.setattr(HEADS["linear"], "trainer", lambda self, *given: Watching(original(self, *given)))
    train(replace(FAST, head="linear", batch_size=20, max_epochs=2, min_epoch_steps=1), study_data(63))
    assert [len(batch) for batch in seen] == [15] * 8
    for one_pass in (seen[:4], seen[4:]):
        assert len(torch.cat(one_pass).unique()) == 60
    assert not torch.equal(seen[0], seen[4])


def test_epoch_records_are_flat_json_with_losses_metrics_and_mask():
    result = train(FAST, study_data())
    assert json.loads(json.dumps(result.epochs, allow_nan=False)) == result.epochs
    expected = {"epoch", "kept", "steps", "time_s", "validation/loss", "validation/ap", "validation/accuracy"}
    expected |= {f"generator_ap/{name}" for name in ("near", "far", "fake")}
    terms = ("total", "classification", "adversarial", "sparsity", "hsic", "invariance")
    expected |= {f"loss/{name}" for name in terms}
    statistics = ("mean", "std_images", "std_dimensions", "entropy", "adversary_accuracy")
    expected |= {f"mask/{name}" for name in statistics}
    assert all(set(epoch) == expected for epoch in result.epochs)
    assert result.mask == {name: result.epochs[result.best_epoch - 1][f"mask/{name}"] for name in statistics}
    assert result.generators["fake"]["ap"] is None
    json.dumps([result.validation, result.generators, result.mask, result.head_config], allow_nan=False)


def test_linear_head_has_no_mask_and_cannot_collapse():
    result = train(replace(FAST, head="linear"), study_data())
    assert result.mask is None
    assert result.collapsed is None
    assert not any(key.startswith("mask/") for key in result.epochs[0])


def test_generators_do_not_influence_training():
    data = study_data()
    other = replace(data, generators={"near": toy(50, 8)})
    assert repeatable(train(FAST, data))[1] == repeatable(train(FAST, other))[1]


def test_a_mask_that_closes_is_called_collapsed():
    config = replace(FAST, lambda1=10.0, max_epochs=8, min_epoch_steps=20, patience=8, learning_rate=3e-2)
    data = study_data(gap=0.0)
    # without a signal the validation loss is lowest when nothing passes the mask any more
    result = train(config, data)
    assert result.epochs[-1]["mask/mean"] < 0.01
    assert training._collapsed({"mean": 0.005}) == "zeros"
    assert training._collapsed({"mean": 0.995}) == "ones"
    assert training._collapsed({"mean": 0.5}) is None
    assert training._collapsed(None) is None
    assert result.collapsed == training._collapsed(result.mask)


def test_lambda1_makes_the_mask_sparser():
    means = [
        train(replace(FAST, lambda1=lambda1), study_data()).epochs[-1]["mask/mean"] for lambda1 in (0.0, 0.1)
    ]
    assert means[1] < means[0] - 0.05


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["train", "validation", "near"])
def test_features_that_are_not_finite_fail_the_trial_by_name(value, where):
    data = study_data()
    one = data.generators["near"] if where == "near" else getattr(data, where)
    features = one.features.clone()
    features[3, 2] = value
    broken = FeatureSet(features, one.labels)
    if where == "near":
        data = replace(data, generators={**data.generators, "near": broken})
    else:
        data = replace(data, **{where: broken})
    with pytest.raises(TrialFailed, match=r"not finite \(first in row 3\).*extract them again") as error:
        train(FAST, data)
    assert {"train": "training set", "validation": "validation set", "near": "'near'"}[where] in str(
        error.value
    )


@pytest.mark.parametrize("head", STEPPED)
def test_a_huge_learning_rate_fails_the_trial_with_epoch_step_and_cause(head):
    config = replace(FAST, head=head, learning_rate=1e30, max_epochs=30)
    with pytest.raises(TrialFailed, match=r"diverged: .* in epoch \d+, step \d+.*learning_rate 1e\+30"):
        train(config, study_data())


def test_a_finite_loss_far_out_of_range_fails_the_trial_too():
    """Features of an absurd scale: nothing overflows, and nothing can be learnt."""
    data = study_data()
    huge = FeatureSet(data.train.features * 1e6, data.train.labels)
    with pytest.raises(TrialFailed, match=r"exploded to .* in epoch 1, step 1.*alpha 0\.1"):
        train(FAST, replace(data, train=huge))


def test_a_loss_term_that_is_not_finite_is_named():
    terms = {"total": math.nan, "classification": 0.5, "hsic": math.nan}
    with pytest.raises(TrialFailed, match=r"the loss term 'hsic' became nan in epoch 2, step 9\. Likely"):
        training._check_terms(terms, FAST, 2, 9)
    training._check_terms({"total": 1.0, "sparsity": 1e6}, FAST, 1, 1)
    with pytest.raises(TrialFailed, match="'adversarial' exploded to 2e\\+04"):
        training._check_terms({"total": 1.0, "adversarial": 2e4}, FAST, 1, 1)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_training_set_of_one_class_fails_the_trial(label):
    data = study_data()
    one = FeatureSet(data.train.features, torch.full_like(data.train.labels, label))
    with pytest.raises(TrialFailed, match="A detector needs both"):
        train(FAST, replace(data, train=one))


def test_empty_sets_and_other_widths_fail_the_trial():
    data = study_data()
    empty = FeatureSet(torch.zeros(0, WIDTH), torch.zeros(0))
    with pytest.raises(TrialFailed, match="validation set has no images"):
        train(FAST, replace(data, validation=empty))
    wide = FeatureSet(torch.zeros(4, WIDTH + 1), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    with pytest.raises(TrialFailed, match="generator 'wide' has features of width 11"):
        train(FAST, replace(data, generators={"wide": wide}))


@pytest.mark.parametrize(
    "changes",
    [
        {"tau": 0},
        {"tau": -1.0},
        {"tau": math.nan},
        {"lambda1": -1e-9},
        {"lambda2": math.inf},
        {"alpha": "1"},
        {"beta": None},
        {"p": 1.0},
        {"p": -0.1},
        {"learning_rate": 0.0},
        {"batch_size": 3},
        {"batch_size": 256.0},
        {"max_epochs": 0},
        {"patience": 0},
        {"patience": True},
        {"mask_width": 0},
        {"mask_depth": -1},
        {"mask_bias": math.inf},
        {"mask_norm": 1},
        {"tau_end": 0.0},
        {"anneal_steps": 0},
        {"alpha_warmup": -1},
        {"adversary_depth": 0.5},
        {"adversary_steps": 0},
        {"adversary_rate": 0.0},
        {"rescale": "no"},
        {"neighbours": 2},
        {"svm_c": 0},
        {"shots": 0},
        {"bottleneck": 0},
        {"vib_beta": -1.0},
        {"dropout": 1.0},
        {"weight_decay": -1e-3},
        {"mlp_width": 0},
        {"mlp_depth": 0},
        {"adversary_width": 0},
        {"seed": -1},
        {"seed": 1.5},
        {"layer": ""},
    ],
)
def test_values_out_of_range_are_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(InvalidConfig, match=rf"^{name} is .*must"):
        TrialConfig(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {name: "both"}
        for name in (
            *("head", "update", "noise", "evaluation_mask", "mask_scope", "sparsity", "hsic", "divergence"),
            *("adversary_loss", "normalisation", "early_stopping", "precision"),
        )
    ],
)
def test_unknown_names_are_refused(changes):
    with pytest.raises(UnknownName, match="There are: "):
        TrialConfig(**changes)


def test_config_survives_json_and_refuses_unknown_keys():
    config = replace(FAST, mask_width=7, seed=4)
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InvalidConfig, match=r"no field 'lamda1'.*lambda1"):
        TrialConfig.from_dict({"lamda1": 1.0})


@pytest.mark.parametrize(
    ("early_stopping", "best"), [("val_generators", (0.9 + 0.5) / 2), ("worst_generator", 0.5)]
)
def test_early_stopping_can_read_the_validation_generators(early_stopping, best):
    config = replace(FAST, early_stopping=early_stopping)
    sets = [score_metrics([2.0, 1.0], [1, 0])] * 2
    judged = [{**sets[0], "ap": 0.9}, {**sets[1], "ap": 0.5}]
    assert training._stopping_ap(config, judged) == pytest.approx(best)
    with pytest.raises(TrialFailed, match="Name --val-generators"):
        training._stopping_ap(config, [])
    with pytest.raises(TrialFailed, match="there are 1, of which 0 have both classes"):
        training._stopping_ap(config, [{**sets[0], "ap": None}])


def test_the_loss_that_stops_a_balanced_head_counts_either_class_half():
    logits, labels = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0]), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    validation = FeatureSet(torch.zeros(5, WIDTH), labels)
    metrics = score_metrics(logits, labels)
    of_classes = [score_metrics(logits[labels == one], labels[labels == one])["loss"] for one in (0, 1)]
    balanced = replace(FAST, class_balance="balanced")
    assert training._stopping_loss(FAST, logits, validation, metrics) == metrics["loss"]
    found = training._stopping_loss(balanced, logits, validation, metrics)
    assert found == pytest.approx(sum(of_classes) / 2)
    assert found != pytest.approx(metrics["loss"], rel=0.01)


def test_the_kept_epoch_is_the_best_on_what_early_stopping_reads():
    data = replace(study_data(), val_generators=("near",))
    config = replace(FAST, early_stopping="val_generators", max_epochs=8, patience=8, learning_rate=3e-2)
    result = train(config, data)
    values = [epoch["generator_ap/near"] for epoch in result.epochs]
    assert result.generators["near"]["ap"] == max(values)
    assert result.best_epoch == values.index(max(values)) + 1
    # the test generators, which it may not read, are another matter
    other = replace(data, generators={**data.generators, "far": toy(20, 9)})
    assert train(config, other).best_epoch == result.best_epoch


def test_standardisation_is_learnt_on_the_training_set_alone():
    data = study_data()
    moved = replace(data, validation=FeatureSet(data.validation.features + 3, data.validation.labels))
    one, other = (
        train(replace(FAST, head="linear", normalisation="standardised"), item) for item in (data, moved)
    )
    assert torch.equal(one.head_state["normaliser.mean"], data.train.features.mean(dim=0))
    assert torch.equal(one.head_state["normaliser.mean"], other.head_state["normaliser.mean"])


def test_precision_follows_the_processor_and_is_written_down():
    config = replace(FAST, max_epochs=1)
    native = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    assert train(config, study_data()).head_config["precision"] == native
    for precision in ("float32", "bfloat16"):
        result = train(replace(config, precision=precision), study_data())
        assert result.head_config["precision"] == precision
