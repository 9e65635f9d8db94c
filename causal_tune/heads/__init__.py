"""The heads that can be trained on features, by name.

A new head is one file with a final class that is a `Head`, and one line in `HEADS`; the contract tests run
over this table.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from causal_tune.causal.head import CausalHead
from causal_tune.errors import InvalidConfig
from causal_tune.heads.linear import LinearHead
from causal_tune.heads.mlp import MlpHead
from causal_tune.heads.nearest import NearestHead
from causal_tune.heads.normaliser import NormalisedHead, Normaliser
from causal_tune.heads.protocol import FittedHead, Head, Scorer, SteppedHead, Trainer
from causal_tune.heads.prototypes import PrototypesHead
from causal_tune.heads.svm import SvmHead
from causal_tune.heads.vib import VibHead
from causal_tune.registry import look_up

__all__ = [
    "HEADS",
    "FittedHead",
    "Head",
    "Scorer",
    "SteppedHead",
    "Trainer",
    "build_head",
    "load_head",
    "reads",
]

HEADS: Mapping[str, type[Head]] = MappingProxyType(
    {
        "causal": CausalHead,  # the paper
        "linear": LinearHead,  # UnivFD, the baseline that every study is compared with
        "nearest": NearestHead,  # UnivFD's nearest neighbours
        "vib": VibHead,  # VIB-Net
        "svm": SvmHead,  # Cozzolino et al.
        "prototypes": PrototypesHead,  # few-shot class means
        "mlp": MlpHead,
    }
)


def reads(head: str, name: str) -> bool:
    """Whether a trial of `head` reads the setting `name`: all but those that only other heads have.

    >>> reads("linear", "lambda1"), reads("causal", "lambda1"), reads("linear", "batch_size")
    (False, True, True)
    """
    having = [other for other, one in HEADS.items() if name in {field.name for field in fields(one.Settings)}]
    return not having or head in having


def build_head(
    name: str, width: int, config: Mapping[str, Any], generator: torch.Generator | None = None
) -> Head:
    """A fresh head for features of `width` dimensions.

    `config` holds the fields of the head's `Settings` (and may hold `head`, `width` and `normalisation` too). Without a
    `generator` the start is that of seed 0. Unknown or missing fields raise `InvalidConfig`: a head that
    was made with an option which this version does not know must not be scored without it.

    >>> build_head("linear", 512, {"learning_rate": 1e-4}).num_parameters
    513
    """
    head_type = look_up("head", HEADS, name)
    known = {field.name: field for field in fields(head_type.Settings)}
    given = {key: value for key, value in config.items() if key not in ("head", "width", "normalisation")}
    unknown = sorted(given.keys() - known.keys())
    missing = sorted(key for key, field in known.items() if key not in given and field.default is MISSING)
    if unknown or missing:
        what = [f"unknown: {', '.join(unknown)}"] * bool(unknown) + [f"missing: {', '.join(missing)}"] * bool(
            missing
        )
        raise InvalidConfig(
            f"The settings of a {name!r} head are not those of this version ({'; '.join(what)}). It has: "
            f"{', '.join(known)}. Use the version of causal-tune that made them, or train again."
        )
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    return head_type(width, head_type.Settings(**given), generator)


def load_head(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Scorer:
    """The trained head of a `TrialResult`: of its `head_config` and its `head_state`.

    It takes the encoder's features and normalises them itself, if it was trained on normalised ones.
    """
    known = {
        name: value for name, value in config.items() if name != "compiled"
    }  # an option that there was once
    head = build_head(config["head"], config["width"], known)
    prefix = "normaliser."
    head.load_state_dict({name: value for name, value in state.items() if not name.startswith(prefix)})
    normaliser = Normaliser(config.get("normalisation", "none"), config["width"])
    if normaliser.kind == "none":
        return head
    normaliser.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    return NormalisedHead(normaliser, head)
