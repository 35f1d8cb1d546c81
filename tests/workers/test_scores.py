"""Scores of classification and regression against their definitions, counted out slowly, and against values known from outside."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.tasks.scores import classification_scores, regression_scores

Pairs = st.integers(2, 4).flatmap(
    lambda labels: st.tuples(
        st.just(labels), st.lists(st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1)), min_size=1, max_size=30)
    )
)


@given(Pairs)
def test_classification_scores_are_what_they_are_defined_as(case: tuple[int, list[tuple[int, int]]]) -> None:
    """By counting rows, one label after the other; Matthews' as the correlation of the labels' indicators."""
    labels, pairs = case
    expected, predicted = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
    scores = classification_scores(expected, predicted, labels)
    assert scores["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    each = {}
    for label in {label for pair in pairs for label in pair}:
        right = sum(a == b == label for a, b in pairs)
        each[label] = 2 * right / (sum(a == label for a, _ in pairs) + sum(b == label for _, b in pairs))
    assert scores["macro_f1"] == pytest.approx(sum(each.values()) / len(each))
    assert ("f1" in scores) is (labels == 2)
    if labels == 2:
        assert scores["f1"] == pytest.approx(each.get(1, 0.0))

    def covariance(left: np.ndarray, right: np.ndarray) -> float:
        return sum(float(np.mean((left == k) * (right == k)) - np.mean(left == k) * np.mean(right == k)) for k in range(labels))

    spread = covariance(expected, expected) * covariance(predicted, predicted)
    wanted = covariance(expected, predicted) / math.sqrt(spread) if spread > 1e-12 else 0.0
    assert scores["matthews_correlation"] == pytest.approx(wanted, abs=1e-9)


def test_values_known_from_scikit_learn_and_scipy() -> None:
    """Computed once with scikit-learn 1.9.1 and SciPy 1.17.1."""
    expected, predicted = np.array([0, 1, 2, 2, 1, 0, 2]), np.array([0, 2, 2, 2, 1, 1, 0])
    scores = classification_scores(expected, predicted, 3)
    assert scores == pytest.approx({"accuracy": 0.5714285714285714, "macro_f1": 0.5555555555555555, "matthews_correlation": 0.34375})
    numbers = regression_scores(np.array([1.0, 2, 2, 4, 5]), np.array([0.5, 3, 1, 3, 9]))
    assert numbers == pytest.approx({"pearson": 0.8677861056817501, "spearman": 0.9210526315789475})


def test_what_says_the_same_of_every_row_correlates_with_nothing() -> None:
    """0, and never NaN, which no report may hold."""
    same = np.ones(4)
    assert regression_scores(same, np.arange(4.0)) == {"pearson": 0.0, "spearman": 0.0}
    for expected, predicted in itertools.product(([0, 0], [0, 1]), ([1, 1],)):
        assert classification_scores(np.array(expected), np.array(predicted), 2)["matthews_correlation"] == 0.0
