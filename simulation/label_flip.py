"""Label flipping: a hostile site that trains honestly, on rows whose answers are wrong (Tolpegin et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from workers.labelled_rows import Label, LabelledImage, LabelledText
from workers.rows import AnyRow, Chat, Completion, Instruction, PromptCompletion


def flip_answers(rows: Sequence[AnyRow], numbers: Sequence[int]) -> list[AnyRow]:
    """Return the rows of these ``numbers``, each with the answer that comes next among all rows' different ones, the last with the first.

    So every answer is wrong, each in the same way wherever it stands, as far as there are two; of a chat, the last one. A text that is
    learnt as a whole has no answer and stays.
    """
    answers = sorted({answer for row in rows if (answer := answer_of(row)) is not None}, key=lambda answer: (str(type(answer)), answer))
    following = dict(zip(answers, [*answers[1:], *answers[:1]], strict=True))
    return [_with_answer(rows[number], following) for number in numbers]


def answer_of(row: AnyRow) -> Label | None:
    """Return what a row teaches to answer; None where it is one text."""
    match row:
        case Chat():
            return row.turns[-1].content
        case Instruction():
            return row.output
        case PromptCompletion():
            return row.completion
        case LabelledText() | LabelledImage():
            return row.label
        case Completion():
            return None
        case _:
            assert_never(row)


def _with_answer(row: AnyRow, following: dict[Label, Label]) -> AnyRow:
    answer = answer_of(row)
    if answer is None:
        return row
    other = following[answer]
    match row:
        case Chat():
            return Chat((*row.turns[:-1], replace(row.turns[-1], content=str(other))))
        case Instruction():
            return replace(row, output=str(other))
        case PromptCompletion():
            return replace(row, completion=str(other))
        case LabelledText() | LabelledImage():
            return replace(row, label=other)
        case Completion():
            return row
        case _:
            assert_never(row)
