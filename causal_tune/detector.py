"""A detector folder in use: images or features in, scores and verdicts out, with the preprocessing it was made with.

    detectors/<name>/
        model.safetensors  the head's tensors
        detector.json      head, layer, encoder with weights hash, preprocessing, calibration, threshold, label map,
                           metrics and provenance
        README.md          the model card
        model.onnx         the head for other programs; images.onnx on request (`onnx_graphs`)

    detector = load_detector("detectors/real")
    detector.score_image("photo.jpg")

A score is the head's own: the sigmoid of its logit. A probability is what calibration makes of it, and a verdict
says `unsure` where validation images of both classes, or of neither, are found. Nothing in the folder is a pickle,
and nothing here needs Ray.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from causal_tune.calibration import IDENTITY, Platt
from causal_tune.clip import ClipEncoder, EncoderDescription, default_device, describe_encoder, load_encoder
from causal_tune.detector_format import DETECTOR_FORMAT, read_description
from causal_tune.errors import CausalTuneError, DetectorError, InvalidConfig, UnknownName, UnreadableImage
from causal_tune.fidelity import fidelity_of
from causal_tune.guard import Guard
from causal_tune.heads import Scorer, load_head
from causal_tune.images.decode import SizedCrop, crop_image, decode_sized, read_sized
from causal_tune.images.preprocessing import Preprocessing
from causal_tune.processor import multiplies
from causal_tune.runtimes.protocol import last_block
from causal_tune.towers import tower_of

__all__ = ["DETECTOR_FORMAT", "UNSURE", "Detector", "Score", "load_detector", "model_id"]

UNSURE = "unsure"

Imagelike = str | os.PathLike[str] | bytes | Image.Image
"""A path or URI, the bytes of an image file, or a picture that Pillow has opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What a detector says of one image."""

    score: float
    """Sigmoid of the head's logit, in [0, 1]: the higher, the more the image looks generated to this head."""
    probability: float
    """The calibrated probability that it is generated, at the share of generated images of the validation data."""
    verdict: str
    """`real`, `generated` or `unsure`."""
    note: str | None = None
    """Why the picture cannot be judged; the verdict is `unsure` whatever the score."""


def model_id(description: Mapping[str, Any]) -> str:
    """`NAME@HASH` of a `detector.json` (format 2): the hash covers all that scores and verdicts depend on.

    That is the head's tensors and settings, the encoder, the preprocessing, the calibration and the cuts; not the
    name, the measured figures or the provenance. Equal hashes give equal verdicts to equal images.
    """
    calibration = description["calibration"]
    covered = {
        name: description[name]
        for name in ("model_sha256", "head", "layer", "encoder", "preprocessing", "labels")
    }
    covered["calibration"] = calibration and [calibration["slope"], calibration["offset"]]
    # as float32, which logits are: the cut of format 1 is computed, and its last digits are the machine's
    covered["cuts"] = [float(np.float32(description["unsure"][end]["logit"])) for end in ("low", "high")]
    if "guard" in description:
        covered["guard"] = description["guard"]
    content = json.dumps(covered, sort_keys=True)
    return f"{description['name']}@{hashlib.sha256(content.encode()).hexdigest()[:12]}"


