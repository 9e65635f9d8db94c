"""The fields of a detector.json, each checked when a detector is loaded: type, range, and names that there are."""

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from causal_tune.encoders import ENCODERS, is_weights_path
from causal_tune.errors import CausalTuneError, DetectorError
from causal_tune.guard import Guard
from causal_tune.heads import HEADS
from causal_tune.registry import look_up
from causal_tune.runtimes.protocol import layer_widths
from causal_tune.towers import tower_of
from causal_tune.trial import TrialConfig
from causal_tune.wording import short_repr

__all__ = ["DETECTOR_FORMAT", "read_description"]

DETECTOR_FORMAT = 2

_Text = Annotated[str, Field(min_length=1)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Rate = Annotated[float, Field(ge=0, le=1)]
_Colour = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    """JSON values of just these types, finite; fields that only people read are let through."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Cut(_Part):
    logit: float
    score: _Rate
    probability: _Rate


class _Band(_Part):
    low: _Cut
    high: _Cut


class _Threshold(_Cut):
    provenance: str
    wished_fpr: _Rate | None


class _OldThreshold(_Part):
    value: Annotated[float, Field(gt=0, lt=1)]
    provenance: str


class _Calibration(_Part):
    slope: float
    offset: float


class _Encoder(_Part):
    name: _Text
    architecture: _Text
    weights_sha256: _Sha256
    mean: _Colour
    std: _Colour
    dtype: Literal["float32", "bfloat16", "float16", "int8"]
    layers: Annotated[list[_Text], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1)]
    runtime: _Text = "torch"
    pixels: Literal["normalised", "whole"] = "normalised"


class _Head(_Part):
    head: _Text
    width: Annotated[int, Field(ge=1)]
    normalisation: str = "none"
    evaluation_quantiles: Annotated[int, Field(ge=1)] = 1  # of a causal head


class _Labels(_Part):
    real: Annotated[str, Field(min_length=1, alias="0")]
    generated: Annotated[str, Field(min_length=1, alias="1")]


class _Metrics(_Part):
    validation: dict[str, Any]
    generators: dict[str, dict[str, Any]]
    perturbed: dict[str, dict[str, Any]] = {}


class _Provenance(_Part):
    study: str
    trial: str
    train_generators: list[str]
    val_generators: list[str]
    test_generators: list[str]
    versions: dict[str, str]


class _Common(_Part):
    name: _Text
    head: _Head
    layer: _Text
    encoder: _Encoder
    preprocessing: _Text
    labels: _Labels
    calibration: _Calibration | None
    metrics: _Metrics
    model_sha256: _Sha256
    provenance: _Provenance
    guard: dict[str, Any] = {}


class _Format1(_Common):
    threshold: _OldThreshold


class _Format2(_Common):
    threshold: _Threshold
    unsure: _Band


_MOST = {"width": 16_384, "bottleneck": 16_384, "depth": 100}
"""Of the settings that decide how large a head is, by the end of their names."""

_FORMATS: Mapping[Any, type[_Common]] = {1: _Format1, DETECTOR_FORMAT: _Format2}


def read_description(path: Path) -> dict[str, Any]:
    """The content of the detector.json at `path`, of format 1 or 2.

    `DetectorError` names the field that is missing or wrong, or says why it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DetectorError(
            f"{path.parent} is not a detector: it needs a readable detector.json and model.safetensors ({error}). "
            "Make one with `causal-tune export STUDY -o DIR`."
        ) from error
    found_format = found.get("format") if isinstance(found, dict) else None
    if isinstance(found_format, bool) or not isinstance(found_format, int) or found_format not in _FORMATS:
        raise DetectorError(
            f"The detector {path.parent} has format {found_format}; this release reads formats 1 and "
            f"{DETECTOR_FORMAT}. Install the release that wrote it, or export it again."
        )
    description: dict[str, Any] = found
    with _refusals(path):
        _FORMATS[found_format].model_validate_json(json.dumps(description), strict=True)
    with _refusals(path, "head"):
        _check_head(description["head"])
    with _refusals(path, "guard"):
        guard = description.get("guard", {})
        _types(Guard).validate_json(json.dumps(guard), strict=True)
        Guard(**guard)  # refuses a limit that this release does not know
    with _refusals(path, "encoder"):
        _check_encoder(description["encoder"])
    with _refusals(path, "layer"):
        _check_layer(description)
    if found_format == DETECTOR_FORMAT:
        with _refusals(path, "unsure"):
            if description["unsure"]["low"]["logit"] > description["unsure"]["high"]["logit"]:
                raise ValueError("low.logit is above high.logit")
    return description


@functools.cache
def _types(settings: type) -> TypeAdapter[Any]:
    return TypeAdapter(settings)


def _check_head(config: Mapping[str, Any]) -> None:
    settings = look_up("head", HEADS, config["head"]).Settings
    _types(settings).validate_json(json.dumps(dict(config)), strict=True)
    for name, value in config.items():  # built as they are before the file's tensors are found not to fit
        most = next((most for ending, most in _MOST.items() if name.endswith(ending)), None)
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(f"{name} is {value:,}; {most:,} is the most")
    known = TrialConfig.__dataclass_fields__
    TrialConfig.from_dict({key: value for key, value in config.items() if key in known})


def _check_encoder(encoder: Mapping[str, Any]) -> None:
    name = encoder["name"]
    if not (name in ENCODERS or is_weights_path(name) or ":" in name):
        raise ValueError(f"no encoder is called {name!r}")
    layer_widths(tower_of(encoder["architecture"]), encoder["layers"])


def _check_layer(description: Mapping[str, Any]) -> None:
    layer, encoder = description["layer"], description["encoder"]
    if layer not in encoder["layers"]:
        raise ValueError(f"{layer!r} is none of the encoder's layers {', '.join(encoder['layers'])}")
    width = layer_widths(tower_of(encoder["architecture"]), [layer])[layer]
    if width != description["head"]["width"]:
        raise ValueError(
            f"{layer!r} has {width} dimensions, and the head is for {description['head']['width']}"
        )


@contextmanager
def _refusals(path: Path, part: str = "") -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        field = ".".join([*([part] if part else []), *(str(step) for step in one["loc"])])
        if one["type"] == "missing":
            what = f"it has no field `{field}`"
        else:
            what = (
                f"its field `{field}` is {short_repr(one['input'])}; {one['msg'][0].lower()}{one['msg'][1:]}"
            )
        raise _refused(path, what) from error
    except (CausalTuneError, ValueError, TypeError) as error:
        raise _refused(path, f"its field `{part}` cannot be used: {str(error).rstrip('.')}") from error


def _refused(path: Path, what: str) -> DetectorError:
    return DetectorError(
        f"{path} is damaged or was edited: {what}. Copy the folder again, or export it again with "
        "`causal-tune export STUDY`."
    )
