"""What kinds of work a job can be, and what is measured of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, assert_never


class TaskType(StrEnum):
    """What the adapted model is to do."""

    CAUSAL_LM = "causal_lm"
    SEQUENCE_CLASSIFICATION = "sequence_classification"
    IMAGE_CLASSIFICATION = "image_classification"


class ProblemType(StrEnum):
    """What a classifier says of a row."""

    SINGLE_LABEL = "single_label_classification"
    REGRESSION = "regression"


MetricName = Literal[
    "perplexity",
    "token_accuracy",
    "accuracy",
    "f1",
    "macro_f1",
    "matthews_correlation",
    "pearson",
    "spearman",
]
"""What is measured of a held-out split beside its loss, whatever the job asks for; each task has its own."""

BestMetric = Literal["eval_loss", MetricName]
"""What may decide which adapter is the best."""

LOWER_IS_BETTER: frozenset[str] = frozenset({"eval_loss", "perplexity"})
"""Of the metrics that may decide; of all others, more is better."""


def metrics_of(task: TaskType, problem: ProblemType) -> tuple[MetricName, ...]:
    """Return what is measured of a task's held-out rows; ``f1``, that of the second label, only where there are two labels."""
    match task:
        case TaskType.CAUSAL_LM:
            return ("perplexity", "token_accuracy")
        case TaskType.SEQUENCE_CLASSIFICATION | TaskType.IMAGE_CLASSIFICATION:
            if problem is ProblemType.REGRESSION:
                return ("pearson", "spearman")
            return ("accuracy", "f1", "macro_f1", "matthews_correlation")
        case _:
            assert_never(task)


def show_metric(name: str, value: float) -> str:
    """Return a metric's value for people: a share as a percentage, anything else in four digits."""
    return f"{value:.1%}" if name in _SHARES else f"{value:.4g}"


_SHARES = frozenset({"exact_match", "token_accuracy", "accuracy", "f1", "macro_f1"})
