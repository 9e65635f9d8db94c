"""The audit: an index, and what else there is, to an `Audit`."""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from causal_tune.audit.findings import Audit, Count, Finding, ImageRef, Matches, Probe, are, listed
from causal_tune.audit.matches import (
    TRAINING,
    Examples,
    content_numbers,
    find_matches,
    linked,
    near_features,
    near_hashes,
    row_roles,
)
from causal_tune.audit.pixels import PixelFacts
from causal_tune.audit.probe import columns_of, probe
from causal_tune.audit.words import bias_finding, resized_note
from causal_tune.errors import InvalidConfig, StoreError
from causal_tune.images.choice import is_chosen
from causal_tune.images.index import generators, index_sha256, skipped_files
from causal_tune.wording import plural

if TYPE_CHECKING:  # importing it costs the seconds of torch, which an audit of an index alone does not need
    from causal_tune.features import FeatureStore

__all__ = ["MAX_COMPARED", "MAX_DISTANCE", "MIN_COSINE", "audit_index"]

MIN_COSINE = 0.999
"""Cosine of two images' features from which on they are near copies (docs/audit.md: how it was chosen)."""

MAX_DISTANCE = 4
"""Bits of 64 in which the hashes of near copies may differ (docs/audit.md: how it was chosen)."""

MAX_COMPARED = 20_000
"""Contents above which features are not compared: n^2 products, seconds at this number."""

IMBALANCED = 4
"""Images of one class for each of the other from which on a training set is called imbalanced."""

ENOUGH = 100
"""Images of a class below which fewer of the other are no remedy."""

_UNREADABLE_HEADER = "the file or its header cannot be read"


def audit_index(
    index: pa.Table,
    *,
    store: "FeatureStore | None" = None,
    pixels: Mapping[str, PixelFacts] | None = None,
    train_generators: Sequence[str] = (),
    min_cosine: float = MIN_COSINE,
    max_compared: int = MAX_COMPARED,
) -> Audit:
    """Audit the images of an index (`images.index.INDEX_SCHEMA`).

    `store` (made from this index) adds the quarantine's reasons and near copies by features; `pixels`, of
    every path, adds reasons and near copies by perceptual hash. `train_generators` says whose images will
    train, where the splits of the index do not. `InvalidConfig` for an unknown generator, `StoreError` for
    a store of other images.

    >>> from causal_tune.images.index import INDEX_SCHEMA
    >>> rows = [
    ...     {"path": "/a.png", "label": 0, "generator": "adm", "split": "train", "width": 9, "sha256": "1"},
    ...     {"path": "/b.png", "label": 0, "generator": "adm", "split": "test", "width": 9, "sha256": "1"},
    ... ]
    >>> audit = audit_index(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    >>> [item.kind for item in audit.findings if item.severity == "finding"]
    ['leak', 'one_class']
    """
    known = generators(index)
    if unknown := [name for name in train_generators if name not in known]:
        raise InvalidConfig(
            f"No generator is called {unknown[0]!r} in this index. There are: {', '.join(known)}."
        )
    if store is not None and store.description["index_sha256"] != index_sha256(index):
        raise StoreError(
            f"The store {store.path} was made from other images than this index (its index_sha256 differs). "
            "Give the index that it was extracted from, or extract this one with `causal-tune extract`."
        )
    role = row_roles(index, train_generators)
    content = content_numbers(index)
    exact, examples = find_matches(
        index, role, content, content, method="sha256", num_compared=len(np.unique(content))
    )
    found = _match_findings(exact, examples)
    matches = [exact]
    for near, near_examples in _near(index, role, content, store, pixels, min_cosine, max_compared, found):
        matches.append(near)
        found += _match_findings(near, near_examples)
    counts = _counts(index)
    unreadable, reasons = _unreadable(index, store, pixels)
    probes, bias = _probes(index, content, known)
    imbalance = _imbalance(index, role, train_generators)
    found += [*bias, *_one_class(counts), *imbalance, *unreadable, *_skipped(index)]
    return Audit(
        num_images=index.num_rows,
        train_generators=tuple(train_generators),
        counts=counts,
        unreadable=reasons,
        skipped=skipped_files(index),
        matches=tuple(matches),
        probes=probes,
        findings=tuple(sorted(found, key=lambda item: item.severity != "finding")),
    )


# --- matches ---------------------------------------------------------------------------------------------


