"""A detector as ONNX, for whoever scores without this package.

    model.onnx   features [n, d] float32 -> logit, score, probability, each [n]
    images.onnx  crops [n, 224, 224, 3] uint8 -> the same: the encoder in float32, the head behind it

Both are traced by torch's TorchScript exporter (`dynamo=False`): it needs `onnx`, which reads encoder weights anyway,
and not `onnxscript`, and writes dynamic batches of these graphs without being told of shapes.
"""

import io
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everywhere

from causal_tune.atomic import atomic_path
from causal_tune.calibration import Platt
from causal_tune.detector import Detector
from causal_tune.encoders import resolve
from causal_tune.errors import DetectorError
from causal_tune.heads.normaliser import NormalisedHead
from causal_tune.heads.protocol import Scorer
from causal_tune.runtimes.protocol import EncoderDescription, last_block, layer_widths
from causal_tune.towers import Tower, tower_of
from causal_tune.weights import load_verified

__all__ = ["HEAD_FILE", "IMAGES_FILE", "write_head", "write_images"]

HEAD_FILE = "model.onnx"
IMAGES_FILE = "images.onnx"

_OPSET = 18
_MOST_BYTES = 2**31 - 2**20
"""What one file of ONNX holds."""


def write_head(detector: Detector, folder: Path) -> Path:
    """Write `model.onnx` into `folder`: features of the detector's layer and encoder to scores."""
    width = int(detector.description["head"]["width"])
    example = torch.linspace(-1, 1, 3 * width).reshape(3, width)
    path = folder / HEAD_FILE
    _write(_Scores(detector.head, detector.calibration), example, "features", detector, path, {})
    return path


def write_images(detector: Detector, folder: Path) -> Path:
    """Write `images.onnx` into `folder`: crops to scores, in float32 whatever the training computed in.

    Both are told in its properties, `computes_in` and `trained_in`: where they differ scores are a little others.
    `DetectorError` for an encoder of more than 2 GB or of int8, `WeightsError` where its weights are not there.
    """
    wanted = detector.description["encoder"]
    if wanted["dtype"] == "int8":  # its features are other ones, and so would be the verdicts
        raise DetectorError(
            f"The detector {detector.name} was trained on features of int8, and {IMAGES_FILE} computes in float32. "
            "Export without --onnx-images, or train on a store that was extracted without --dtype int8."
        )
    encoder = resolve(wanted["name"])
    state, sha256 = load_verified(encoder)
    if sha256 != wanted["weights_sha256"]:
        raise DetectorError(
            f"The weights of {wanted['name']} here are {sha256[:12]}; the detector {detector.name} was trained on "
            f"{wanted['weights_sha256'][:12]}. Bring those."
        )
    num_bytes = 4 * sum(tensor.numel() for tensor in state.values())
    if num_bytes > _MOST_BYTES:
        raise DetectorError(
            f"{wanted['name']} has {num_bytes / 2**30:.1f} GiB of weights, and an ONNX file holds 2. Export without "
            "--onnx-images, and give model.onnx the features of another runtime."
        )
    description = detector.encoder_description()
    module = nn.Sequential(
        _Encoder(tower_of(wanted["architecture"]), state, description, detector.layer),
        _Scores(detector.head, detector.calibration),
    )
    size = description.image_size
    example = torch.arange(2 * size * size * 3).remainder(256).to(torch.uint8).reshape(2, size, size, 3)
    path = folder / IMAGES_FILE
    dtypes = {"computes_in": "float32", "trained_in": wanted["dtype"]}
    _write(module, example, "crops", detector, path, dtypes)
    return path


