"""A study in MLflow: one parent run, one nested run a trial. Only this package and `pyfunc` know mlflow."""

from causal_tune.tracking.connection import quieten_mlflow
from causal_tune.tracking.content import Figures
from causal_tune.tracking.place import default_uri, redacted
from causal_tune.tracking.tracker import EXPERIMENT, Tracker

__all__ = ["EXPERIMENT", "Figures", "Tracker", "default_uri", "quieten_mlflow", "redacted"]
