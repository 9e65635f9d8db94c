"""What an audit says: counts, matches between images, bias probes, and findings in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from causal_tune.wording import inline_markdown, plural

__all__ = [
    "AUDIT_VERSION",
    "Audit",
    "Count",
    "Finding",
    "ImageRef",
    "Matches",
    "Probe",
    "Score",
    "SharedPlaces",
    "are",
    "audit_summary",
    "listed",
]

AUDIT_VERSION = 1
"""Version of the JSON document; a field that changes its meaning or goes away raises it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """One row of the index, as an example."""

    path: str
    label: int
    """0 real, 1 generated."""
    generator: str
    split: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that a person should know, with what to do about it."""

    severity: Literal["finding", "note"]
    """A finding makes results wrong and fails `--strict`; a note is good to know."""
    kind: str
    """`leak`, `both_labels`, `near_leak`, `bias`, `one_class`, `imbalance` or `unreadable` for findings; the notes are
    `bias` (what does not reach the crop), `shared_reals`, `duplicates`, `near_duplicates`, `resized`,
    `too_few`, `skipped` and `not_checked`."""
    subject: str
    """The generator it is about; empty for the whole index."""
    what: str
    """What was found, with numbers."""
    next_step: str
    num_images: int
    """Rows of the index that it is about."""
    examples: tuple[tuple[ImageRef, ...], ...] = ()
    """A few groups of images that show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """Images of one generator, split, class and file format."""

    generator: str
    split: str
    label: int
    format: str | None
    """None where the header could not be read."""
    num_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPlaces:
    """How many leaked contents lie both in one training place and in one judged place."""

    training: str
    """`generator/split`."""
    judged: str
    num_contents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """Groups of rows that show the same picture, by one method."""

    method: Literal["sha256", "phash", "cosine"]
    """Same bytes; perceptual hash of the whole picture; cosine of the encoder's features."""
    threshold: float | None
    """Largest Hamming distance of two hashes, or smallest cosine; None for bytes."""
    num_compared: int
    """Distinct contents that were compared."""
    num_groups: int
    num_images: int
    """Rows in those groups."""
    num_shared_reals: int
    """Groups that are one real file, listed under several generators."""
    num_both_labels: int
    """Groups that hold a real and a generated row."""
    num_leaks: int
    """Groups that train and judge with the same label."""
    num_leaked_images: int
    """Judged rows of those groups."""
    shared_places: tuple[SharedPlaces, ...]
    """Where leaks go from and to, the largest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well one property of the files, or all, ranks generated above real; cross-validated."""

    feature: str
    ap: float
    """Average precision at the prevalence of the set."""
    ap_balanced: float
    """Average precision with both classes weighted equally: 0.5 is chance at any prevalence."""
    auc: float
    is_alarming: bool
    """`ap_balanced` above the threshold, and `auc` too high for chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The bias probe of one generator, or of all (`scope` is empty)."""

    scope: str
    num_real: int
    """Distinct readable images of the scope."""
    num_generated: int
    num_probed: int
    """How many of both the scores rest on, after the seeded sample."""
    prevalence: float | None
    """Share of generated images among those probed; None where nothing was scored."""
    num_real_resized: int
    """Images whose shorter side is below the crop, so that they are resized."""
    num_generated_resized: int
    scores: tuple[Score, ...]
    """Each property alone; those with one value only are left out."""
    joint: Score | None
    not_scored: str
    """Why nothing was scored; empty where it was."""

    @property
    def alarming(self) -> tuple[Score, ...]:
        """The properties that tell the classes apart on their own, the best first."""
        found = [score for score in self.scores if score.is_alarming]
        return tuple(sorted(found, key=lambda score: -round(score.ap_balanced, 2)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """All that an audit found."""

    num_images: int
    train_generators: tuple[str, ...]
    """Whose images were taken to train; empty: the splits of the index say it."""
    counts: tuple[Count, ...]
    unreadable: Mapping[str, int]
    """Reason -> number of images."""
    skipped: Mapping[str, int]
    """Files under the roots that are no row of the index, by reason."""
    matches: tuple[Matches, ...]
    probes: tuple[Probe, ...]
    findings: tuple[Finding, ...]
    """Findings first, then notes."""

    @property
    def num_findings(self) -> int:
        """Findings, notes not counted."""
        return sum(item.severity == "finding" for item in self.findings)

    def to_document(self, source: str) -> dict[str, Any]:
        """The JSON document: `version`, `source` and every field."""
        return {
            "version": AUDIT_VERSION,
            "source": source,
            "num_findings": self.num_findings,
            "num_notes": len(self.findings) - self.num_findings,
            **asdict(self),
        }


def audit_summary(audit: Audit, *, most: int = 5) -> dict[str, Any]:
    """An audit in short, for a report: `num_images`, `num_findings`, `num_notes`, `findings`, `markdown`.

    `findings` has `kind`, `subject`, `what` and `next_step` of every finding, no notes; `markdown` is one
    paragraph, and a list of at most `most` findings.
    """
    findings = [item for item in audit.findings if item.severity == "finding"]
    num_notes = len(audit.findings) - len(findings)
    lines = [
        f"The audit of {plural(audit.num_images, 'image')} has {plural(len(findings), 'finding')} "
        f"and {plural(num_notes, 'note')}{'.' if not findings else ':'}"
    ]
    if findings:
        lines += ["", *(f"- {inline_markdown(item.what)}" for item in findings[:most])]
    if len(findings) > most:
        lines.append(f"- and {len(findings) - most:,} more.")
    return {
        "num_images": audit.num_images,
        "num_findings": len(findings),
        "num_notes": num_notes,
        "findings": [
            {"kind": item.kind, "subject": item.subject, "what": item.what, "next_step": item.next_step}
            for item in findings
        ],
        "markdown": "\n".join(lines),
    }


def are(number: int) -> str:
    """The verb after a number."""
    return "is" if number == 1 else "are"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names with commas; the rest as a number."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
