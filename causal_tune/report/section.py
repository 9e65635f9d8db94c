"""A report and its parts: what the files of `page` are written from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from causal_tune.report.figures import Drawing
from causal_tune.report.tables import Table

__all__ = ["Picture", "Report", "Section"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image on the page, with what there is to say of it."""

    group: str
    """Pictures of a group stand together, under its name."""
    title: str
    detail: str
    """Its path."""
    jpeg: bytes
    """Empty where there is none to show."""
    missing: str
    """Why not; else empty."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    """Paragraphs, parted by empty lines."""
    tables: Sequence[Table] = ()
    figures: Mapping[str, tuple[str, Drawing]] = field(default_factory=dict)
    """By file name, with the caption."""
    code: str = ""
    pictures: Sequence[Picture] = ()
    """On the page alone; the other forms have their table."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it."""

    title: str
    verdict: Sequence[str]
    """What the reader takes away, in three sentences."""
    sections: Sequence[Section]
