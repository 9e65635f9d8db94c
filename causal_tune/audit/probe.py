"""The bias probe: can real be told from generated without looking at a single pixel?

A detector that is trained on JPEG photographs and PNG fakes learns to tell JPEG from PNG (Grommelt et al., 2024,
"Fake or JPEG?", arXiv 2403.17608). So a classifier that sees only what the index says of a file - size, format,
JPEG quality, mode, bytes - is trained and tested in stratified folds, on each property alone and on all of them.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import sklearn
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.tree import DecisionTreeClassifier

from causal_tune.audit.findings import Probe, Score
from causal_tune.images.decode import CROP_SIZE

__all__ = ["ALARM", "FEATURES", "MIN_CLASS", "columns_of", "probe"]

FEATURES = ("format", "jpeg_quality", "mode", "width", "height", "bytes")
"""What the probe sees, in the order in which a shortcut is named where several are equally good."""

ALARM = 0.6
"""Average precision, both classes weighted equally, above which a shortcut is reported."""

MIN_CLASS = 20
"""Images a class needs to be probed: with fewer, chance alone passes `ALARM` too often to say anything."""

_MAX_CLASS = 1000
"""Images a class that are looked at: enough to measure an average precision to about 0.02."""

_FALSE_ALARMS = 0.0005
"""Chance that a fair set raises any alarm, over all scores of one scope (Bonferroni)."""

_NUM_FOLDS = 5
_SEED = 0


def columns_of(index: pa.Table) -> dict[str, NDArray[np.float64]]:
    """The properties of each row, float64 [n] by name; formats and modes as numbers, NaN for missing ones."""
    columns = {}
    for name in FEATURES:
        column = index[name].combine_chunks() if index.num_rows else pa.array([], index[name].type)
        if pa.types.is_string(column.type):
            column = column.dictionary_encode().indices
        columns[name] = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    return columns


def probe(scope: str, columns: Mapping[str, NDArray[np.float64]], labels: NDArray[np.int8]) -> Probe:
    """Probe one set: `columns` of `columns_of` and `labels` (1 generated), [n] each, without repeated files.

    An alarm needs two things: an average precision above `ALARM` after both classes are given the same
    weight (a set of 90% generated images has 0.9 by chance otherwise), and an area under the ROC curve
    that chance reaches less often than once in 200 sets (normal approximation of Mann and Whitney's).

    >>> rng = np.random.default_rng(0)
    >>> files = {name: np.zeros(80) for name in FEATURES} | {"bytes": rng.normal(size=80)}
    >>> labels = np.repeat([0, 1], 40).astype(np.int8)
    >>> probe("fair", files, labels).alarming
    ()
    >>> probe("trap", files | {"format": labels.astype(float)}, labels).alarming[0].feature
    'format'
    """
    num_real, num_generated = int((labels == 0).sum()), int((labels == 1).sum())
    resized = np.minimum(columns["width"], columns["height"]) < CROP_SIZE
    rows = _sample(labels)
    varying = [name for name in FEATURES if _varies(columns[name][rows])]
    reason = ""
    if min(num_real, num_generated) < MIN_CLASS:
        reason = (
            f"{num_real:,} real and {num_generated:,} generated images are too few to probe; "
            f"{MIN_CLASS} of each are needed"
        )
    elif not varying:
        reason = (
            "all files have the same size, format, quality, mode and bytes: there is nothing to tell apart"
        )
    scores: list[Score] = []
    joint = None
    if not reason:
        truth = labels[rows]
        least_auc = _least_auc(truth, num_scores=len(varying) + 1)
        # a missing value is a value: PNG has no JPEG quality
        values = {name: np.nan_to_num(columns[name][rows], nan=-1) for name in varying}
        for name in varying:
            tree = DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=5, random_state=_SEED)
            scores.append(_score(name, tree, values[name][:, None], truth, least_auc))
        trees = GradientBoostingClassifier(
            n_estimators=12, learning_rate=0.5, min_samples_leaf=5, random_state=_SEED
        )
        joint = _score("all together", trees, np.stack(list(values.values()), axis=1), truth, least_auc)
    return Probe(
        scope=scope,
        num_real=num_real,
        num_generated=num_generated,
        num_probed=0 if reason else len(rows),
        prevalence=None if reason else float(labels[rows].mean()),
        num_real_resized=int((resized & (labels == 0)).sum()),
        num_generated_resized=int((resized & (labels == 1)).sum()),
        scores=tuple(scores),
        joint=joint,
        not_scored=reason,
    )


def _sample(labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """Rows to look at: all of a class, or a seeded sample of `_MAX_CLASS`."""
    rng = np.random.default_rng(_SEED)
    chosen = []
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        if len(rows) > _MAX_CLASS:
            rows = np.sort(rng.choice(rows, _MAX_CLASS, replace=False))
        chosen.append(rows)
    return np.concatenate(chosen)


def _varies(values: NDArray[np.float64]) -> bool:
    missing = np.isnan(values)
    return bool(len(values)) and not (missing.all() or (not missing.any() and values.min() == values.max()))


def _least_auc(labels: NDArray[np.int8], num_scores: int) -> float:
    """The AUC that chance exceeds with probability `_FALSE_ALARMS` in any of `num_scores` scores."""
    num_generated = int(labels.sum())
    num_real = len(labels) - num_generated
    deviation = np.sqrt((len(labels) + 1) / (12 * num_real * num_generated))
    return float(0.5 + norm.isf(_FALSE_ALARMS / num_scores) * deviation)


def _score(
    name: str,
    classifier: DecisionTreeClassifier | GradientBoostingClassifier,
    values: NDArray[np.float64],
    labels: NDArray[np.int8],
    least_auc: float,
) -> Score:
    scores = np.empty(len(labels))
    folds = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=_SEED)
    # its checks of the arguments take longer than the work
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for train, test in folds.split(values, labels):
            scores[test] = classifier.fit(values[train], labels[train]).predict_proba(values[test])[:, 1]
    share = labels.mean()
    weights = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    # a sum of steps can exceed 1 by its rounding
    balanced = min(1.0, float(average_precision_score(labels, scores, sample_weight=weights)))
    auc = min(1.0, float(roc_auc_score(labels, scores)))
    return Score(
        feature=name,
        ap=min(1.0, float(average_precision_score(labels, scores))),
        ap_balanced=balanced,
        auc=auc,
        is_alarming=balanced > ALARM and auc > least_auc,
    )
