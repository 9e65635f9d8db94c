"""Features of which it is known what each dimension says about the label.

The generative model, for an image of label y in {0, 1} (both equally frequent) in a domain:

    E_j = shift_j(domain) (2 y - 1) + e_j,    e_j ~ N(0, 1) i.i.d.

- informative dimensions: the shift is `INFORMATIVE_GAP` in every domain;
- spurious dimensions: the shift is `SPURIOUS_GAP` where training and validation images come from, minus that in
  the domain "reversed" and 0 in "vanished";
- all others are noise: the shift is 0.

Given the label the dimensions are independent, so that what a set of dimensions tells about the label is known:
the best classifier is linear, and a share of the dimensions never carries what the others carry but the label.
"""

import torch

from causal_tune.features import FeatureSet, StudyData

NUM_INFORMATIVE = 6
NUM_SPURIOUS = 6
NUM_NOISE = 36
WIDTH = NUM_INFORMATIVE + NUM_SPURIOUS + NUM_NOISE
INFORMATIVE = slice(0, NUM_INFORMATIVE)
SPURIOUS = slice(NUM_INFORMATIVE, NUM_INFORMATIVE + NUM_SPURIOUS)
NOISE = slice(NUM_INFORMATIVE + NUM_SPURIOUS, WIDTH)
INFORMATIVE_GAP = 0.6
SPURIOUS_GAP = 0.6
SPURIOUS_SIGN = {"training": 1.0, "reversed": -1.0, "vanished": 0.0}
"""What the spurious shift is multiplied with, by domain."""


def draw(seed: int, num_images: int, domain: str = "training") -> FeatureSet:
    """Images of a domain; half of them have label 1."""
    labels = (torch.arange(num_images) % 2).float()
    features = torch.randn(num_images, WIDTH, generator=torch.Generator().manual_seed(seed))
    signs = 2 * labels[:, None] - 1
    features[:, INFORMATIVE] += INFORMATIVE_GAP * signs
    features[:, SPURIOUS] += SPURIOUS_SIGN[domain] * SPURIOUS_GAP * signs
    return FeatureSet(features, labels)


def study_data(seed: int, *, num_train: int = 1024, num_judged: int = 512) -> StudyData:
    """Training, validation and three domains to judge on; each seed is another sample of all of them."""
    seeds = [1000 * seed + part for part in range(5)]
    return StudyData(
        draw(seeds[0], num_train),
        draw(seeds[1], num_judged),
        {name: draw(part, num_judged, name) for name, part in zip(SPURIOUS_SIGN, seeds[2:], strict=True)},
    )
