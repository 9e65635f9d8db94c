"""A detector folder in use: images or features in, scores and verdicts out, with the preprocessing it was made with.

    detectors/<name>/
        model.safetensors  the head's tensors
        detector.json      head, layer, encoder with weights hash, preprocessing, threshold, label map,
                           metrics and provenance
        README.md          the model card

A score is the head's probability that an image is generated. Nothing in the folder is a pickle.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_safetensors

from causal_tune.clip import ClipEncoder, EncoderDescription, describe_encoder, load_encoder
from causal_tune.errors import CausalTuneError, DetectorError, InvalidConfig, UnknownName, UnreadableImage
from causal_tune.fidelity import fidelity_of
from causal_tune.heads import load_head
from causal_tune.images.decode import read_crop
from causal_tune.images.isolated import isolated
from causal_tune.images.preprocessing import Preprocessing

__all__ = ["DETECTOR_FORMAT", "Detector", "Scored", "load_detector"]

DETECTOR_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One image: a score and a verdict, or the reason why there is none."""

    path: str
    """Bytes of a name that are not UTF-8 are shown as `\\xff`: tables of scores hold text."""
    score: float | None
    """Probability that the image is generated, in [0, 1]."""
    verdict: str | None
    """`generated` where the score reaches the detector's threshold, else `real`."""
    reason: str | None


