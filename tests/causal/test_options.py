"""Each option of the causal head does what its name says."""

from dataclasses import replace

import pytest
import torch

from causal_tune.causal import losses, mask
from causal_tune.causal.head import MASK_SCOPES, CausalHead, CausalSettings
from causal_tune.causal.layers import mlp
from causal_tune.causal.trainer import UPDATES
from causal_tune.heads import build_head
from tests.causal.test_head import SETTINGS, WIDTH, batch, generator, head


def trained(steps: int, **changes: object) -> tuple[CausalHead, dict[str, float]]:
    one = head(**changes)
    trainer = one.trainer(generator(2))
    x, y = batch()
    for _ in range(steps):
        terms = trainer.step(x, y)
    return one, dict(terms)


@pytest.mark.parametrize("name", sorted(mask.EVALUATION_MASKS))
@pytest.mark.parametrize("noise", sorted(mask.NOISES))
def test_scores_use_the_evaluation_mask_that_is_named(name, noise):
    one = head(evaluation_mask=name, noise=noise)
    x, _ = batch()
    logits = one.mask_network(x)
    chosen = mask.NOISES[noise]
    draws = chosen.draw((32, WIDTH), torch.Generator().manual_seed(0))
    expected = {
        "expected": mask.expected_mask(logits, SETTINGS.tau, 32, chosen),
        "none": mask.noiseless_mask(logits, SETTINGS.tau),
        "mean": mask.mean_noise_mask(logits, SETTINGS.tau, chosen),
        "sample": mask.sampled_mask(logits, SETTINGS.tau, draws),
        "hard": mask.hard_mask(logits, chosen),
    }[name]
    torch.testing.assert_close(one.mask(x), expected)
    torch.testing.assert_close(one.logits(x), one.classifier(expected * x)[:, 0])


def test_a_sampled_mask_is_the_same_every_time_and_in_any_company():
    one = head(evaluation_mask="sample")
    x = torch.randn(200, WIDTH, generator=generator(1))
    assert torch.equal(one.logits(x), one.logits(x))
    torch.testing.assert_close(one.logits(x)[7:9], one.logits(x[7:9]), rtol=1e-5, atol=1e-6)


def test_temperature_follows_its_schedule_and_travels_with_the_state():
    one, _ = trained(4, tau=2.0, tau_end=0.5, anneal_steps=6)
    assert one.temperature == pytest.approx(mask.annealed_tau(3, 2.0, 0.5, 6))  # steps count from 0
    again = head(tau=2.0, tau_end=0.5, anneal_steps=6)
    again.load_state_dict(one.state_dict())
    x, _ = batch()
    assert torch.equal(one.logits(x), again.logits(x))
    assert "tau" not in head().state_dict()


def test_a_global_mask_is_the_same_for_every_image_and_is_trained():
    one, _ = trained(5, mask_scope="global")
    x, _ = batch()
    assert torch.equal(one.mask(x), one.mask(x)[:1].expand_as(x))
    assert one.mask(x)[0].std() > 0
    assert sum(value.numel() for value in one.mask_network.parameters()) == WIDTH


def test_without_mask_and_consistency_it_takes_the_steps_of_the_linear_probe():
    """UnivFD is a point of the method's own space."""
    one, terms = trained(20, mask_scope="none", beta=0.0)
    assert one.adversary is None
    assert one.mask_statistics(*batch()) is None
    assert terms.keys() == {"total", "classification"}
    probe = build_head("linear", WIDTH, {"learning_rate": SETTINGS.learning_rate}, generator(0))
    trainer = probe.trainer(generator(2))
    for _ in range(20):
        trainer.step(*batch())
    for name, value in probe.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], value)


def test_without_mask_the_counterfactuals_still_count():
    one, terms = trained(3, mask_scope="none")
    assert terms["total"] == pytest.approx(terms["classification"] + SETTINGS.beta * terms["invariance"])
    assert not torch.equal(
        one.classifier.weight, trained(3, mask_scope="none", beta=0.0)[0].classifier.weight
    )


def test_the_mean_of_the_mask_takes_lambda1_times_the_width():
    summed, _ = trained(10, lambda1=1e-2)
    averaged, terms = trained(10, lambda1=1e-2 * WIDTH, sparsity="mean")
    assert 0 < terms["sparsity"] < 1
    for name, value in summed.state_dict().items():
        torch.testing.assert_close(averaged.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(losses.HSIC_ESTIMATORS))
