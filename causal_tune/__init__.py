"""causal-tune: hyperparameter studies for detectors of generated images on frozen CLIP features."""

__version__ = "0.1.0"

__all__ = ["__version__"]
