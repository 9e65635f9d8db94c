import pytest
import torch

from causal_tune.errors import TrialFailed
from causal_tune.heads import nearest
from causal_tune.heads.nearest import NearestHead, NearestSettings

WIDTH = 6


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % 3 == 0).float()  # two real images for each generated one
    return torch.randn(n, WIDTH, generator=generator) + 0.3 * labels[:, None], labels


def fitted(features: torch.Tensor, labels: torch.Tensor, neighbours: int) -> NearestHead:
    head = NearestHead(features.shape[1], NearestSettings(neighbours=neighbours), torch.Generator())
    head.fit(features, labels, torch.Generator())
    return head


@pytest.mark.parametrize("neighbours", [1, 3, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_the_sign_is_the_majority_vote_of_the_nearest_images_of_both_banks(neighbours, seed):
    features, labels = draw(45, seed)
    unseen, _ = draw(50, 100 + seed)
    votes = []
    for one in unseen.double():
        distances = [1 - torch.cosine_similarity(one, other, dim=0).item() for other in features.double()]
        voters = sorted(range(len(distances)), key=distances.__getitem__)[:neighbours]
        votes.append(sum(labels[voter].item() for voter in voters) > neighbours / 2)
    assert (fitted(features, labels, neighbours).logits(unseen) > 0).tolist() == votes
    assert 0 < sum(votes) < len(votes)


def test_one_neighbour_is_the_difference_of_the_smallest_distances():
    head = fitted(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]]), torch.tensor([0.0, 0.0, 1.0]), 1)
    # similarities of (0, 1): 0 and 0.8 to the real images, 1 to the generated one
    torch.testing.assert_close(head.logits(torch.tensor([[0.0, 5.0]])), torch.tensor([0.2]))


def test_three_neighbours_compare_the_second_smallest_distances():
    real, generated = [[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], [[0.0, 1.0], [0.8, 0.6], [0.0, -1.0]]
    head = fitted(torch.tensor(real + generated), torch.tensor([0.0] * 3 + [1.0] * 3), 3)
    # similarities of (1, 0): 1, 0.6, -1 to the real images, 0, 0.8, 0 to the generated ones
    torch.testing.assert_close(head.logits(torch.tensor([[1.0, 0.0]])), torch.tensor([-0.6]))


def test_lengths_do_not_matter():
    features, labels = draw(30, 0)
    unseen, _ = draw(20, 1)
    scales = torch.linspace(0.1, 10, 30)[:, None]
    torch.testing.assert_close(
        fitted(features * scales, labels, 3).logits(unseen * 7), fitted(features, labels, 3).logits(unseen)
    )


@pytest.mark.parametrize("distances", [1, 100])
def test_scoring_a_few_images_at_a_time_gives_the_same_scores(monkeypatch, distances):
    features, labels = draw(30, 0)
    unseen, _ = draw(37, 1)
    head = fitted(features, labels, 3)
    at_once = head.logits(unseen)
    monkeypatch.setattr(nearest, "_DISTANCES", distances)
    torch.testing.assert_close(head.logits(unseen), at_once)


def test_the_banks_are_the_training_images_of_each_class_at_length_1():
    features, labels = draw(30, 0)
    state = fitted(features, labels, 1).state_dict()
    assert {name: tuple(bank.shape) for name, bank in state.items()} == {
        "real": (20, WIDTH),
        "generated": (10, WIDTH),
    }
    for bank in state.values():
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(len(bank)))


def test_more_neighbours_than_a_bank_holds_fail_the_trial_with_the_counts():
    features, labels = draw(12, 0)
    fitted(features, labels, 3)
    with pytest.raises(TrialFailed, match=r"neighbours is 5, .* 8 real and 4 generated images; .*Lower"):
        fitted(features, labels, 5)


@pytest.mark.parametrize("stored", [torch.tensor(1.0), torch.ones(WIDTH), torch.ones(3, WIDTH + 1)])
def test_a_stored_bank_of_another_shape_is_refused(stored):
    head = NearestHead(WIDTH, NearestSettings(neighbours=1), torch.Generator())
    with pytest.raises(RuntimeError, match="size mismatch for real"):
        head.load_state_dict({"real": stored, "generated": torch.ones(3, WIDTH)})


def test_balanced_banks_of_one_distribution_are_as_often_the_nearer_one():
    """However many images they hold: 300 real and 20 generated ones, drawn alike."""

    def share_generated(balance: str) -> float:
        drawn = torch.Generator().manual_seed(0)
        verdicts = []
        for _ in range(40):
            head = NearestHead(8, NearestSettings(neighbours=1, class_balance=balance), drawn)
            head.fit(torch.randn(320, 8, generator=drawn), (torch.arange(320) >= 300).float(), drawn)
            verdicts.append(head.logits(torch.randn(50, 8, generator=drawn)) > 0)
        return torch.cat(verdicts).float().mean().item()

    assert share_generated("balanced") == pytest.approx(0.5, abs=0.04)
    assert share_generated("none") == pytest.approx(20 / 320, abs=0.04)
