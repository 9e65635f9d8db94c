"""What a layout finds: one entry an image, and the files that it left out, counted by reason."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["GENERATED", "REAL", "SPLITS", "Entry", "Listing"]

REAL = 0
"""Label of a photograph."""

GENERATED = 1
"""Label of a generated image."""

SPLITS = ("train", "val", "test", "")
"""Names of a split; the empty one: not divided yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One image of one test set; the same file may be an entry of several generators."""

    path: str
    """Absolute, links not resolved; or a URI."""
    label: int
    """`REAL` or `GENERATED`."""
    generator: str
    """The set it belongs to; a real image carries the generator that it is compared with."""
    split: str = ""
    """One of `SPLITS`."""
    name: str = ""
    """The path below its root, or seen from its CSV: what globs and samples go by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All that a layout found under its roots."""

    entries: list[Entry]
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason (a suffix such as `.txt`, `hidden file`, ...) -> number of files that are no entry."""
    notes: tuple[str, ...] = ()
    """What people should know of how the files were read: the layout and why, what is shared."""
