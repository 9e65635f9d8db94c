"""Which rows of an index show the same picture, and which of those cross the line between training and judging.

Exact copies share a sha256. Near copies are links between distinct contents (`near_hashes`, `near_features`),
whose connected groups are treated alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from causal_tune.audit.findings import ImageRef, Matches, SharedPlaces
from causal_tune.images.entries import GENERATED, REAL

__all__ = [
    "JUDGED",
    "TRAINING",
    "UNUSED",
    "Examples",
    "content_numbers",
    "find_matches",
    "linked",
    "near_features",
    "near_hashes",
    "row_roles",
]

UNUSED, TRAINING, JUDGED = 0, 1, 2
"""What a row is used for."""

_MOST_EXAMPLES = 5
_MOST_ROWS = 3
_BLOCK = 1024
_COLUMNS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """A few groups of each kind, each as a few rows."""

    leaks: tuple[tuple[ImageRef, ...], ...]
    both_labels: tuple[tuple[ImageRef, ...], ...]
    others: tuple[tuple[ImageRef, ...], ...]
    """Copies that are none of the others."""
    num_others: int
    num_others_within: int
    """Of those, the groups that stay within one generator, split and class."""
    num_both_rows: int
    """Rows of groups with both labels."""
    num_other_rows: int
    num_shared_rows: int
    """Rows of shared real images."""
    sharing_generators: tuple[str, ...]


def row_roles(index: pa.Table, train_generators: Sequence[str] = ()) -> NDArray[np.int8]:
    """`UNUSED`, `TRAINING` or `JUDGED` for each row, int8 [n]; as `features.partition` uses them.

    With training generators: all their rows train or validate but those of split `test`; every other
    generator is judged by its rows that are not of split `train`, or by all where it has no others.
    Without: split `train` trains, `val` and `test` judge, and rows without a split are `UNUSED`.
    """
    split = _codes(index["split"])
    names = np.asarray(split.dictionary.to_pylist(), dtype=object)
    values = split.indices.to_numpy()

    def is_split(*wanted: str) -> NDArray[np.bool_]:
        chosen: NDArray[np.bool_] = np.isin(names, wanted)[values]
        return chosen

    role = np.full(index.num_rows, UNUSED, dtype=np.int8)
    if not train_generators:
        role[is_split("train")] = TRAINING
        role[is_split("val", "test")] = JUDGED
        return role
    generator = _codes(index["generator"])
    place = generator.indices.to_numpy()
    trains = np.isin(np.asarray(generator.dictionary.to_pylist(), dtype=object), list(train_generators))
    in_train = is_split("train")
    only_train = np.bincount(place, weights=~in_train, minlength=len(trains)) == 0
    role[trains[place] & ~is_split("test")] = TRAINING
    role[trains[place] & is_split("test")] = JUDGED
    role[~trains[place] & (~in_train | only_train[place])] = JUDGED
    return role


def content_numbers(index: pa.Table) -> NDArray[np.int64]:
    """A number for each row, int64 [n]: equal exactly where the bytes are.

    An unreadable file has a number of its own: that many downloads are empty says nothing about pictures.
    """
    encoded = _codes(index["sha256"])
    unreadable = np.asarray(pc.or_(pc.is_null(index["sha256"]), pc.is_null(index["width"])))
    codes = np.asarray(encoded.indices.fill_null(0)).astype(np.int64)
    codes[unreadable] = len(encoded.dictionary) + np.arange(unreadable.sum())
    return codes


def find_matches(
    index: pa.Table,
    role: NDArray[np.int8],
    content: NDArray[np.int64],
    group: NDArray[np.int64],
    *,
    method: Literal["sha256", "phash", "cosine"],
    threshold: float | None = None,
    num_compared: int,
) -> tuple[Matches, Examples]:
    """Groups of more than one row (`sha256`) or of more than one content (the other methods).

    `role`, `content`, `group` are [n], by row of `index`. A leak is a group that trains and is judged with
    one label; that exact copies do so is not counted again among the near ones.
    """
    exact = method == "sha256"
    members = np.arange(len(group)) if exact else np.unique(content, return_index=True)[1]
    sizes = np.bincount(group[members], minlength=int(group.max(initial=-1)) + 1)
    rows = np.flatnonzero(sizes[group] > 1)
    taken = index.select(["path", "label", "generator", "split"]).take(pa.array(rows))
    _, g = np.unique(group[rows], return_inverse=True)
    num_groups = int(g.max(initial=-1)) + 1
    label = taken["label"].to_numpy().astype(np.int64)
    use = role[rows]
    place, place_names = _places(taken)

    def any_of(
        mask: NDArray[np.bool_], keys: NDArray[np.int64] = g, num: int = num_groups
    ) -> NDArray[np.bool_]:
        return np.bincount(keys[mask], minlength=num) > 0

    key = 2 * g + label  # a group's rows of one label
    used = use != UNUSED
    leaking = any_of(use == TRAINING, key, 2 * num_groups) & any_of(use == JUDGED, key, 2 * num_groups)
    if not exact:
        leaking &= _num_distinct(key[used], content[rows][used], 2 * num_groups) > 1
    both = any_of(label == REAL) & any_of(label == GENERATED)
    path = _codes(taken["path"]).indices.to_numpy()
    num_places = _num_distinct(g, 2 * place + label, num_groups)
    shared = (
        np.full(num_groups, exact) & ~both & any_of(label == REAL) & (_num_distinct(g, path, num_groups) == 1)
    )
    leaking_groups: NDArray[np.bool_] = np.logical_or(leaking[::2], leaking[1::2])
    others: NDArray[np.bool_] = ~(both | leaking_groups | shared)
    is_leaked = leaking[key]

    def examples(mask: NDArray[np.bool_]) -> tuple[tuple[ImageRef, ...], ...]:
        return tuple(
            _references(taken, np.flatnonzero(g == number), use, label)
            for number in np.flatnonzero(mask)[:_MOST_EXAMPLES]
        )

    matches = Matches(
        method=method,
        threshold=threshold,
        num_compared=num_compared,
        num_groups=num_groups,
        num_images=len(rows),
        num_shared_reals=int(shared.sum()),
        num_both_labels=int(both.sum()),
        num_leaks=int(leaking.sum()),
        num_leaked_images=int((is_leaked & (use == JUDGED)).sum()),
        shared_places=_shared_places(key, place, place_names, is_leaked, use),
    )
    sharing = np.unique(taken["generator"].to_numpy(zero_copy_only=False)[shared[g]])
    return matches, Examples(
        leaks=examples(leaking_groups),
        both_labels=examples(both),
        others=examples(others),
        num_others=int(others.sum()),
        num_others_within=int((others & (num_places == 1)).sum()),
        num_both_rows=int(both[g].sum()),
        num_other_rows=int(others[g].sum()),
        num_shared_rows=int(shared[g].sum()),
        sharing_generators=tuple(str(name) for name in sharing),
    )


def linked(num_contents: int, links: NDArray[np.int64]) -> NDArray[np.int64]:
    """The connected group of each content, int64 [num_contents], given `links` [m, 2] between contents."""
    ones = np.ones(len(links), dtype=np.int8)
    graph = sparse.coo_array((ones, (links[:, 0], links[:, 1])), shape=(num_contents, num_contents))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def near_hashes(hashes: NDArray[np.uint64], max_distance: int) -> NDArray[np.int64]:
    """Links [m, 2] that connect all hashes [n] which differ in at most `max_distance` bits.

    The 64 bits are cut into `max_distance + 2` bands. Two hashes that differ in so few bits agree in at
    least two of them, so only those equal in some pair of bands are compared: sorting, and few comparisons.

    >>> near_hashes(np.array([0, 2**63 - 1, 5], dtype=np.uint64), 2)
    array([[0, 2]])
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    links = [_fewest_links(inverse)]
    edges = np.linspace(0, 64, max_distance + 3).astype(int)
    bands = [(1 << int(end)) - (1 << int(start)) for start, end in pairwise(edges)]
    for one, other in combinations(bands, 2):
        key = unique & np.uint64(one | other)
        order = np.argsort(key, kind="stable")
        key, value = key[order], unique[order]
        start = np.arange(len(order))
        for step in range(1, len(order)):  # as many steps as the largest bucket has hashes
            start = start[start + step < len(order)]
            start = start[key[start] == key[start + step]]
            if not len(start):
                break
            near = start[np.bitwise_count(value[start] ^ value[start + step]) <= max_distance]
            links.append(np.stack([first[order[near]], first[order[near + step]]], axis=1))
    return np.unique(np.sort(np.concatenate(links), axis=1), axis=0).astype(np.int64)