def _deepest(layers: Iterable[str]) -> str:
    """The layer in which near copies are looked for: in shallow ones pictures of like textures are as near as copies.

    >>> _deepest(["cls@11", "cls@3", "mean@7"]), _deepest(["cls@11", "proj", "pre"])
    ('cls@11', 'proj')
    """
    return max(layers, key=lambda name: (name == "proj", int(name.partition("@")[2] or sys.maxsize)))


def _near(
    index: pa.Table,
    role: NDArray[np.int8],
    content: NDArray[np.int64],
    store: "FeatureStore | None",
    pixels: Mapping[str, PixelFacts] | None,
    min_cosine: float,
    max_compared: int,
    notes: list[Finding],
) -> list[tuple[Matches, Examples]]:
    """Near copies by every way there is; what is not looked at becomes a note."""
    numbers, first, number = np.unique(content, return_index=True, return_inverse=True)
    results = []
    if pixels is not None:
        paths = index["path"].take(pa.array(first)).to_pylist()
        hashes = [pixels[path].hash for path in paths]
        chosen = np.flatnonzero([value is not None for value in hashes])
        values = np.array([hashes[place] for place in chosen], dtype=np.uint64)
        group = linked(len(numbers), chosen[near_hashes(values, MAX_DISTANCE)])[number]
        results.append(
            find_matches(
                index, role, number, group, method="phash", threshold=MAX_DISTANCE, num_compared=len(chosen)
            )
        )
    if store is not None:
        stored = np.asarray(store.rows["row"])
        _, place = np.unique(number[stored], return_index=True)  # one row of the store for each content
        if len(place) > max_compared:
            notes.append(
                _note(
                    "not_checked",
                    f"Features were not compared: {len(place):,} distinct images make "
                    f"{len(place) ** 2 / 2:.1e} pairs.",
                    f"Near copies by features: `causal-tune audit INDEX --store {shlex.quote(str(store.path))} "
                    f"--max-compared {len(place)}`; the time grows with the square, 20,000 take seconds.",
                )
            )
        else:
            layer = _deepest(store.layers)
            links = near_features(store.features(layer, place), min_cosine)
            group = linked(len(numbers), number[stored[place]][links])[number]
            results.append(
                find_matches(
                    index, role, number, group, method="cosine", threshold=min_cosine, num_compared=len(place)
                )
            )
    if pixels is None and store is None:
        notes.append(
            _note(
                "not_checked",
                "Near copies were not looked for, and no pixels were decoded: an index has neither.",
                "`--decode` reads every image; `--store STORE` compares the features of an extracted one.",
            )
        )
    return results


_METHODS = {
    "sha256": "the same bytes",
    "phash": "nearly the same pixels (by perceptual hash)",
    "cosine": "nearly the same features",
}


def _match_findings(matches: Matches, examples: Examples) -> list[Finding]:
    exact = matches.method == "sha256"
    alike = _METHODS[matches.method]
    found = []
    if matches.num_leaks:
        places = [
            f"{item.training} and {item.judged} ({item.num_contents:,})" for item in matches.shared_places
        ]
        found.append(
            Finding(
                severity="finding",
                kind="leak" if exact else "near_leak",
                subject="",
                what=f"{plural(matches.num_leaks, 'picture')} that training sees {are(matches.num_leaks)} "
                f"also judged: {plural(matches.num_leaked_images, 'judged image')} with {alike} as training images, "
                f"in {listed(places)}.",
                next_step="Remove them from one side, or put all copies into one split (a CSV with the column "
                "`split`), and index again.",
                num_images=matches.num_leaked_images,
                examples=examples.leaks,
            )
        )
    if matches.num_both_labels:
        groups = f"{plural(matches.num_both_labels, 'group')} of images with {alike}"
        found.append(
            Finding(
                severity="finding" if exact else "note",
                kind="both_labels" if exact else "near_duplicates",
                subject="",
                what=f"{groups} {are(matches.num_both_labels)} labelled both real and generated.",
                next_step="Correct the labels, or remove these images: one content has one label."
                if exact
                else "Expected where images were generated from the real ones; otherwise check the labels.",
                num_images=examples.num_both_rows,
                examples=examples.both_labels,
            )
        )
    if matches.num_shared_reals:
        found.append(
            _note(
                "shared_reals",
                f"{plural(matches.num_shared_reals, 'real file')} {are(matches.num_shared_reals)} "
                f"shared by {listed(examples.sharing_generators)}.",
                "Nothing to mend. Their results are correlated: an average over these generators is less certain "
                "than its number of images suggests.",
                num_images=examples.num_shared_rows,
            )
        )
    if examples.num_others:
        found.append(
            Finding(
                severity="note",
                kind="duplicates" if exact else "near_duplicates",
                subject="",
                what=f"{plural(examples.num_others, 'group')} of images with {alike}, without a leak; "
                f"{examples.num_others_within:,} within one generator, split and class.",
                next_step="They count several times in every metric; keep one of each to be exact.",
                num_images=examples.num_other_rows,
                examples=examples.others,
            )
        )
    return found