class Detector:
    """A head with everything it needs to score images. Made by `load_detector`."""

    def __init__(self, description: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        self.description = description
        self.layer: str = description["layer"]
        self.threshold: float = description["threshold"]["value"]
        self._head = load_head(description["head"], state)
        self._encoder: ClipEncoder | None = None
        self.notes: list[str] = []
        """What a user should know of this machine's encoder against that of the training; filled by `encoder`."""

    @property
    def name(self) -> str:
        """The detector's name."""
        return str(self.description["name"])

    def score_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [n] of features [n, d] of this detector's layer and encoder."""
        return torch.sigmoid(torch.from_numpy(self.logits(features))).numpy()

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log odds [n] of features [n, d]: scores before the sigmoid."""
        with torch.inference_mode():
            return self._head.logits(torch.from_numpy(np.ascontiguousarray(features))).numpy()

    def verdict(self, score: float) -> str:
        """`generated` or `real`, by the detector's threshold."""
        return str(self.description["labels"]["1" if score >= self.threshold else "0"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What the training images went through; `DetectorError` where this release cannot do it."""
        try:
            return Preprocessing.parse(self.description["preprocessing"])
        except InvalidConfig as error:
            version = self.description["provenance"]["versions"]["causal-tune"]
            raise DetectorError(
                f"The detector {self.name} was exported by causal-tune {version} and cannot be used here: {error}"
            ) from error

    def encoder(self, runtime: str = "auto") -> ClipEncoder:
        """The encoder, loaded once, by the runtime of the training or the one that is named.

        `auto` takes another where this machine lacks the training's; scores then differ in the last digits,
        and `notes` says so. `DetectorError` where the weights are not those of the training.
        """
        if self._encoder is None:
            wanted = self.description["encoder"]
            options = self._options(wanted, runtime)
            found = describe_encoder(wanted["name"], **options)
            if found.weights_sha256 != wanted["weights_sha256"]:
                raise DetectorError(
                    f"The detector {self.name} was trained on features of {wanted['name']} with weights "
                    f"{wanted['weights_sha256'][:12]}; the weights found here are {found.weights_sha256[:12]}. "
                    f"Bring the right ones with `causal-tune fetch {wanted['name']}`."
                )
            self._encoder = load_encoder(wanted["name"], **options)
            self.notes += _notes(found, wanted)
        return self._encoder

    def _options(self, wanted: dict[str, Any], runtime: str) -> dict[str, Any]:
        """Of `load_encoder`: those of the training where this machine can, else its own."""
        options: dict[str, Any] = {"layers": (self.layer,), "runtime": runtime}
        if wanted["dtype"] == "int8":  # it rounds so much that a head of int8 features needs int8 features
            options |= {"dtype": "int8", "device": "cpu"}
        if runtime != "auto":
            return options
        try:
            # descriptions without a runtime are older than the second one
            trained_by = {**options, "runtime": wanted.get("runtime", "torch")}
            describe_encoder(wanted["name"], **trained_by)
        except (InvalidConfig, UnknownName):
            return options
        return trained_by

    def score_images(self, paths: Iterable[Path], *, batch_size: int = 64) -> Iterator[Scored]:
        """One `Scored` a path, in order; reading and decoding run ahead of the encoder."""
        preprocessing, encoder = self.preprocessing, self.encoder()
        remaining = iter(paths)
        with ThreadPoolExecutor(max_workers=1) as reader:  # it only waits: a child process decodes

            def read_next() -> tuple[list[Path], Future[list[NDArray[np.uint8] | UnreadableImage]]]:
                chosen = list(islice(remaining, batch_size))
                calls = [(os.fspath(path), preprocessing) for path in chosen]
                return chosen, reader.submit(lambda: list(isolated(read_crop, calls)))

            chosen, ahead = read_next()
            while chosen:
                batch = list(zip(chosen, ahead.result(), strict=True))
                chosen, ahead = read_next()
                crops = [crop for _, crop in batch if not isinstance(crop, UnreadableImage)]
                values = self.score_features(encoder.encode(np.stack(crops))[self.layer]) if crops else None
                scores: Iterator[float] = iter(() if values is None else values.tolist())
                for path, crop in batch:
                    if isinstance(crop, UnreadableImage):
                        yield Scored(path=_as_text(path), score=None, verdict=None, reason=str(crop))
                    else:
                        score = next(scores)
                        yield Scored(
                            path=_as_text(path), score=score, verdict=self.verdict(score), reason=None
                        )


def _as_text(path: Path) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def _notes(found: EncoderDescription, wanted: dict[str, Any]) -> list[str]:
    notes = []
    trained = f"{wanted['dtype']} by {wanted.get('runtime', 'torch')}"
    here = f"{found.dtype} by {found.runtime}"
    if here != trained:
        notes.append(
            f"Features are computed in {here} here and were in {trained} for the training: scores can "
            "differ from the training's in the last digits."
        )
    if found.dtype == "int8":
        notes.append(f"{here}: {fidelity_of(found, device='cpu')}.")
    return notes


def load_detector(path: Path | str) -> Detector:
    """The detector in the folder `path`.

    `DetectorError` for a folder that is no detector, one of another format, or one whose
    model.safetensors is not the file that detector.json names.
    """
    folder = Path(path)
    try:
        description = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
        data = (folder / "model.safetensors").read_bytes()
    except (OSError, json.JSONDecodeError) as error:
        raise DetectorError(
            f"{folder} is not a detector: it needs a readable detector.json and model.safetensors ({error}). "
            "Make one with `causal-tune export STUDY -o DIR`."
        ) from error
    if description.get("format") != DETECTOR_FORMAT:
        raise DetectorError(
            f"The detector {folder} has format {description.get('format')}; this release reads format "
            f"{DETECTOR_FORMAT}. Install the release that wrote it, or export it again."
        )
    found = hashlib.sha256(data).hexdigest()
    if found != description["model_sha256"]:
        raise DetectorError(
            f"{folder / 'model.safetensors'} has sha256 {found[:12]}, detector.json names "
            f"{description['model_sha256'][:12]}: the file was changed or damaged. Copy the folder again."
        )
    try:
        return Detector(description, load_safetensors(data))
    except CausalTuneError:
        raise
    except (RuntimeError, KeyError) as error:
        raise DetectorError(f"The detector {folder} cannot be loaded: {error}. Export it again.") from error


def image_paths(inputs: Sequence[Path], suffixes: frozenset[str]) -> tuple[list[Path], int]:
    """The images that `inputs` name, and how many other files the folders among them hold.

    A file is taken as it is named, whatever its suffix; a folder gives its files with an image's
    suffix, at any depth, sorted.
    """
    chosen: list[Path] = []
    num_skipped = 0
    for entry in inputs:
        if entry.is_dir():
            files = sorted(path for path in entry.rglob("*") if not path.is_dir())
            images = [path for path in files if path.suffix.lower() in suffixes]
            num_skipped += len(files) - len(images)
            chosen += images
        else:
            chosen.append(entry)
    return chosen, num_skipped