def near_features(features: NDArray[np.float32], min_cosine: float) -> NDArray[np.int64]:
    """Links [m, 2] that connect all rows of `features` [n, d] whose cosine is at least `min_cosine`.

    n^2 d multiplications in float32 blocks of at most 1024 x 8192. Memory does not grow with n^2, even where
    all are alike: many links are replaced by a few that connect the same rows.

    >>> near_features(np.array([[1, 0], [0, 1], [2, 0.01]], dtype=np.float32), 0.999)
    array([[0, 2]])
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    units = features / np.maximum(norms, np.finfo(np.float32).tiny)
    found = np.empty((0, 2), dtype=np.int64)
    for top in range(0, len(units), _BLOCK):
        for left in range(top, len(units), _COLUMNS):
            cosines = units[top : top + _BLOCK] @ units[left : left + _COLUMNS].T
            pairs = np.argwhere(cosines >= min_cosine) + np.array([top, left])
            found = np.concatenate([found, pairs[pairs[:, 0] < pairs[:, 1]]])
            if len(found) > 4 * len(units):
                found = _fewest_links(linked(len(units), found))
    return found


def _fewest_links(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Links [m, 2] that connect each group, given by its number for each of n rows: its first row to the others."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rest = np.setdiff1d(np.arange(len(groups)), first)
    return np.stack([first[inverse[rest]], rest], axis=1)


def _codes(column: pa.ChunkedArray) -> pa.DictionaryArray:
    encoded = column.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # no rows, or too many bytes for one chunk
        encoded = pa.concat_arrays(encoded.chunks) if encoded.num_chunks else pa.array([], column.type)
    return encoded.dictionary_encode()


def _num_distinct(keys: NDArray[np.int64], values: NDArray[np.int64], num_keys: int) -> NDArray[np.int64]:
    """How many distinct `values` each key has, int64 [num_keys]."""
    pairs = np.unique(keys * (int(values.max(initial=0)) + 1) + values)
    counts: NDArray[np.int64] = np.bincount(pairs // (int(values.max(initial=0)) + 1), minlength=num_keys)
    return counts


def _places(rows: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    """The number of each row's (generator, split), and their names."""
    generator, split = _codes(rows["generator"]), _codes(rows["split"])
    num_splits = max(1, len(split.dictionary))
    place = generator.indices.to_numpy().astype(np.int64) * num_splits + split.indices.to_numpy()
    names = [
        f"{name}/{part or '(no split)'}"
        for name in generator.dictionary.to_pylist()
        for part in split.dictionary.to_pylist()
    ]
    return place, names