def test_the_hsic_term_is_that_of_the_named_estimator(name):
    one = head(hsic=name)
    x, y = batch()
    noise = mask.gumbel_noise((32, WIDTH), generator(2))
    zc, znc = mask.split(x, mask.gumbel_sigmoid(one.mask_network(x), SETTINGS.tau, noise))
    expected = losses.HSIC_ESTIMATORS[name](zc, znc).item()
    assert one.trainer(generator(2)).step(x, y)["hsic"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(losses.DIVERGENCES))
def test_the_consistency_term_is_that_of_the_named_divergence_and_of_the_rescaled_counterfactual(name):
    for rescale in (False, True):
        one = head(divergence=name, rescale=rescale, mask_scope="none")
        x, y = batch()
        drop = mask.drop_noise((32, WIDTH), SETTINGS.p, generator(2))
        zcf = x * (1 - drop) / (1 - SETTINGS.p if rescale else 1)
        expected = losses.DIVERGENCES[name](one.classifier(x)[:, 0], one.classifier(zcf)[:, 0]).item()
        assert one.trainer(generator(2)).step(x, y)["invariance"] == pytest.approx(expected, rel=1e-5)


def test_simultaneous_players_move_by_their_gradients_at_the_old_parameters():
    one, other = head(update="simultaneous", grad_clip=0.0), head(grad_clip=0.0)
    x, y = batch()
    one.trainer(generator(2)).step(x, y)
    noise_generator = generator(2)
    noise = mask.gumbel_noise((32, WIDTH), noise_generator)
    drop = mask.drop_noise((32, WIDTH), SETTINGS.p, noise_generator)
    m = mask.gumbel_sigmoid(other.mask_network(x), SETTINGS.tau, noise)
    zc, znc = m * x, (1 - m) * x
    h, hcf = other.classifier(zc)[:, 0], other.classifier(zc * (1 - drop))[:, 0]
    adversarial = losses.adversarial(other.adversary(znc)[:, 0], y)
    classifier_loss = losses.classification(h, y) + SETTINGS.beta * losses.invariance(h, hcf)
    mask_loss = (
        classifier_loss
        - SETTINGS.alpha * adversarial
        + SETTINGS.lambda1 * m.sum(dim=1).mean()
        + SETTINGS.lambda2 * losses.hsic(zc, znc)
    )
    for part, loss in (
        ("adversary", adversarial),
        ("classifier", classifier_loss),
        ("mask_network", mask_loss),
    ):
        parameters = list(getattr(other, part).parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        for parameter, gradient, moved in zip(
            parameters, gradients, getattr(one, part).parameters(), strict=True
        ):
            # the first step of Adam is the sign of the gradient, times the step size
            step = SETTINGS.learning_rate * gradient / (gradient.abs() + 1e-8)
            torch.testing.assert_close(moved.data, parameter.data - step, rtol=1e-4, atol=1e-6)


def test_updates_differ_from_the_second_player_on():
    alternating, _ = trained(1)
    simultaneous, _ = trained(1, update="simultaneous")
    assert torch.equal(alternating.adversary[0].weight, simultaneous.adversary[0].weight)
    assert not torch.equal(alternating.mask_network[0].weight, simultaneous.mask_network[0].weight)


def test_the_adversary_moves_as_often_and_as_far_as_it_is_told():
    start = head().adversary[0].weight
    once = (trained(1)[0].adversary[0].weight - start).abs().max().item()
    assert once == pytest.approx(SETTINGS.learning_rate, rel=1e-3)
    thrice = (trained(1, adversary_steps=3)[0].adversary[0].weight - start).abs().max().item()
    assert thrice > 2 * once
    faster = (trained(1, adversary_rate=2.5)[0].adversary[0].weight - start).abs().max().item()
    assert faster == pytest.approx(2.5 * SETTINGS.learning_rate, rel=1e-3)


def test_alpha_grows_linearly_in_its_warm_up():
    warm, _ = trained(1, alpha_warmup=4)
    small, _ = trained(1, alpha=SETTINGS.alpha / 4)
    whole, _ = trained(1)
    torch.testing.assert_close(warm.mask_network[0].weight, small.mask_network[0].weight)
    _, first = trained(1, alpha_warmup=4)
    assert first["total"] == pytest.approx(trained(1, alpha=SETTINGS.alpha / 4)[1]["total"])
    assert first["total"] != pytest.approx(trained(1)[1]["total"], rel=1e-6)
    del whole


@pytest.mark.parametrize("name", sorted(losses.ADVERSARY_LOSSES))
def test_the_mask_minimises_the_named_loss_of_the_adversary(name):
    one = head(adversary_loss=name, alpha=3.0)
    x, y = batch()
    total = one.trainer(generator(2)).step(x, y)
    noise = mask.gumbel_noise((32, WIDTH), generator(2))
    start = head()
    znc = mask.split(x, mask.gumbel_sigmoid(start.mask_network(x), SETTINGS.tau, noise))[1]
    rest = total["classification"] + SETTINGS.lambda1 * total["sparsity"]
    rest += SETTINGS.lambda2 * total["hsic"] + SETTINGS.beta * total["invariance"]
    # by the adversary that has moved already
    expected = losses.ADVERSARY_LOSSES[name](one.adversary(znc)[:, 0], y).item()
    assert (rest - total["total"]) / 3.0 == pytest.approx(expected, rel=1e-3)
    # what is told is always the cross-entropy of the adversary
    assert total["adversarial"] == pytest.approx(0.69, abs=0.2)


def test_networks_have_the_parts_that_their_options_name():
    x, _ = batch()
    assert head(mask_bias=2.0).mask(x).mean() > head().mask(x).mean() + 0.2
    assert [layer.out_features for layer in head(mask_depth=2, mask_width=5).mask_network[::2]] == [
        5,
        5,
        WIDTH,
    ]
    assert len(head(mask_depth=0).mask_network) == 1
    assert [layer.out_features for layer in head(adversary_depth=0).adversary] == [1]
    assert [layer.out_features for layer in head(adversary_depth=2).adversary[::2]] == [7, 7, 1]
    assert isinstance(head(mask_norm=True).mask_network[0], torch.nn.LayerNorm)
    scaled, plain = head(mask_norm=True), head()
    torch.testing.assert_close(scaled.mask(10 * x), scaled.mask(x), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain.mask(10 * x), plain.mask(x), atol=1e-2)


def test_layers_of_a_network_alternate_with_relu_and_the_last_bias_is_given():
    network = mlp([4, 3, 2], generator(0), last_bias=1.5)
    assert [type(layer).__name__ for layer in network] == ["Linear", "ReLU", "Linear"]
    assert network[2].bias.tolist() == [1.5, 1.5]
    assert network[0].bias.tolist() == [0.0, 0.0, 0.0]


def test_a_head_that_was_stored_before_the_options_is_built_as_it_was():
    old = {
        "lambda1": 1e-4, "lambda2": 10.0, "alpha": 0.1, "beta": 1.0, "tau": 0.5, "p": 0.2, "learning_rate": 1e-4,
        "grad_clip": 1.0, "mask_width": None, "adversary_width": 7, "evaluation_mask": "expected",
        "evaluation_quantiles": 32,
    }  # fmt: skip
    built = build_head("causal", WIDTH, {**old, "head": "causal", "width": WIDTH})
    names = {
        f"{part}.{layer}.{kind}"
        for part in ("mask_network", "adversary")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    }
    assert built.state_dict().keys() == names | {"classifier.weight", "classifier.bias"}
    assert built.state_dict()["adversary.0.weight"].shape == (7, WIDTH)


OPTIONS = [
    *({"update": name} for name in UPDATES),
    *({"mask_scope": name} for name in MASK_SCOPES),
    *({"sparsity": name} for name in losses.SPARSITIES),
    *({"hsic": name, "lambda2": 1.0} for name in losses.HSIC_ESTIMATORS),
    *({"divergence": name} for name in losses.DIVERGENCES),
    *({"adversary_loss": name} for name in losses.ADVERSARY_LOSSES),
    *({"noise": name} for name in mask.NOISES),
    *({"rescale": True}, {"mask_norm": True}, {"tau_end": 0.1}),
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_learns(changes):
    x, y = batch(128)
    one = head(**changes)
    trainer = one.trainer(generator(2))
    first = trainer.step(x, y)["classification"]
    for _ in range(60):
        last = trainer.step(x, y)["classification"]
    assert last < first - 0.1


def test_settings_are_plain_values():
    assert isinstance(replace(SETTINGS, noise="logistic"), CausalSettings)
    assert head(noise="logistic").config["noise"] == "logistic"
