"""Parts that hang, asked again and again: the question is answered, and one thread waits."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from infra.readiness import PartGauges, Question, Readiness
from wegeft.contracts.errors import StorageUnavailable


def fine() -> None:
    """A part that works."""


def down() -> None:
    raise StorageUnavailable("the folder is gone")


def test_each_part_says_what_is_wrong() -> None:
    readiness = Readiness({"a": fine, "b": down, "c": lambda: {}["x"]})  # type: ignore[dict-item, index, return-value]
    problems = anyio.run(readiness.problems)
    assert [(problem.path, problem.message) for problem in problems] == [("b", "the folder is gone"), ("c", "KeyError")]
    registry = CollectorRegistry()
    registry.register(PartGauges(readiness))
    lines = {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}
    assert lines == {'wegeft_part_up{part="a"} 1.0', 'wegeft_part_up{part="b"} 0.0', 'wegeft_part_up{part="c"} 0.0'}


def test_a_part_that_hangs_holds_one_thread() -> None:
    """However often it is asked; and once it answers, it is asked anew."""
    may_go_on, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        assert may_go_on.wait(30)

    readiness = Readiness({"slow": hang, "fine": fine}, answer_seconds=0.05)
    for _ in range(5):
        assert [problem.message for problem in anyio.run(readiness.problems)] == ["no answer within 0.05 s"]
        assert readiness.states() == {"slow": False, "fine": True}
    assert len(asked) == 1
    may_go_on.set()
    while anyio.run(readiness.problems):
        pass
    assert readiness.states() == {"slow": True, "fine": True}


@pytest.mark.parametrize("ask", [lambda: 7, lambda: 1 // 0])
def test_an_answer_is_whatever_comes(ask: Callable[[], int]) -> None:
    question = Question(ask)
    error = question.begin().exception(30)
    assert isinstance(error, ZeroDivisionError) if error else question.begin().result(30) == 7