class Detector:
    """A head with everything it needs to score images. Made by `load_detector`."""

    def __init__(self, description: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        self.description = description
        self.layer: str = description["layer"]
        self.head: Scorer = load_head(description["head"], state)
        self.guard = Guard(**description["guard"]) if "guard" in description else None
        """Tells pictures that cannot be judged; None in detectors that an older release exported."""
        calibration = description["calibration"]
        self.calibration = (
            Platt(slope=calibration["slope"], offset=calibration["offset"]) if calibration else IDENTITY
        )
        self._real_below: float = description["unsure"]["low"]["logit"]
        self._generated_from: float = description["unsure"]["high"]["logit"]
        self._encoder: ClipEncoder | None = None
        self.notes: list[str] = []
        """What a user should know of this machine's encoder against that of the training; `encoder` fills it."""

    @property
    def name(self) -> str:
        """The detector's name."""
        return str(self.description["name"])

    @property
    def id(self) -> str:
        """The name and a hash of all that its verdicts depend on (`model_id`): for logs and audit trails."""
        return model_id(self.description)

    def __repr__(self) -> str:
        head, encoder = self.description["head"]["head"], self.description["encoder"]["name"]
        return f"<Detector {self.id}: head {head} on layer {self.layer} of {encoder}>"

    @property
    def unsure(self) -> tuple[float, float]:
        """The ends of the unsure band, in logits: real below the first, generated from the second on."""
        return self._real_below, self._generated_from

    @property
    def threshold(self) -> float:
        """The score from which on at most the wished share of real images lies (`description["threshold"]`)."""
        return float(self.description["threshold"]["score"])

    def score_image(self, image: Imagelike) -> Score:
        """What the detector says of one image. `UnreadableImage` where it cannot be decoded completely."""
        return self.score_batch([image])[0]

    def score_batch(self, images: Sequence[Imagelike]) -> list[Score]:
        """One `Score` an image, in order; `UnreadableImage` names the first that cannot be decoded.

        Decodes in this process: files of strangers are better given to `causal-tune predict` or `serve`.
        """
        cropped: list[SizedCrop] = []
        for number, image in enumerate(images):
            try:
                cropped.append(self._crop(image))
            except UnreadableImage as error:
                where = f"image {number} of {len(images)}: " if len(images) > 1 else ""
                raise UnreadableImage(f"{where}{error}") from error
        if not cropped:
            return []
        return self.score_crops(np.stack([one.pixels for one in cropped]), [one.size for one in cropped])

    def score_crops(
        self, crops: NDArray[np.uint8], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Score]:
        """One `Score` a crop of uint8 [n, 224, 224, 3], made by this detector's `preprocessing`.

        `sizes` are width and height of the images that they are of; without them small images are not told.
        """
        features = self.encoder().encode(crops)[self.layer]
        return self.scores(self.logits(features), self.guard.notes(crops, sizes) if self.guard else None)

    def scores(self, logits: ArrayLike, notes: Sequence[str | None] | None = None) -> list[Score]:
        """Logits [n] as scores, probabilities and verdicts; `unsure` where there is a note."""
        values = np.asarray(logits, np.float32)
        raw = torch.sigmoid(torch.from_numpy(values)).tolist()
        probabilities = self.calibration.probabilities(values).tolist()
        return [
            Score(
                score=score,
                probability=probability,
                verdict=UNSURE if note else self.verdict(logit),
                note=note,
            )
            for score, probability, logit, note in zip(
                raw, probabilities, values.tolist(), notes or [None] * len(values), strict=True
            )
        ]

    def verdict(self, logit: float) -> str:
        """`real`, `generated` or `unsure`, by the detector's cuts."""
        if logit >= self._generated_from:
            return str(self.description["labels"]["1"])
        return str(self.description["labels"]["0"]) if logit < self._real_below else UNSURE

    def score_features(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores [n] of features [n, d] of this detector's layer and encoder."""
        return torch.sigmoid(torch.from_numpy(self.logits(features))).numpy()

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [n] of features [n, d]: scores before the sigmoid."""
        with torch.inference_mode():
            return self.head.logits(torch.from_numpy(np.ascontiguousarray(features))).numpy()

    def _crop(self, image: Imagelike) -> SizedCrop:
        if isinstance(image, bytes):
            return decode_sized(image, self.preprocessing)
        if isinstance(image, Image.Image):
            return SizedCrop(crop_image(image, self.preprocessing), image.size)
        return read_sized(image, self.preprocessing)

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

    def encoder_description(self, runtime: str = "auto") -> EncoderDescription:
        """What `encoder` with the same arguments computes, without loading it; fills `notes`."""
        wanted = self.description["encoder"]
        found = describe_encoder(wanted["name"], **self._options(wanted, runtime))
        if found.weights_sha256 != wanted["weights_sha256"]:
            raise DetectorError(
                f"The detector {self.name} was trained on features of {wanted['name']} with weights "
                f"{wanted['weights_sha256'][:12]}; the weights found here are {found.weights_sha256[:12]}. "
                f"Bring the right ones with `causal-tune fetch {wanted['name']}`."
            )
        self.notes = _notes(found, wanted)
        return found

    def encoder(self, runtime: str = "auto", num_threads: int | None = None) -> ClipEncoder:
        """The encoder, loaded once, in the dtype of the training and by its runtime or the one that is named.

        Where this machine lacks the training's it takes its own; scores then differ in the last digits, and
        `notes` says so. `DetectorError` where the weights are not those of the training.
        """
        if self._encoder is None:
            self.encoder_description(runtime)
            wanted = self.description["encoder"]
            self._encoder = load_encoder(
                wanted["name"], num_threads=num_threads, **self._options(wanted, runtime)
            )
        return self._encoder

    def _options(self, wanted: dict[str, Any], runtime: str) -> dict[str, Any]:
        """Of `load_encoder`: those of the training where this machine can, else its own."""
        # In bfloat16 a layer's last digits depend on what else the pass hands out: so all that the training's did up
        # to the block of this one, which is the same pass where it is the last.
        tower = tower_of(wanted["architecture"])
        end = last_block(tower, (self.layer,))
        layers = tuple(layer for layer in wanted["layers"] if last_block(tower, (layer,)) <= end)
        options: dict[str, Any] = {"layers": layers, "runtime": runtime}
        if wanted["dtype"] == "int8":  # it rounds so much that a head of int8 features needs int8 features
            options |= {"dtype": "int8", "device": "cpu"}
        elif multiplies(wanted["dtype"], default_device()):
            options |= {"dtype": wanted["dtype"]}
        if runtime != "auto":
            return options
        try:
            # descriptions without a runtime are older than the second one
            trained_by = {**options, "runtime": wanted.get("runtime", "torch")}
            describe_encoder(wanted["name"], **trained_by)
        except (InvalidConfig, UnknownName):
            return options
        return trained_by


def _notes(found: EncoderDescription, wanted: dict[str, Any]) -> list[str]:
    notes = []
    trained = f"{wanted['dtype']} by {wanted.get('runtime', 'torch')}"
    here = f"{found.dtype} by {found.runtime}"
    if found.dtype == wanted["dtype"] != "float32" and "pixels" not in wanted:
        trained += ", of pixels rounded to it,"  # before there were whole ones
    if here != trained:
        by = "by a few hundredths" if "bfloat16" in (found.dtype, wanted["dtype"]) else "in the last digits"
        notes.append(
            f"Features are computed in {here} here and were in {trained} for the training: scores can "
            f"differ from the training's {by}."
        )
    if found.dtype == "int8":
        notes.append(f"{here}: {fidelity_of(found, device='cpu')}.")
    return notes


def _upgraded(description: dict[str, Any]) -> dict[str, Any]:
    """Format 1 as format 2: it had one threshold on scores, and neither calibration nor a band."""
    if description["format"] == DETECTOR_FORMAT:
        return description
    old = description["threshold"]
    score = float(old["value"])
    cut = {"logit": float(np.log(score) - np.log1p(-score)), "score": score, "probability": score}
    threshold = {**cut, "wished_fpr": None, "provenance": old["provenance"]}
    unsure = {"low": cut, "high": cut, "provenance": "none: exported before there was a band"}
    return {**description, "format": DETECTOR_FORMAT, "threshold": threshold, "unsure": unsure}


def load_detector(path: Path | str) -> Detector:
    """The detector in the folder `path`.

    Formats 1 and 2 are read. `DetectorError` for a folder that is no detector, one of another format, one with a
    field that is missing or wrong, or one whose model.safetensors is not the file that detector.json names.
    """
    folder = Path(path)
    if not (folder / "detector.json").exists():
        names = sorted(found.parent.name for found in folder.parent.glob("*/detector.json"))
        there = f" There are: {', '.join(names)}." if names else ""
        raise DetectorError(
            f"There is no detector {folder.name!r} in {folder.parent}: it needs a readable detector.json and "
            f"model.safetensors.{there} Make one with `causal-tune export STUDY -o DIR`."
        )
    description = read_description(folder / "detector.json")
    model = folder / "model.safetensors"
    try:
        data = model.read_bytes()
    except OSError as error:
        raise DetectorError(f"{model} cannot be read: {error.strerror}. Copy the folder again.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != description["model_sha256"]:
        raise DetectorError(
            f"{model} has sha256 {found[:12]}, detector.json names {description['model_sha256'][:12]}: the file was "
            "changed or damaged. Copy the folder again."
        )
    try:
        detector = Detector(_upgraded(description), load_safetensors(data))
        detector.preprocessing  # noqa: B018  raises where this release cannot do it
    except CausalTuneError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, SafetensorError) as error:
        words = " ".join(str(error).split())[:400].rstrip(".")
        raise DetectorError(
            f"The head of the detector {folder} cannot be loaded: {words}. Export it again with "
            "`causal-tune export STUDY`."
        ) from error
    return detector
