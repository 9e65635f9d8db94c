"""The errors that people see: each says what was found, what was expected and the next step.

Every error of this package is a `CausalTuneError`; the command line prints its message as one
paragraph and ends with its `exit_code`. Anything else that reaches the command line is a bug.
"""

from typing import Any

__all__ = [
    "CausalTuneError",
    "DetectorError",
    "DiskError",
    "ImageTooLarge",
    "IndexingError",
    "InferredArchitecture",
    "Interrupted",
    "InvalidConfig",
    "StoreError",
    "StudyError",
    "TrackingError",
    "TrialFailed",
    "TrialPruned",
    "UnknownName",
    "UnreadableImage",
    "UnsupportedFormat",
    "WeightsError",
    "WorkFailed",
]


class CausalTuneError(ValueError):
    """Something the user can mend; `str(error)` says how."""

    exit_code = 2
    """2: wrong usage, nothing was done; 1: work was done and ended with failures; 130: it was interrupted."""


class InvalidConfig(CausalTuneError):
    """A value that is out of its range, or two values that contradict each other."""


class UnknownName(CausalTuneError):
    """A name that is in no table; the message lists the names there are."""


class IndexingError(CausalTuneError):
    """A folder, CSV or index file from which no sound image index can be made."""


class UnreadableImage(CausalTuneError):
    """One image that cannot be decoded; `str(error)` is the reason kept in the quarantine."""

    code = "unreadable"
    """One word for programs."""

    @property
    def reason(self) -> str:
        """What was found, for people who cannot change this installation."""
        return str(self)


class ImageTooLarge(UnreadableImage):
    """An image with more pixels or bytes than are decoded."""

    code = "too_large"


class UnsupportedFormat(UnreadableImage):
    """A file in a format that is not decoded here; `advice` is what the owner of the installation can do."""

    code = "unsupported_format"

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason, advice)

    def __str__(self) -> str:
        return ": ".join(part for part in self.args if part)

    @property
    def reason(self) -> str:
        """The reason without the advice."""
        return str(self.args[0])


class WeightsError(CausalTuneError):
    """Encoder weights that are missing, cannot be fetched, or are not the pinned bytes."""


class StoreError(CausalTuneError):
    """A feature store that is missing, unfinished, damaged or made by another encoder."""


class StudyError(CausalTuneError):
    """A study that cannot be created, continued or read."""


class TrackingError(CausalTuneError):
    """A tracking server that cannot be reached or refuses."""


class DetectorError(CausalTuneError):
    """A detector folder that is missing, damaged or of an unknown format."""


class DiskError(CausalTuneError, OSError):
    """A file or folder that cannot be written: the disk is full, read-only, or the path cannot be one (`atomic`)."""

    exit_code = 1


class InferredArchitecture(UserWarning):
    """Weights whose architecture was inferred from their shapes, which do not say everything; the message does."""


class TrialFailed(CausalTuneError):
    """One trial ended without a result; `str(error)` is the reason kept in the ledger."""


class TrialPruned(TrialFailed):
    """One trial was stopped early because others were better by then; it has `epochs` and no result."""

    def __init__(self, reason: str, epochs: list[dict[str, Any]]) -> None:
        super().__init__(reason)
        self.epochs = epochs


class WorkFailed(CausalTuneError):
    """Work was done, and ended with failures that the message counts."""

    exit_code = 1


class Interrupted(CausalTuneError):
    """Ctrl-C or SIGTERM ended the work; the message says what is kept and how to continue."""

    exit_code = 130
