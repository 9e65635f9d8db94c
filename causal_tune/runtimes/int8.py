"""A graph with products in 8-bit integers: quantised once after training, by NNCF, and kept.

    <cache>/runtimes/int8-<key>/        model.xml  model.bin  sha256.json

Calibrated on crops of the demo's training photographs, so always on the same images and never on those of a
user; scales of activations are moved into the weights beforehand (SmoothQuant, arXiv 2211.10438).
Weights keep seven of their eight bits: processors without VNNI add pairs of products in 16 bits, which
overflow otherwise.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openvino as ov
from filelock import FileLock

from causal_tune.atomic import atomic_directory, write_json
from causal_tune.demo.photographs import cut, draw_crops
from causal_tune.errors import InvalidConfig
from causal_tune.runtimes.openvino_graph import MOST_IMAGES
from causal_tune.runtimes.protocol import EncoderDescription

__all__ = ["NUM_CALIBRATION_IMAGES", "quantised"]

NUM_CALIBRATION_IMAGES = 48

_FLOAT_NODES = (
    r".*attn\.(scores|values)",
    r".*resblocks\.{first}\.attn\..*",
    r".*resblocks\.{last}\..*",
    "conv1",
    "proj",
)
"""Products that stay in float: those of patches and projection, of the last block, of the first block's attention, and
the scores of attention. With them in int8 too the mean cosine of a ViT-B/16 fell from 0.990 to 0.956; the first
block's MLP costs 0.001 of it and gives a tenth of the speed (docs/log.md)."""

_SMOOTHING = 0.6
"""How much of the activations' scale goes into the weights: alpha of SmoothQuant, 0 to 1."""

_SEED = 1


def quantised(
    graph: ov.Model, description: EncoderDescription, *, num_blocks: int, cache_dir: Path
) -> ov.Model:
    """`graph` with its products in int8: read from the cache, or made now (minutes) and kept there.

    Two processes that need it at once make it once: the second waits. A damaged copy is made anew, with a
    warning. `InvalidConfig` where NNCF is needed and not installed, or the cache cannot be written.
    """
    folder = cache_dir / "runtimes" / f"int8-{_key(description)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                made = _quantise(graph, num_blocks)
                with atomic_directory(folder) as temporary:
                    ov.save_model(made, temporary / "model.xml", compress_to_fp16=False)
                    write_json(temporary / "sha256.json", _hashes(temporary))
            return ov.Core().read_model(folder / "model.xml")
    except OSError as error:
        raise InvalidConfig(
            f"The int8 encoder cannot be kept in {folder.parent}: {error}. Set XDG_CACHE_HOME to a folder that "
            "can be written, or take --dtype auto."
        ) from error


def _key(description: EncoderDescription) -> str:
    """All that the quantised graph is a function of."""
    parts = [
        description.fingerprint,
        version("openvino"),
        _FLOAT_NODES,
        NUM_CALIBRATION_IMAGES,
        _SMOOTHING,
        _SEED,
        MOST_IMAGES,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.xml", "model.bin")
    }


def _is_whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        expected = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        if _hashes(folder) == expected:
            return True
        reason = "its files are not those that were written"
    except (OSError, ValueError) as error:
        reason = str(error)
    warnings.warn(f"The int8 encoder in {folder} is damaged ({reason}); making it anew.", stacklevel=4)
    return False


def _quantise(graph: ov.Model, num_blocks: int) -> ov.Model:
    if find_spec("nncf") is None:
        raise InvalidConfig(
            "int8 encoders are made with NNCF, which is not installed. Install it with "
            "`pip install 'causal-tune[int8]'`, or take --dtype auto."
        )
    os.environ.setdefault("NNCF_CI", "1")  # or it reports its use to its makers
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )

    crops = [cut(crop) for crop in draw_crops("train", NUM_CALIBRATION_IMAGES, np.random.default_rng(_SEED))]
    patterns = [pattern.format(first=0, last=num_blocks - 1) for pattern in _FLOAT_NODES]
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars; stdout is for results
        return nncf.quantize(
            graph,
            nncf.Dataset([crop[None] for crop in crops]),
            subset_size=len(crops),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=_SMOOTHING),
            ),
        )
