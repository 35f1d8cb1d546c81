"""From rows to everything that a language model reads: tokens, questions, and the plan of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wegeft.contracts.errors import InvalidData
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import Message
from workers.batches import BatchPlan
from workers.rendering import Renderer
from workers.rows import Row
from workers.tokenization import Encoding, Example, Question, Rules, encode, questions_of


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run reads."""

    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    """Empty where nothing is measured."""
    questions: tuple[Question, ...]
    """Empty where no answers are generated."""
    plan: BatchPlan
    total_steps: int
    messages: tuple[Message, ...]
    """What a person should know about the data."""


def prepare(spec: JobSpec, tokenizer: Any, train_rows: Sequence[Row], held_out_rows: Sequence[Row]) -> Prepared:
    """Return what a run of ``spec`` reads.

    Raises ``InvalidData`` or ``InvalidJob`` if the rows cannot be trained on.
    """
    renderer = Renderer(tokenizer, None if spec.chat_template == "tokenizer" else spec.chat_template)
    rules = Rules(sequence_len=spec.sequence_len, excess=spec.excess_length_strategy, learns_inputs=spec.train_on_inputs)
    encoding, measured = _encode_both(train_rows, held_out_rows, renderer, rules)
    questions = questions_of(held_out_rows, renderer, spec.evaluation.max_rows) if spec.evaluation.exact_match else ()
    if spec.evaluation.exact_match and not questions:
        raise InvalidData("the held-out rows have no questions to answer", path="evaluation.exact_match", hint="they are plain texts")
    lengths = tuple(len(example.tokens) for example in encoding.examples)
    capacity = spec.sequence_len if spec.sample_packing else None
    plan = BatchPlan(lengths, spec.micro_batch_size, spec.accumulation_steps, spec.seed, capacity)
    return Prepared(
        examples=encoding.examples,
        held_out=measured.examples if measured else (),
        questions=questions,
        plan=plan,
        total_steps=plan.total_steps(spec.num_epochs, spec.max_steps),
        messages=(*_messages(spec, encoding, measured), *_packing_messages(plan)),
    )


def _encode_both(
    train_rows: Sequence[Row], held_out_rows: Sequence[Row], renderer: Renderer, rules: Rules
) -> tuple[Encoding, Encoding | None]:
    """Encode both splits, so that the problems of both are told at once."""
    problems: list[InvalidData] = []
    encodings: list[Encoding] = []
    for rows, where in ((train_rows, "datasets"), (held_out_rows, "test_datasets")):
        if not rows and where == "test_datasets":
            continue
        try:
            encodings.append(encode(rows, renderer, rules, where))
        except InvalidData as error:
            problems.append(error)
    if problems:
        all_problems = [problem for error in problems for problem in error.problems]
        raise InvalidData("; ".join(error.message for error in problems), problems=all_problems)
    return encodings[0], encodings[1] if len(encodings) > 1 else None


def _messages(spec: JobSpec, encoding: Encoding, measured: Encoding | None) -> tuple[Message, ...]:
    rows = f"{len(encoding.examples):,} rows to train on: {encoding.tokens:,} tokens, of which {encoding.answer_tokens:,} are learnt"
    held = f"; {len(measured.examples):,} rows held out" if measured else ""
    messages = [Message(text=rows + held)]
    for split, where in ((encoding, "training"), (measured, "held-out")):
        if split and split.truncated:
            text = f"{split.truncated:,} {where} rows were cut to {spec.sequence_len:,} tokens (sequence_len)"
            messages.append(Message(level="warning", text=text))
        if split and split.dropped:
            text = f"{split.dropped:,} {where} rows were left out: no answer within {spec.sequence_len:,} tokens (sequence_len)"
            messages.append(Message(level="warning", text=text))
    return tuple(messages)


def _packing_messages(plan: BatchPlan) -> Iterator[Message]:
    if plan.sequence_len is not None:
        share = sum(plan.lengths) / (plan.sequences * plan.sequence_len)
        yield Message(text=f"packed into {plan.sequences:,} sequences of up to {plan.sequence_len:,} tokens, {share:.0%} full")