def _write(
    module: nn.Module, example: Tensor, name: str, detector: Detector, path: Path, properties: dict[str, str]
) -> None:
    module.eval()
    buffer = io.BytesIO()
    outputs = ["logit", "score", "probability"]
    with warnings.catch_warnings(), torch.inference_mode(mode=False), torch.no_grad():
        warnings.simplefilter("ignore")  # that the exporter is old, and that sizes become constants
        module(example)  # what is drawn once is drawn now, and so is a constant of the trace
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]  # it takes files too
            dynamo=False,
            opset_version=_OPSET,
            input_names=[name],
            output_names=outputs,
            dynamic_axes={each: {0: "n"} for each in (name, *outputs)},
        )
    model = onnx.load_from_string(buffer.getvalue())
    told = {
        "detector": detector.name,
        "model_sha256": detector.description["model_sha256"],
        "layer": detector.layer,
        "encoder": detector.description["encoder"]["name"],
        "preprocessing": detector.description["preprocessing"],
        "generated_from_logit": repr(detector.description["unsure"]["high"]["logit"]),
        "real_below_logit": repr(detector.description["unsure"]["low"]["logit"]),
        **properties,
    }
    onnx.helper.set_model_props(model, told)
    onnx.checker.check_model(model)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


class _Scores(nn.Module):
    """Features to logit, score and probability."""

    def __init__(self, head: Scorer, calibration: Platt) -> None:
        super().__init__()
        self.normaliser: nn.Module = nn.Identity()
        if isinstance(head, NormalisedHead):
            self.normaliser, head = head.normaliser, head.head
        self.head = head  # a module: its parameters are the graph's
        self.calibration = calibration

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits: Tensor = self.head.logits(self.normaliser(features))
        probability = torch.sigmoid(self.calibration.slope * logits + self.calibration.offset)
        return logits, torch.sigmoid(logits), probability


class _Encoder(nn.Module):
    """open_clip's visual tower up to one layer, in operations that a trace keeps for any number of images."""

    def __init__(
        self, tower: Tower, state: dict[str, Tensor], description: EncoderDescription, layer: str
    ) -> None:
        super().__init__()
        self.tower, self.layer = tower, layer
        self.num_blocks = last_block(tower, (layer,))
        assert layer in layer_widths(tower, (layer,))
        for name, tensor in state.items():
            self.register_buffer(name.replace(".", "/"), tensor.float())
        self.register_buffer("mean", 255 * torch.tensor(description.mean))
        self.register_buffer("std", 255 * torch.tensor(description.std))

    def forward(self, crops: Tensor) -> Tensor:
        tower = self.tower
        pixels = ((crops.float() - self._of("mean")) / self._of("std")).permute(0, 3, 1, 2)
        x = F.conv2d(pixels, self._of("conv1.weight"), stride=tower.patch_size).flatten(2).transpose(1, 2)
        class_token = self._of("class_embedding").expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self._of("positional_embedding")
        x = self._norm(x, "ln_pre")
        for index in range(self.num_blocks):
            x = self._block(x, f"transformer.resblocks.{index}")
        if self.layer.startswith("cls@"):
            return x[:, 0]
        if self.layer.startswith("mean@"):
            return x[:, 1:].mean(dim=1)
        pre = self._norm(x[:, 0], "ln_post")
        return pre if self.layer == "pre" else pre @ self._of("proj")

    def _block(self, x: Tensor, part: str) -> Tensor:
        tower = self.tower
        tokens, width = (tower.image_size // tower.patch_size) ** 2 + 1, tower.width
        heads = (-1, tokens, 3, tower.num_heads, width // tower.num_heads)
        values = self._linear(self._norm(x, f"{part}.ln_1"), f"{part}.attn.in_proj_")
        q, k, v = values.reshape(heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(2, 3)) * (width / tower.num_heads) ** -0.5
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, tokens, width)
        x = x + self._linear(attended, f"{part}.attn.out_proj.")
        hidden = self._linear(self._norm(x, f"{part}.ln_2"), f"{part}.mlp.c_fc.")
        hidden = hidden * torch.sigmoid(1.702 * hidden) if tower.quick_gelu else F.gelu(hidden)
        return x + self._linear(hidden, f"{part}.mlp.c_proj.")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._of(f"{name}weight"), self._of(f"{name}bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.tower.width,), self._of(f"{name}.weight"), self._of(f"{name}.bias"))

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "/"))