# --- counts and files -------------------------------------------------------------------------------------


def _counts(index: pa.Table) -> tuple[Count, ...]:
    keys = ["generator", "split", "label", "format"]
    grouped = index.select(keys).group_by(keys).aggregate([([], "count_all")])
    rows = grouped.sort_by([(key, "ascending") for key in keys]).to_pylist()
    return tuple(Count(**{key: row[key] for key in keys}, num_images=row["count_all"]) for row in rows)


def _one_class(counts: Sequence[Count]) -> list[Finding]:
    numbers: Counter[tuple[str, int]] = Counter()
    for item in counts:
        numbers[item.generator, item.label] += item.num_images
    found = []
    for name in sorted({item.generator for item in counts}):
        for label, has, lacks in ((0, "generated", "real"), (1, "real", "generated")):
            if not numbers[name, label]:
                number = numbers[name, 1 - label]
                found.append(
                    Finding(
                        severity="finding",
                        kind="one_class",
                        subject=name,
                        what=f"{name} has {plural(number, f'{has} image')} and no {lacks} one: its average precision "
                        "is undefined.",
                        next_step=f"Add {lacks} images under the generator's name; real ones may be files that "
                        "other generators list too.",
                        num_images=number,
                    )
                )
    return found


def _imbalance(index: pa.Table, role: NDArray[np.int8], train_generators: Sequence[str]) -> list[Finding]:
    """The training set, where one class has `IMBALANCED` times the images of the other or more."""
    labels = index["label"].to_numpy()[role == TRAINING]
    numbers = {"real": int((labels == 0).sum()), "generated": int((labels == 1).sum())}
    rare, common = sorted(numbers, key=lambda name: numbers[name])
    if not numbers[rare] or numbers[common] < IMBALANCED * numbers[rare]:
        return []
    of = f" of {listed(list(train_generators))}" if train_generators else ""
    counted = f"{numbers['real']:,} real and {plural(numbers['generated'], 'generated image')}"
    if numbers[rare] < ENOUGH:
        remedy = f"Add {rare} images, to {ENOUGH} or more: {numbers[rare]:,} say little about others."
    else:
        remedy = f"Add {rare} images, or take fewer {common} ones: `causal-tune index ... --limit {numbers[rare]}`."
    return [
        Finding(
            severity="finding",
            kind="imbalance",
            subject=train_generators[0] if len(train_generators) == 1 else "",
            what=f"The training set{of} has {counted}, {numbers[common] / numbers[rare]:.0f} to 1. A head that counts "
            f"every image alike tends to call all of them {common}.",
            next_step=f"{remedy} Until then studies let either class count half, unless the search space sets "
            "`class_balance` to none.",
            num_images=len(labels),
        )
    ]


def _unreadable(
    index: pa.Table, store: "FeatureStore | None", pixels: Mapping[str, PixelFacts] | None
) -> tuple[list[Finding], dict[str, int]]:
    """Unreadable images by reason: the store's word, or the decoder's, or the index's."""
    if store is not None:
        bad = store.quarantine().to_pylist()
    elif pixels is not None:
        paths = index["path"].to_pylist()
        bad = [{"path": path, "reason": pixels[path].reason} for path in paths if pixels[path].reason]
    else:
        paths = index.filter(pc.is_null(index["width"]))["path"].to_pylist()
        bad = [{"path": path, "reason": _UNREADABLE_HEADER} for path in paths]
    if not bad:
        return [], {}
    reasons = Counter(_kind_of(str(item["reason"])) for item in bad)
    ordered = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    wanted = {str(item["path"]) for item in bad[:5]}
    rows = index.filter(pc.is_in(index["path"], pa.array(sorted(wanted))))
    columns = ["path", "label", "generator", "split"]
    finding = Finding(
        severity="finding",
        kind="unreadable",
        subject="",
        what=f"{plural(len(bad), 'image')} cannot be read: "
        + listed([f"{reason} ({number:,})" for reason, number in ordered.items()])
        + ".",
        next_step="Fetch or unpack these files again, or remove them; extraction quarantines them and goes on."
        + (" The reasons: add `--decode`." if store is None and pixels is None else ""),
        num_images=len(bad),
        examples=tuple((ImageRef(**row),) for row in rows.select(columns).slice(0, 5).to_pylist()),
    )
    return [finding], ordered


