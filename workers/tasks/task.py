"""What the loop asks of a kind of work: rows made ready, and a model that learns from them and is measured on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from wegeft.contracts.job_tasks import MetricName
from wegeft.contracts.training import Message, Sample
from workers.batches import BatchPlan, MicroBatch

Check = Callable[[], None]
"""Runs between batches, and may raise to stop."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a model does on the held-out rows."""

    loss: float
    """Mean over what is learnt in them."""
    metrics: dict[MetricName, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says of the held-out rows."""

    exact_match: float | None = None
    """Share of generated answers that match; None where none are asked for."""
    samples: tuple[Sample, ...] = ()


class Learner(Protocol):
    """A model with an adapter, as it learns one task's rows."""

    def loss(self, rows: MicroBatch) -> Tensor:
        """Return the sum of the loss over what is learnt in these training rows, float32, with its graph."""

    def measure(self, check: Check) -> Score:
        """Measure the held-out rows; neither the model's mode nor torch's random state is changed."""

    def answer(self, check: Check) -> Answers:
        """Answer held-out rows, which may cost far more than measuring them."""


class Task(Protocol):
    """A job's rows, ready to be learnt. One class a kind of work; the loop knows none of them."""

    @property
    def plan(self) -> BatchPlan:
        """Which rows make up which step."""

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides what is learnt when; a checkpoint of another one must not be resumed."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What a person should know about the data."""

    @property
    def held_out_rows(self) -> int:
        """Rows to measure; none is measured where there are none."""

    @property
    def has_answers(self) -> bool:
        """Whether held-out rows are answered, before the first step and after the last."""

    def weight(self, rows: MicroBatch) -> int:
        """Return how many things are learnt in training rows: what a mean loss is a mean over."""

    def tokens(self, rows: MicroBatch) -> int:
        """Return how many tokens, or patches of images, the model reads in training rows."""

    def begin(self, model: Any) -> Learner:
        """Return the model, adapted, as it learns these rows."""
