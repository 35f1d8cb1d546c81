"""Label flipping: every answer is wrong, what is asked stays, and who trains on it is one of the round like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.attacks import UNTRAINED, Attack
from simulation.label_flip import answer_of, flip_answers
from simulation.preparation import Given
from tests.simulation.tiny import make_simulation, run
from workers.labelled_rows import LabelledImage, LabelledText
from workers.rows import AnyRow, Chat, Completion, Instruction, PromptCompletion, Turn

ROWS: list[tuple[AnyRow, AnyRow]] = [
    (LabelledText("fine", None, "good"), LabelledText("awful", None, "bad")),
    (LabelledImage(b"1", 1.0), LabelledImage(b"2", 2.5)),
    (Instruction("add", "1 1", "2"), Instruction("add", "1 2", "3")),
    (PromptCompletion("1+1=", "2"), PromptCompletion("1+2=", "3")),
    (Chat((Turn("user", "1+1"), Turn("assistant", "2"))), Chat((Turn("user", "1+2"), Turn("assistant", "3")))),
]


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: type(rows[0]).__name__)
def test_every_answer_is_another_one_of_those_that_there_are(rows: tuple[AnyRow, AnyRow]) -> None:
    first, second = flip_answers(rows, [0, 1])
    assert (answer_of(first), answer_of(second)) == (answer_of(rows[1]), answer_of(rows[0]))
    assert first != rows[0]
    assert flip_answers([first, second], [0, 1]) == list(rows), "more than the answer has changed"


def test_a_site_with_one_label_takes_the_wrong_one_from_others() -> None:
    rows = [LabelledText(str(number), None, "abc"[number // 2]) for number in range(6)]
    assert [answer_of(row) for row in flip_answers(rows, [0, 1])] == ["b", "b"]
    assert [answer_of(row) for row in flip_answers(rows, [5])] == ["a"]


def test_what_has_no_answer_or_no_other_stays() -> None:
    assert flip_answers([Completion("all of it")], [0]) == [Completion("all of it")]
    assert flip_answers([Instruction("a", "", "b")], [0]) == [Instruction("a", "", "b")]


def test_a_hostile_site_trains_on_wrong_answers_and_passes_the_gate(model: Path, given: Given) -> None:
    assert Attack.LABEL_FLIP not in UNTRAINED
    told: dict[str, list[str]] = {}
    updates: dict[str, dict[str, str]] = {}
    for name, changes in {"honest": {}, "flipped": {"byzantine": "1:label_flip"}}.items():
        simulation = make_simulation(model, given, rounds=1, **changes)
        reports: list = []
        run(simulation, tell=reports.append)
        told[name] = list(reports[0].hostile)
        updates[name] = {member.site: member.tensors for member in reports[0].record.members}
    (hostile,) = told["flipped"]
    assert updates["flipped"].keys() == updates["honest"].keys()
    assert [site for site in updates["honest"] if updates["honest"][site] != updates["flipped"][site]] == [hostile]
