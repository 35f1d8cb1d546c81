"""Classifiers: they learn one label, or one number, of each row; what a row is, its inputs know."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidJob
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import Message, Sample
from workers.batches import BatchPlan, MicroBatch, batches_within
from workers.evaluate import evaluating
from workers.tasks.scores import classification_scores, regression_scores
from workers.tasks.task import Answers, Check, Score

_TOKENS_AT_ONCE = 8192
"""Of one batch that is measured, padding included."""


class Inputs(Protocol):
    """Rows of one split, as a model reads them."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens, or patches, of each row."""

    def __call__(self, rows: Sequence[int], model: Any) -> dict[str, Tensor]:
        """Return what ``model`` takes for these rows, on its device and in its precision."""

    def show(self, row: int) -> str:
        """Return a row as text, for people to read."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of one split, and what is to be said of each."""

    inputs: Inputs
    targets: NDArray[np.int64] | NDArray[np.float64]
    """The place of its label, or the number."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """A job of a classifier."""

    spec: JobSpec
    labels: tuple[str, ...]
    """None of them in a regression."""
    train: Split
    held_out: Split | None
    notes: tuple[Message, ...] = ()
    """On how rows became inputs."""

    @property
    def plan(self) -> BatchPlan:
        """See ``Task``."""
        return BatchPlan(self.train.inputs.lengths, self.spec.micro_batch_size, self.spec.accumulation_steps, self.spec.seed)

    @property
    def fingerprint(self) -> str:
        """See ``Task``."""
        known = (self.plan.fingerprint, self.labels, self.train.targets.tolist())
        return hashlib.sha256(repr(known).encode()).hexdigest()

    @property
    def total_steps(self) -> int:
        """See ``Task``."""
        return self.plan.total_steps(self.spec.num_epochs, self.spec.max_steps)

    @property
    def messages(self) -> tuple[Message, ...]:
        """See ``Task``."""
        held = f"; {len(self.held_out):,} rows held out" if self.held_out else ""
        return (Message(text=f"{len(self.train):,} rows to train on{held}"), *self.notes, *self._label_messages())

    def _label_messages(self) -> tuple[Message, ...]:
        if not self.labels:
            return ()
        counts = Counter(self.train.targets.tolist())
        told = [f"{name} ({counts[place]:,})" for place, name in enumerate(self.labels)]
        absent = [name for place, name in enumerate(self.labels) if not counts[place]]
        messages = [Message(text=f"{len(told)} labels, with their training rows: {_listed(told)}")]
        if absent:
            messages.append(Message(level="warning", text=f"no row to train on has these labels: {_listed(absent)}"))
        return tuple(messages)

    @property
    def held_out_rows(self) -> int:
        """See ``Task``."""
        return len(self.held_out) if self.held_out else 0

    @property
    def has_answers(self) -> bool:
        """See ``Task``."""
        return self.held_out is not None and self.spec.evaluation.samples > 0

    def weight(self, rows: MicroBatch) -> int:
        """Return the number of rows."""
        return len(rows)

    def tokens(self, rows: MicroBatch) -> int:
        """Return the tokens or patches of training rows, padding left aside."""
        return sum(self.train.inputs.lengths[row] for row in rows)

    def begin(self, model: Any) -> ClassificationLearner:
        """See ``Task``."""
        return ClassificationLearner(self, model)


@dataclass(frozen=True)
class ClassificationLearner:
    """A classifier as it learns."""

    task: ClassificationTask
    model: Any

    def loss(self, rows: MicroBatch) -> Tensor:
        """Return the sum over the rows of −log p(label), in nats, or of squared differences."""
        return self._loss(self._say(self.task.train, rows), self.task.train, rows)

    def measure(self, check: Check) -> Score:
        """Measure what the classifier says of every held-out row."""
        split = self.task.held_out
        assert split is not None  # noqa: S101 - the loop measures only where rows are held out
        said = np.zeros(len(split))
        total = 0.0
        with evaluating(self.model):
            for rows in batches_within(split.inputs.lengths, _TOKENS_AT_ONCE):
                check()
                outputs = self._say(split, rows)
                total += self._loss(outputs, split, rows).item()
                said[rows] = self._chosen(outputs)
        # Where the loss is no number, neither is what was said, and the loop ends the job for the loss.
        return Score(loss=total / len(split), metrics=self._scores(split, said) if math.isfinite(total) else {})

    def answer(self, check: Check) -> Answers:
        """Tell what the classifier says of a few held-out rows from all over the split, which may be sorted by label."""
        split = self.task.held_out
        rows = len(split) if split else 0
        count = min(self.task.spec.evaluation.samples, rows)
        shown = [number * rows // count for number in range(count)]
        if split is None or not shown:
            return Answers()
        check()
        with evaluating(self.model):
            said = self._chosen(self._say(split, shown))
        pairs = zip(shown, said, strict=True)
        samples = (
            Sample(prompt=split.inputs.show(row), expected=self._name(split.targets[row]), answer=self._name(told)) for row, told in pairs
        )
        return Answers(samples=tuple(samples))

    def _say(self, split: Split, rows: Sequence[int]) -> Tensor:
        """Return rows×outputs, float32."""
        outputs: Tensor = self.model(**split.inputs(rows, self.model)).logits
        return outputs.float()

    def _loss(self, outputs: Tensor, split: Split, rows: Sequence[int]) -> Tensor:
        targets = torch.from_numpy(split.targets[list(rows)]).to(outputs.device)
        if self.task.labels:
            return nn.functional.cross_entropy(outputs, targets, reduction="sum")
        return nn.functional.mse_loss(outputs[:, 0], targets.float(), reduction="sum")

    def _chosen(self, outputs: Tensor) -> NDArray[np.float64]:
        chosen = outputs.argmax(dim=-1) if self.task.labels else outputs[:, 0]
        return chosen.detach().cpu().numpy().astype(np.float64)

    def _scores(self, split: Split, said: NDArray[np.float64]) -> dict[Any, float]:
        if self.task.labels:
            return dict(classification_scores(split.targets.astype(np.int64), said.astype(np.int64), len(self.task.labels)))
        return dict(regression_scores(split.targets.astype(np.float64), said))

    def _name(self, target: float) -> str:
        return self.task.labels[int(target)] if self.task.labels else f"{target:.4g}"


def check_best_metric(spec: JobSpec, labels: tuple[str, ...]) -> None:
    """Raise ``InvalidJob`` if the job goes by ``f1`` and there are not two labels."""
    if spec.metric_for_best_model == "f1" and len(labels) != 2:
        hint = "use macro_f1"
        raise InvalidJob(f"f1 is that of two labels, and there are {len(labels)}", path="metric_for_best_model", value="f1", hint=hint)


def _listed(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
