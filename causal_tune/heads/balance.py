"""What a head does where its training set has more images of one class than of the other."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

__all__ = ["CLASS_BALANCES", "ClassWeights", "class_weights"]

ClassWeights: TypeAlias = tuple[float, float]
"""Weight of each real and of each generated image; their mean over the training set is 1."""

CLASS_BALANCES: Mapping[str, str] = MappingProxyType(
    {
        "none": "every image counts the same, so that the rarer class hardly counts",
        "balanced": "either class counts half, whatever its number of images",
    }
)


def class_weights(balance: str, num_real: int, num_generated: int) -> ClassWeights | None:
    """The weights w_c = n / (2 n_c) of a set of n images, n_c of class c; None where all are 1, or a class is missing.

    Minimising the loss weighted so is fitting to a population in which half of the images are generated (King and
    Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001, with tau = 1/2; scikit-learn's
    `class_weight="balanced"`). A score of 1/2 then parts the classes, however rare one was in training.

    >>> class_weights("balanced", 60, 6)
    (0.55, 5.5)
    >>> class_weights("balanced", 60, 60) is class_weights("none", 60, 6) is None
    True
    """
    if balance == "none" or num_real == num_generated or 0 in (num_real, num_generated):
        return None
    n = num_real + num_generated
    return n / (2 * num_real), n / (2 * num_generated)
