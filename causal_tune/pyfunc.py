"""A detector as an MLflow model: from code, with signature, example and its own requirements."""

import logging
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from causal_tune.detector import load_detector
from causal_tune.errors import TrackingError
from causal_tune.tracking import quieten_mlflow

__all__ = ["save_mlflow_model"]

_REQUIRED = (
    *(
        "mlflow",
        "pandas",
        "numpy",
        "scipy",
        "torch",
        "torchvision",
        "open_clip_torch",
        "safetensors",
        "jaxtyping",
    ),
    *("pillow", "pyarrow", "scikit-learn", "scikit-image", "matplotlib", "onnx", "openvino", "filelock"),
)
"""What scoring imports; this package itself goes along as code."""


def save_mlflow_model(folder: Path | str, target: Path | str) -> Path:
    """Write the detector in `folder` as an MLflow model to the new folder `target`, for `mlflow.pyfunc.load_model`.

    It takes rows with one of the columns `image` (bytes of a file), `path` (local or a URI) or `features`, and gives
    score, probability, verdict, note and reason. It brings the code of this package, so that an environment made of its
    requirements is enough; encoder weights are those of the machine, as `causal-tune fetch` brings them.
    `TrackingError` where `target` holds something or cannot be written, `DetectorError` for the detector.
    """
    detector, target = load_detector(folder), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise TrackingError(f"{target} exists already. Name a new folder for the MLflow model.")
    quieten_mlflow()
    for name in ("mlflow.pyfunc", "mlflow.models"):  # lines about what this code does on purpose
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.binary, "image", required=False),
                ColSpec(DataType.string, "path", required=False),
                ColSpec(Array(DataType.double), "features", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.double, "score", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(DataType.string, "verdict", required=False),
                ColSpec(DataType.string, "note", required=False),
                ColSpec(DataType.string, "reason", required=False),
            ]
        ),
    )
    width = int(detector.description["head"]["width"])
    package = Path(__file__).parent
    try:
        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(package / "pyfunc_model.py"),
            artifacts={"detector": str(Path(folder).absolute())},
            code_paths=[str(package)],
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in _REQUIRED],
            signature=signature,
            input_example=pd.DataFrame({"features": [np.linspace(-1, 1, width).tolist()]}),
            metadata={
                "detector": detector.name,
                "model_id": detector.id,
                "model_sha256": detector.description["model_sha256"],
                "study": detector.description["provenance"]["study"],
                "trial": detector.description["provenance"]["trial"],
            },
        )
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"The MLflow model cannot be written to {target}: {' '.join(str(error).split())[:400]}"
        ) from error
    return target