def _kind_of(reason: str) -> str:
    """A reason without what differs from file to file.

    >>> _kind_of("truncated JPEG: 1,234 bytes, the image data ends early")
    'truncated JPEG: the image data ends early'
    """
    return re.sub(r": begins with .*|(?<=: )[\d,]+ bytes, | \(\d+ x \d+\)", "", reason)


def _skipped(index: pa.Table) -> list[Finding]:
    skipped = skipped_files(index)
    chosen = {reason: number for reason, number in skipped.items() if is_chosen(reason)}
    others = {reason: number for reason, number in skipped.items() if reason not in chosen}
    notes = []
    if others:
        num_files = sum(others.values())
        notes.append(
            _note(
                "skipped",
                f"{plural(num_files, 'file')} under the roots {are(num_files)} no image of the index: "
                f"{_numbered(others)}.",
                "Rename what should be an image: the last suffix counts, and names must be UTF-8.",
            )
        )
    if chosen:
        num_images = sum(chosen.values())
        notes.append(
            _note(
                "skipped",
                f"{plural(num_images, 'image')} {'was' if num_images == 1 else 'were'} left out by the options of "
                f"the index: {_numbered(chosen)}.",
                "Nothing, if that is what you want; else make the index again with other options.",
            )
        )
    return notes


def _numbered(reasons: Mapping[str, int]) -> str:
    return listed([f"{reason} ({number:,})" for reason, number in sorted(reasons.items())])


# --- bias ------------------------------------------------------------------------------------------------


def _probes(
    index: pa.Table, content: NDArray[np.int64], known: Sequence[str]
) -> tuple[tuple[Probe, ...], list[Finding]]:
    """The probe of each generator and of all, and what they say in words."""
    readable = np.asarray(pc.is_valid(index["width"]))
    labels = index["label"].to_numpy().astype(np.int8)
    encoded = index["generator"].combine_chunks().dictionary_encode()
    place = encoded.indices.to_numpy()
    columns = columns_of(index)
    names: dict[str, list[Any]] = {
        name: index[name].combine_chunks().dictionary_encode().dictionary.to_pylist()
        for name in ("format", "mode")
    }
    by_name = {name: number for number, name in enumerate(encoded.dictionary.to_pylist())}
    probes: list[Probe] = []
    found: list[Finding] = []
    scopes = [*known, ""] if len(known) > 1 else list(known)
    for scope in scopes:
        member = readable if scope == "" else readable & (place == by_name[scope])
        rows = np.flatnonzero(member)
        # a file counts once: shared real images in several folds would be recognised by their size in bytes
        rows = rows[np.unique(2 * content[rows] + labels[rows], return_index=True)[1]]
        values = {name: column[rows] for name, column in columns.items()}
        result = probe(scope, values, labels[rows])
        probes.append(result)
        is_told = scope == "" and any(item.kind == "bias" for item in found)
        if result.joint is None:
            if scope and min(result.num_real, result.num_generated) > 0:
                found.append(
                    _note(
                        "too_few",
                        f"{scope}: no bias probe, {result.not_scored}.",
                        "Add images of it.",
                        subject=scope,
                    )
                )
        elif (finding := bias_finding(result, values, labels[rows], names)) is not None and not is_told:
            found.append(finding)
    if (note := resized_note([item for item in probes if item.scope])) is not None:
        found.append(note)
    return tuple(probes), found


def _note(kind: str, what: str, next_step: str, *, subject: str = "", num_images: int = 0) -> Finding:
    return Finding(
        severity="note", kind=kind, subject=subject, what=what, next_step=next_step, num_images=num_images
    )
