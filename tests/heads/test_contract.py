"""What every head of `HEADS` promises."""

import json
from dataclasses import fields

import pytest
import torch

from causal_tune.errors import InvalidConfig, UnknownName
from causal_tune.features import FeatureSet, StudyData
from causal_tune.heads import HEADS, build_head, load_head
from causal_tune.metrics import average_precision
from causal_tune.training import TrialConfig, train

WIDTH = 16
every_head = pytest.mark.parametrize("name", sorted(HEADS))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(name: str, **changes: object) -> dict[str, object]:
    known = {field.name for field in fields(HEADS[name].Settings)}
    values = TrialConfig(**{"learning_rate": 1e-2, "lambda1": 1e-4, **changes}).to_dict()
    return {key: value for key, value in values.items() if key in known}


def toy(n: int, seed: int = 0) -> FeatureSet:
    """Two classes that differ in the first three dimensions, by four standard deviations in all."""
    labels = (torch.arange(n) % 2).float()
    features = torch.randn(n, WIDTH, generator=generator(seed))
    features[:, :3] += 2.4 * (labels[:, None] - 0.5) * 2
    return FeatureSet(features, labels)


@every_head
def test_logits_are_one_finite_number_an_image(name):
    head = build_head(name, WIDTH, settings(name))
    for n in (1, 2, 130):
        logits = head.logits(toy(n).features)
        assert logits.shape == (n,)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


@every_head
def test_scoring_is_deterministic_and_leaves_the_head_alone(name):
    head = build_head(name, WIDTH, settings(name))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    x = toy(20).features
    assert torch.equal(head.logits(x), head.logits(x))
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


@every_head
def test_training_reaches_every_parameter(name):
    head = build_head(name, WIDTH, settings(name))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    trainer = head.trainer(generator(1))
    data = toy(64)
    for _ in range(3):
        trainer.step(data.features, data.labels)
    untouched = [key for key, value in head.state_dict().items() if torch.equal(value, before[key])]
    assert untouched == []


@every_head
def test_loss_terms_are_finite_numbers_with_the_total_first(name):
    data = toy(64)
    terms = build_head(name, WIDTH, settings(name)).trainer(generator(1)).step(data.features, data.labels)
    assert next(iter(terms)) == "total"
    assert all(isinstance(value, float) for value in terms.values())
    assert torch.tensor(list(terms.values())).isfinite().all()


@every_head
def test_same_seed_same_head_after_training(name):
    data = toy(64)
    states = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        head = build_head(name, WIDTH, settings(name), generator(3))
        trainer = head.trainer(generator(4))
        for _ in range(4):
            trainer.step(data.features, data.labels)
        states.append(head.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@every_head
def test_another_seed_is_another_start(name):
    one, other = (build_head(name, WIDTH, settings(name), generator(seed)) for seed in (0, 1))
    assert not torch.equal(one.logits(toy(8).features), other.logits(toy(8).features))


@every_head
def test_saved_and_loaded_head_gives_identical_logits(name, tmp_path):
    from safetensors.torch import load_file, save_file

    data = StudyData(toy(64), toy(32, 1), {})
    result = train(TrialConfig(head=name, max_epochs=1, min_epoch_steps=3), data)
    save_file(result.head_state, tmp_path / "model.safetensors")
    config = json.loads(json.dumps(result.head_config))
    head = load_head(config, load_file(tmp_path / "model.safetensors"))
    same = load_head(result.head_config, result.head_state)
    x = toy(40, 2).features
    assert torch.equal(head.logits(x), same.logits(x))
    assert config["head"] == name
    assert config["width"] == WIDTH


@every_head
def test_learns_a_separable_set(name):
    head = build_head(name, WIDTH, settings(name))
    trainer = head.trainer(generator(1))
    data, unseen = toy(256), toy(400, 9)
    for _ in range(150):
        trainer.step(data.features, data.labels)
    with torch.inference_mode():
        scores = head.logits(unseen.features)
    assert average_precision(scores.numpy(), unseen.labels.numpy()) > 0.97


@every_head
def test_mask_statistics_are_none_or_finite_numbers(name):
    data = toy(32)
    statistics = build_head(name, WIDTH, settings(name)).mask_statistics(data.features, data.labels)
    if statistics is not None:
        assert {"mean", "std_images", "std_dimensions", "entropy", "adversary_accuracy"} == set(statistics)
        assert torch.tensor(list(statistics.values())).isfinite().all()


@every_head
def test_number_of_parameters_is_that_of_the_state(name):
    head = build_head(name, WIDTH, settings(name))
    assert head.num_parameters == sum(value.numel() for value in head.state_dict().values())


@every_head
def test_settings_are_trial_fields_or_have_defaults(name):
    """Every hyperparameter that a head needs can be searched."""
    trial = {field.name for field in fields(TrialConfig)}
    missing = {field.name for field in fields(HEADS[name].Settings)} - trial
    assert all(key.startswith("evaluation_") for key in missing)


@every_head
def test_unknown_and_missing_settings_are_refused(name):
    with pytest.raises(InvalidConfig, match="unknown: depth"):
        build_head(name, WIDTH, {**settings(name), "depth": 3})
    with pytest.raises(InvalidConfig, match=r"missing: .*learning_rate"):
        build_head(name, WIDTH, {})


@every_head
def test_state_of_another_width_is_refused(name):
    head = build_head(name, WIDTH, settings(name))
    other = build_head(name, WIDTH + 1, settings(name))
    with pytest.raises(RuntimeError, match="size mismatch"):
        head.load_state_dict(other.state_dict())


def test_unknown_head_is_refused_with_the_names_there_are():
    with pytest.raises(UnknownName, match="causal, linear"):
        build_head("liner", WIDTH, {})
