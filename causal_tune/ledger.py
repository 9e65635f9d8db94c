"""The ledger of a study: one JSON a finished trial, the single truth about what has been done.

    studies/<name>/trials/00007-3f2a91c0.json       this module
    studies/<name>/checkpoints/00007-3f2a91c0.safetensors   the head's state, written before it

A record is written under a temporary name and renamed, so a trial is in the ledger wholly or not at
all. Everything else about a study (the sampler's memory, MLflow, the winner) is derived from it.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from causal_tune.atomic import write_json
from causal_tune.errors import StudyError

__all__ = ["RECORD_FORMAT", "Ledger", "TrialRecord", "trial_id", "wrong_kind"]

RECORD_FORMAT = 1

FINISHED = "finished"
FAILED = "failed"
PRUNED = "pruned"
DUPLICATE = "duplicate"
STATES = (FINISHED, FAILED, PRUNED, DUPLICATE)


def trial_id(number: int, config: Mapping[str, Any]) -> str:
    """The name of a trial: its number, and 8 hexadecimal digits of its configuration's hash.

    >>> trial_id(7, {"tau": 0.5, "seed": 1})
    '00007-d430bd41'
    """
    content = json.dumps(dict(config), sort_keys=True)
    return f"{number:05d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial that has ended: what was asked, what came out, and what it cost.

    A set's metrics are a dict with `ap` (None where a class is missing), `accuracy`, `loss`,
    `num_real` and `num_generated`, among others.
    """

    number: int
    """Position in the study, from 0."""
    id: str
    """`trial_id(number, config)`; also the name of its files and its key in MLflow."""
    state: str
    """`finished`; or with a `reason` `failed`, `pruned` (stopped early as hopeless: it has epochs, and no
    result) or `duplicate` (of an earlier trial: not trained)."""
    reason: str | None = None
    """Why it has no result."""
    config: dict[str, Any]
    """`TrialConfig.to_dict()`: everything that the training is a function of, beside the data."""
    seed: int
    """The trial's own seed, a function of the study's seed and `number`."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Flat numbers of every epoch, in order."""
    best_epoch: int | None = None
    """Epoch of the head that is kept, counted from 1."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Metrics on the validation split of the training generators."""
    threshold: float | None = None
    """On logits, chosen on that validation split; `accuracy_val_threshold` of a set is counted at it."""
    generators: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metrics of every judged generator, validation and test alike."""
    perturbed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metrics on the validation split in degraded views, by view."""
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By training generator, its metrics under a head of this configuration that was trained without it."""
    mask: dict[str, Any] | None = None
    """Statistics of the mask; None for a head without one."""
    collapsed: str | None = None
    """`ones` or `zeros`: the mask lets everything or nothing through, so it selects nothing."""
    stopped_by: str | None = None
    """`patience` or `max_epochs`; `fit` for a head that is fitted at once."""
    steps: int = 0
    """Gradient steps."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by phase."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library versions of the worker."""
    head_config: dict[str, Any] = field(default_factory=dict)
    """What rebuilds the head that the checkpoint fills."""
    checkpoint: str | None = None
    """File name in `checkpoints/`."""
    checkpoint_sha256: str | None = None
    """Hash of that file."""
    ended_at: float = 0.0
    """Seconds since 1970."""

    @property
    def finished(self) -> bool:
        """Whether the trial has a result."""
        return self.state == FINISHED

    @property
    def failed(self) -> bool:
        """Whether it has none because something went wrong."""
        return self.state == FAILED

    def to_json(self) -> dict[str, Any]:
        """As it lies on disk."""
        return {"format": RECORD_FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> "TrialRecord":
        """The inverse of `to_json`; `StudyError` for anything else."""
        if not isinstance(content, dict) or "format" not in content:
            raise StudyError("it is not a trial record: a JSON object with `format` was expected")
        if content["format"] != RECORD_FORMAT:
            raise StudyError(
                f"it has record format {content['format']!r}; this release reads format {RECORD_FORMAT}"
            )
        values = {key: value for key, value in content.items() if key != "format"}
        known = {item.name for item in fields(cls)}
        required = {"number", "id", "state", "config", "seed"}
        if wrong := sorted((values.keys() - known) | (required - values.keys())):
            raise StudyError(f"its fields are not those of a trial record: {', '.join(wrong)}")
        if (wrong_one := wrong_kind(cls, values)) is not None:
            raise StudyError(f"its {wrong_one}")
        if values["state"] not in STATES:
            raise StudyError(f"its state is {values['state']!r}; one of {', '.join(STATES)} was expected")
        return cls(**values)


def wrong_kind(kind: type, values: Mapping[str, Any]) -> str | None:
    """The first of a dataclass's fields whose value, from JSON, is of another kind than its annotation says.

    >>> wrong_kind(TrialRecord, {"number": 1, "config": None})
    'config is None; a dict was expected'
    """
    for name, hint in get_type_hints(kind).items():
        wanted = [
            get_origin(one) or one for one in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
        ]
        allowed = tuple({float: (int, float), tuple: (tuple, list)}.get(one, one) for one in wanted)
        if name in values and (
            not isinstance(values[name], allowed) or (isinstance(values[name], bool) and bool not in wanted)
        ):
            names = " or ".join(one.__name__.replace("NoneType", "null") for one in wanted)
            return f"{name} is {repr(values[name])[:60]}; a {names} was expected"
    return None


def non_finite(value: Any, where: str = "") -> str | None:
    """The path of the first NaN or infinity in nested dicts and lists; None where there is none.

    >>> non_finite({"validation": {"loss": float("nan")}})
    'validation/loss'
    """
    if isinstance(value, float) and not math.isfinite(value):
        return where
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        found = non_finite(item, f"{where}/{key}" if where else str(key))
        if found is not None:
            return found
    return None


class Ledger:
    """The `trials/` folder of a study."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def record_path(self, record: TrialRecord) -> Path:
        """Where the record lies."""
        return self.path / f"{record.id}.json"

    def add(self, record: TrialRecord) -> Path:
        """Write a record, whole or not at all. A second record of the same number is refused."""
        for other in self.path.glob(f"{record.number:05d}-*.json"):
            raise StudyError(
                f"Trial {record.number} is in the ledger already ({other}); a trial is recorded once. "
                "Delete that file to have the trial run again."
            )
        path = self.record_path(record)
        write_json(path, record.to_json())
        return path

    def records(self) -> list[TrialRecord]:
        """Every record, by number.

        `StudyError` names the file that cannot be read, that is no trial record, whose name is not
        its id, or whose number is there twice. A folder that does not exist yet is an empty ledger.
        """
        records: dict[int, TrialRecord] = {}
        for path in sorted(self.path.glob("*.json")):
            if path.name.startswith("."):
                continue  # a temporary file of a writer that was killed
            try:
                record = TrialRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
                if record.id != path.stem:
                    raise StudyError(f"it holds trial {record.id}")
                if record.number in records:
                    raise StudyError(f"trial {record.number} is also in {records[record.number].id}.json")
            except (OSError, ValueError) as error:  # StudyError and JSONDecodeError are ValueErrors
                raise StudyError(
                    f"{path} cannot be used as a trial record: {error}. Restore it from a copy, or delete "
                    "that file: the same `causal-tune tune` then runs this trial again."
                ) from error
            records[record.number] = record
        return [records[number] for number in sorted(records)]
