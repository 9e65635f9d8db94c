"""Which of the images under the roots enter an index: by name, by the facts of their header, by sample.

Names decide first, then the facts, then the sample: `limit` images are left of those that the others let
through. A sample is the first `limit` images in the order of a hash of the seed and the image's path below
its root, so that it depends on neither the order of a listing nor the place of the root, a larger sample
holds every smaller one, and generators that share real images share their sample of them.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from causal_tune.errors import InvalidConfig
from causal_tune.images.entries import Entry
from causal_tune.images.facts import FileFacts

__all__ = ["Choice", "choose", "is_chosen", "sample_key"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is taken; by default everything. An image whose header cannot be read passes every test of facts:
    it stays in the index, and is quarantined with its reason later.
    """

    include: tuple[str, ...] = ()
    """Globs of paths below the root, of which one has to match; `*` crosses folders. Empty: all."""
    exclude: tuple[str, ...] = ()
    """Globs of which none may match."""
    limit: int | None = None
    """At most so many images of each generator and class."""
    seed: int = 0
    """Of the sample that `limit` takes."""
    min_side: int | None = None
    """Pixels that the shorter side has at least."""
    max_side: int | None = None
    """Pixels that the longer side has at most."""
    formats: tuple[str, ...] = ()
    """Pillow's names, by content and not by suffix: JPEG, PNG, ... Empty: all."""
    jpeg_quality: tuple[int, int] | None = None
    """Lowest and highest quality of a JPEG; other formats have none and pass."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", tuple(name.upper() for name in self.formats))
        for name in ("limit", "min_side", "max_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidConfig(f"{name} is {value}; expected 1 or more.")
        if self.min_side and self.max_side and self.min_side > self.max_side:
            raise InvalidConfig(
                f"The smallest side, {self.min_side}, is larger than the largest, {self.max_side}: no image fits."
            )
        low, high = self.jpeg_quality or (1, 100)
        if not 1 <= low <= high <= 100:
            raise InvalidConfig(
                f"The JPEG qualities are {low} to {high}; expected two of 1 to 100, in order."
            )

    def by_name(self, name: str) -> str | None:
        """Why a path below its root is left out; None where it is taken.

        >>> Choice(include=("*/val/*",), exclude=("*.gif",)).by_name("adm/train/ai/1.png")
        'not included'
        """
        if self.include and not any(fnmatchcase(name, glob) for glob in self.include):
            return "not included"
        if any(fnmatchcase(name, glob) for glob in self.exclude):
            return "excluded"
        return None

    def by_facts(self, facts: FileFacts) -> str | None:
        """Why an image of these facts is left out; None where it is taken.

        >>> Choice(min_side=224).by_facts(FileFacts(width=512, height=200, format="PNG"))
        'smaller than 224 pixels'
        """
        if facts.width is None or facts.height is None:
            return None
        if self.min_side and min(facts.width, facts.height) < self.min_side:
            return f"smaller than {self.min_side} pixels"
        if self.max_side and max(facts.width, facts.height) > self.max_side:
            return f"larger than {self.max_side} pixels"
        if self.formats and facts.format not in self.formats:
            return f"format {facts.format}"
        if self.jpeg_quality and facts.jpeg_quality is not None:
            low, high = self.jpeg_quality
            if not low <= facts.jpeg_quality <= high:
                return f"JPEG quality not {low} to {high}"
        return None

    def as_dict(self) -> dict[str, Any]:
        """What differs from taking everything, by name; the seed only beside a limit."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {name: value for name, value in values.items() if value not in (None, ()) and name != "seed"}
        return chosen | ({"seed": self.seed} if self.limit else {})

    def describe(self) -> str:
        """The same in words; empty where everything is taken.

        >>> Choice(limit=1000, min_side=224).describe()
        'limit 1000, min_side 224, seed 0'
        """

        texts = {
            name: " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in self.as_dict().items()
        }
        return ", ".join(f"{name} {text}" for name, text in texts.items())


_REASONS = (
    *("not included", "excluded", "smaller than ", "larger than ", "format ", "JPEG quality not "),
    "beyond the limit of ",
)


def is_chosen(reason: str) -> bool:
    """Whether a reason for leaving a file out is a `Choice`, not something in the way of taking it.

    >>> is_chosen("beyond the limit of 50"), is_chosen(".txt")
    (True, False)
    """
    return reason.startswith(_REASONS)


def sample_key(seed: int, name: str) -> bytes:
    """The place of an image in the order that samples are taken in."""
    return hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=8).digest()


def choose(
    entries: Sequence[Entry],
    choice: Choice,
    read: Callable[[Sequence[str]], Mapping[str, FileFacts]],
) -> tuple[list[Entry], dict[str, FileFacts], Counter[str]]:
    """The entries that are taken, the facts of their files, and how many others are left out, by reason.

    `read` gives the facts of files. Only files that may be taken are read: where a sample of 1,000 is
    asked for, a data set of millions is listed, but not read.
    """
    groups: defaultdict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.generator, entry.label].append(entry)
    limit = choice.limit
    if limit is not None:
        for group in groups.values():
            group.sort(key=lambda entry: (sample_key(choice.seed, entry.name), entry.name, entry.path))
    taken: dict[tuple[str, int], list[Entry]] = {key: [] for key in groups}
    facts: dict[str, FileFacts] = {}
    skipped: Counter[str] = Counter()
    remaining = {key: iter(group) for key, group in groups.items()}
    # each round takes as many of a group as it still lacks: what the facts drop, the next round replaces
    while batch := [
        entry
        for key, rest in remaining.items()
        for entry in islice(rest, None if limit is None else limit - len(taken[key]))
    ]:
        facts |= read(sorted({entry.path for entry in batch} - facts.keys()))
        for entry in batch:
            if reason := choice.by_facts(facts[entry.path]):
                skipped[reason] += 1
            else:
                taken[entry.generator, entry.label].append(entry)
    if num_beyond := sum(1 for rest in remaining.values() for _ in rest):
        skipped[f"beyond the limit of {limit:,}"] = num_beyond
    return [entry for group in taken.values() for entry in group], facts, skipped
