import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from causal_tune.heads import vib
from causal_tune.heads.mlp import dropped
from causal_tune.heads.vib import VibHead, VibSettings, information

WIDTH = 12


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(width: int = WIDTH, **changes: float) -> VibHead:
    values = {"vib_beta": 1e-3, "dropout": 0.5, "bottleneck": 16, "learning_rate": 1e-3, **changes}
    return VibHead(width, VibSettings(**values), generator(0))


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = (torch.arange(n) % 2).float()
    return torch.randn(n, WIDTH, generator=generator(seed)) + labels[:, None], labels


def test_the_layers_are_those_of_vib_net():
    shapes = {name: tuple(value.shape) for name, value in build(768, bottleneck=256).state_dict().items()}
    weights = [shape for name, shape in shapes.items() if name.endswith("weight")]
    assert weights == [(1024, 768), (1024, 1024), (512, 1024), (1, 256)]


def test_the_information_is_the_divergence_from_a_standard_normal_in_nats():
    mu = torch.randn(5, 7, generator=generator(0))
    std = torch.rand(5, 7, generator=generator(1)) + 0.01
    expected = kl_divergence(Normal(mu, std), Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(information(mu, std), expected)
    assert information(torch.zeros(2, 3), torch.ones(2, 3)) == 0


def test_the_code_is_the_two_halves_of_the_encoder():
    head = build()
    features, _ = draw(9, 0)
    encoded = head.encoder(features)
    mu, std = head.code(features)
    assert torch.equal(mu, encoded[:, :16])
    torch.testing.assert_close(std, (encoded[:, 16:] - 5).exp().log1p())  # softplus, written out


def test_scores_are_those_of_the_mean_of_the_code_and_draw_nothing():
    head = build()
    features, _ = draw(9, 0)
    before = torch.get_rng_state()
    scores = head.logits(features)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(scores, head.classifier(head.code(features)[0])[:, 0])


def test_a_step_is_cross_entropy_plus_information_with_all_noise_from_the_generator():
    features, labels = draw(20, 0)
    head = build(vib_beta=0.1)
    noise = generator(5)
    with torch.no_grad():
        kept = dropped(features, 0.5, noise)
        mu, std = head.code(kept)
        code = mu + std * torch.randn(mu.shape, generator=noise)
        scores = head.classifier(code)[:, 0]
        classification = functional.binary_cross_entropy_with_logits(scores, labels).item()
        nats = information(mu, std).item()
    used = generator(5)
    terms = head.trainer(used).step(features, labels)
    assert terms == pytest.approx(
        {"total": classification + 0.1 * nats, "classification": classification, "information": nats}
    )
    assert torch.equal(used.get_state(), noise.get_state())


def test_training_draws_another_code_in_each_step():
    """At a vanishing step size the head stays as it is, and only the noise moves the loss."""
    features, labels = draw(20, 0)
    head = build(dropout=0.0, learning_rate=1e-30)
    with torch.no_grad():
        head.encoder[-1].bias[16:] = 10.0  # a wide code: std about 5
    trainer = head.trainer(generator(0))
    losses = [trainer.step(features, labels) for _ in range(2)]
    assert losses[0]["classification"] != losses[1]["classification"]
    assert losses[0]["information"] == losses[1]["information"]


def test_a_larger_vib_beta_lets_less_information_through(monkeypatch):
    monkeypatch.setattr(vib, "_HIDDEN", 32)
    features, labels = draw(64, 0)
    nats = []
    for vib_beta in (0.0, 1e-3, 1e-1):
        head = build(vib_beta=vib_beta)
        trainer = head.trainer(generator(1))
        for _ in range(60):
            trainer.step(features, labels)
        nats.append(information(*head.code(features)).item())
    assert nats[0] > 1.1 * nats[1] > 1.1**2 * nats[2]