def _shared_places(
    key: NDArray[np.int64],
    place: NDArray[np.int64],
    names: list[str],
    is_leaked: NDArray[np.bool_],
    use: NDArray[np.int8],
) -> tuple[SharedPlaces, ...]:
    if not is_leaked.any():
        return ()
    shape = (int(key.max()) + 1, len(names))
    tables = []
    for wanted in (TRAINING, JUDGED):
        chosen = is_leaked & (use == wanted)
        pairs = np.unique(np.stack([key[chosen], place[chosen]]), axis=1)
        tables.append(sparse.csr_array((np.ones(pairs.shape[1], dtype=np.int64), tuple(pairs)), shape=shape))
    together = (tables[0].T @ tables[1]).tocoo()
    found = [
        SharedPlaces(training=names[training], judged=names[judged], num_contents=int(number))
        for training, judged, number in zip(*together.coords, together.data, strict=True)
    ]
    return tuple(sorted(found, key=lambda item: (-item.num_contents, item.training, item.judged)))


def _references(
    rows: pa.Table, members: NDArray[np.int64], use: NDArray[np.int8], label: NDArray[np.int64]
) -> tuple[ImageRef, ...]:
    """A few rows of one group: each role and label first."""
    _, first = np.unique(np.stack([use[members], label[members]]), axis=1, return_index=True)
    others = np.setdiff1d(np.arange(len(members)), first)
    chosen = members[np.concatenate([first, others])[: max(len(first), _MOST_ROWS)]]
    return tuple(ImageRef(**row) for row in rows.take(pa.array(np.sort(chosen))).to_pylist())
