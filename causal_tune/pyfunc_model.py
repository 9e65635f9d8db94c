"""What MLflow runs to load a detector: models from code, nothing pickled. Copied into each model by `pyfunc`."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

COLUMNS = ("image", "path", "features")
OUTPUTS = ["score", "probability", "verdict", "note", "reason"]


class DetectorModel(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """A detector folder as an MLflow model."""

    def load_context(self, context: Any) -> None:
        """Open the folder; the encoder is loaded when the first image comes."""
        from causal_tune.detector import load_detector

        self.detector = load_detector(context.artifacts["detector"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row each: score, probability, verdict and note, or a reason. Columns: those of the signature."""
        from causal_tune.errors import InvalidConfig, UnreadableImage

        given = [name for name in COLUMNS if name in model_input and model_input[name].notna().all()]
        if len(given) != 1:
            raise InvalidConfig(
                f"The rows have the columns {list(model_input.columns)}; exactly one of {', '.join(COLUMNS)} is "
                "expected, without gaps: the bytes of image files, their paths or URIs, or the encoder's features."
            )
        values = model_input[given[0]].tolist()
        rows: list[dict[str, Any]] = []
        if given == ["features"]:
            features = np.asarray([np.asarray(value, np.float32) for value in values])
            scores: list[Any] = list(self.detector.scores(self.detector.logits(features)))
        else:
            scores = []
            for value in values:
                try:
                    scores.append(self.detector.score_image(value))
                except UnreadableImage as error:
                    scores.append(str(error))
        for one in scores:
            if isinstance(one, str):
                rows.append({**dict.fromkeys(OUTPUTS), "reason": one})
            else:
                rows.append({**asdict(one), "reason": None})
        return pd.DataFrame(rows, columns=OUTPUTS)


set_model(DetectorModel())
