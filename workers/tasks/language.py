"""Language models: they learn to say answers, and are measured by how likely they find those, or by what they say themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_tasks import MetricName
from wegeft.contracts.training import Message, Sample
from workers.answer_loss import AnswerLoss
from workers.base_model import BaseModel
from workers.batches import BatchPlan, MicroBatch
from workers.evaluate import Answerer, held_out_score
from workers.layout import Layout, find_layout
from workers.matching import Matcher
from workers.preparation import Prepared, prepare
from workers.rows import Row
from workers.tasks.task import Answers, Check, Score


@dataclass(frozen=True, kw_only=True)
class LanguageTask:
    """A job of a causal language model."""

    spec: JobSpec
    tokenizer: Any
    prepared: Prepared
    plan: BatchPlan
    total_steps: int
    messages: tuple[Message, ...]

    @property
    def fingerprint(self) -> str:
        """See ``Task``."""
        return self.plan.fingerprint

    @property
    def held_out_rows(self) -> int:
        """See ``Task``."""
        return len(self.prepared.held_out)

    @property
    def has_answers(self) -> bool:
        """See ``Task``."""
        return bool(self.prepared.questions)

    def weight(self, rows: MicroBatch) -> int:
        """Return the answer tokens of training rows."""
        return sum(self.prepared.examples[row].answer_tokens for row in rows)

    def tokens(self, rows: MicroBatch) -> int:
        """Return the tokens of training rows, padding left aside."""
        return sum(len(self.prepared.examples[row].tokens) for row in rows)

    def begin(self, model: Any) -> LanguageLearner:
        """See ``Task``; raises ``InvalidJob`` if rows are to be packed and the model mixes them up."""
        loss = AnswerLoss(model)
        layout = find_layout(model, loss, self.prepared.examples + self.prepared.held_out)
        if self.spec.sample_packing:
            layout.require_packing(self.spec.micro_batch_size * self.spec.sequence_len)
        return LanguageLearner(self, model, loss, layout)


@dataclass(frozen=True)
class LanguageLearner:
    """A language model as it learns."""

    task: LanguageTask
    model: Any
    answer_loss: AnswerLoss
    layout: Layout

    def loss(self, rows: MicroBatch) -> Tensor:
        """Return the sum over the rows' answer tokens of −log p(token), in nats."""
        examples = [self.task.prepared.examples[row] for row in rows]
        return self.answer_loss(self.layout(examples, is_packed=self.task.spec.sample_packing))

    def measure(self, check: Check) -> Score:
        """Measure the held-out answers, token by token."""
        found = held_out_score(self.model, self.answer_loss, self.layout, self.task.prepared.held_out, check)
        metrics: dict[MetricName, float] = {"token_accuracy": found.token_accuracy}
        if found.loss < _LARGEST_EXPONENT:
            metrics["perplexity"] = math.exp(found.loss)
        return Score(loss=found.loss, metrics=metrics)

    def answer(self, check: Check) -> Answers:
        """Generate answers to the held-out questions and compare them with the expected ones."""
        questions, wanted = self.task.prepared.questions, self.task.spec.evaluation
        if not questions:
            return Answers()
        answerer = Answerer(self.model, self.task.tokenizer, wanted.max_new_tokens, self.layout.can_pack)
        answers = answerer.answer(questions, check)
        shown = zip(questions[: wanted.samples], answers, strict=False)
        samples = tuple(Sample(prompt=question.prompt, expected=question.expected, answer=text) for question, text in shown)
        return Answers(exact_match=Matcher(wanted).share(answers, [question.expected for question in questions]), samples=samples)


_LARGEST_EXPONENT = 700.0
"""Beyond it, ``exp`` is no float."""


def language_task(spec: JobSpec, base: BaseModel, rows: Sequence[Row], held_out_rows: Sequence[Row]) -> LanguageTask:
    """Return the job's rows as a language model reads them.

    Raises ``InvalidData`` or ``InvalidJob`` if they cannot be trained on, or answers cannot be compared as the job asks.
    """
    prepared = prepare(spec, base.tokenizer, rows, held_out_rows)
    Matcher(spec.evaluation).check([question.expected for question in prepared.questions])
    return LanguageTask(
        spec=spec,
        tokenizer=base.tokenizer,
        prepared=prepared,
        plan=prepared.plan,
        total_steps=prepared.total_steps,
        messages=prepared.messages,
    )
