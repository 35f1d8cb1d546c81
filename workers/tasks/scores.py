"""How well predictions fit what was expected: the measures of classification and of regression; pure, on whole numbers and floats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wegeft.contracts.job_tasks import MetricName

Places = NDArray[np.int64]
"""A label for each row, by its place among the labels."""
Numbers = NDArray[np.float64]


def classification_scores(expected: Places, predicted: Places, labels: int) -> dict[MetricName, float]:
    """Return the scores of one prediction a row; ``f1``, that of the second label, only where there are two labels."""
    counts = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(counts, (expected, predicted), 1)
    each = _f1_of_each(counts)
    is_seen = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    scores: dict[MetricName, float] = {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "macro_f1": float(each[is_seen].mean()),
        "matthews_correlation": _matthews(counts.astype(np.float64)),
    }
    return scores if labels != 2 else scores | {"f1": float(each[1])}


def _f1_of_each(counts: Places) -> Numbers:
    right = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1)
    scores: Numbers = np.divide(2.0 * right, either, out=np.zeros(len(counts)), where=either > 0)
    return scores


def _matthews(counts: Numbers) -> float:
    """Gorodkin's correlation of two labellings, 0 where one of them says the same of every row.

    Source: J. Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    total, right = counts.sum(), np.trace(counts)
    true, said = counts.sum(axis=1), counts.sum(axis=0)
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float((right * total - true @ said) / np.sqrt(spread)) if spread > 0 else 0.0


def regression_scores(expected: Numbers, predicted: Numbers) -> dict[MetricName, float]:
    """Return the correlations of the numbers and of their ranks, 0 where either side says the same of every row."""
    return {"pearson": _correlation(expected, predicted), "spearman": _correlation(_ranks(expected), _ranks(predicted))}


def _correlation(left: Numbers, right: Numbers) -> float:
    left, right = left - left.mean(), right - right.mean()
    spread = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(np.clip(left @ right / spread, -1.0, 1.0)) if spread > 0 else 0.0


def _ranks(values: Numbers) -> Numbers:
    """Return each value's place in order; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_place = last - (counts - 1) / 2
    ranks: Numbers = mean_place[which]
    return ranks
