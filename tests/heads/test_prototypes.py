import pytest
import torch

from causal_tune.errors import TrialFailed
from causal_tune.heads.prototypes import PrototypesHead, PrototypesSettings

LABELS = torch.tensor([0.0] * 8 + [1.0] * 5)
ONE_HOT = torch.eye(13)
"""Features of 13 images, of which a mean tells the images that it is made of."""


def fitted(features: torch.Tensor, labels: torch.Tensor, shots: int, seed: int = 0) -> PrototypesHead:
    head = PrototypesHead(features.shape[1], PrototypesSettings(shots=shots), torch.Generator())
    head.fit(features, labels, torch.Generator().manual_seed(seed))
    return head


@pytest.mark.parametrize("shots", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_a_prototype_is_the_mean_of_as_many_different_images_of_its_class(shots, seed):
    head = fitted(ONE_HOT, LABELS, shots, seed)
    for prototype, label in ((head.real, 0.0), (head.generated, 1.0)):
        assert (prototype > 0).sum() == shots
        assert (LABELS[prototype > 0] == label).all()
        torch.testing.assert_close(prototype[prototype > 0], torch.full((shots,), 1 / shots))


def test_the_seed_chooses_the_images():
    chosen = {tuple((fitted(ONE_HOT, LABELS, 2, seed).real > 0).tolist()) for seed in range(200)}
    assert len(chosen) == 28  # every pair of 8; all 200 draws miss a given one with probability 0.0007


def test_the_score_is_the_difference_of_the_squared_distances():
    features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    head = fitted(features, torch.tensor([0.0, 0.0, 1.0]), 1)
    head.load_state_dict({"real": torch.tensor([1.0, 0.0]), "generated": torch.tensor([0.0, 4.0])})
    # (1, 2): squared distances 4 and 5; (0, 4): 17 and 0
    assert head.logits(torch.tensor([[1.0, 2.0], [0.0, 4.0]])).tolist() == [-1.0, 17.0]


def test_every_image_as_a_shot_makes_the_means_of_the_classes_whatever_the_seed():
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(20) % 2).float()
    one, other = (fitted(features, labels, 10, seed) for seed in (0, 1))
    torch.testing.assert_close(one.real, features[::2].mean(dim=0))
    torch.testing.assert_close(one.generated, features[1::2].mean(dim=0))
    torch.testing.assert_close(one.real, other.real)


def test_fewer_images_than_shots_fail_the_trial_with_the_counts():
    with pytest.raises(TrialFailed, match=r"shots is 6, and the training set has 5 generated images\. Lower"):
        fitted(ONE_HOT, LABELS, 6)
    with pytest.raises(TrialFailed, match="shots is 9, and the training set has 8 real images"):
        fitted(ONE_HOT, LABELS, 9)
