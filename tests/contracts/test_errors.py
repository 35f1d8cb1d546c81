"""The error tree: complete, drawn, and the same on both ends of a wire."""

import pickle
import re

import pytest

from wegeft.contracts import errors
from wegeft.contracts.errors import (
    ERROR_KINDS,
    ErrorBody,
    InvalidJob,
    JobNotFound,
    Problem,
    UnexpectedAnswer,
    WegeftError,
    error_from_body,
    shorten,
)


def _all_kinds(kind: type[WegeftError] = WegeftError) -> list[type[WegeftError]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in _all_kinds(sub))]


def test_every_code_is_unique_and_in_the_one_mapping() -> None:
    kinds = [kind for kind in _all_kinds() if kind.__module__.startswith("wegeft.contracts.")]
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert set(ERROR_KINDS.values()) == set(kinds)
    assert all("code" in vars(kind) for kind in kinds), "a class without its own code would hide behind its parent's"


def test_the_drawing_names_every_class_and_no_other() -> None:
    drawing = (errors.__doc__ or "").partition("A class's docstring")[0]
    drawn = set(re.findall(r"(?:^|[─·])\s*([A-Z]\w+)", drawing, re.MULTILINE))
    assert drawn - {"Every"} == {kind.__name__ for kind in ERROR_KINDS.values()}


@pytest.mark.parametrize("kind", ERROR_KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_message_of_its_own_and_sane_statuses(kind: type[WegeftError]) -> None:
    error = kind()
    assert kind.__doc__ != (kind.__base__.__doc__ if kind.__base__ else None)
    assert error.message
    assert not error.message.endswith(".")
    assert 400 <= kind.http_status <= 599
    assert kind.exit_status in {1, 2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("kind", ERROR_KINDS.values(), ids=lambda kind: kind.__name__)
def test_an_error_survives_the_wire_and_a_process_boundary(kind: type[WegeftError]) -> None:
    error = kind("it broke", problems=[Problem(path="a[0]", message="wrong", value="3", hint="write 4", line=2)])
    received = error_from_body(ErrorBody.model_validate_json(error.body("req-1").model_dump_json()))
    pickled = pickle.loads(pickle.dumps(error))
    for copy in (received, pickled):
        assert type(copy) is kind
        assert (copy.message, copy.problems) == (error.message, error.problems)


def test_an_unknown_code_becomes_the_nearest_kind_by_status() -> None:
    assert type(error_from_body(ErrorBody(code="teapot", title="", detail="x", status=404))).http_status == 404
    assert type(error_from_body(ErrorBody(code="teapot", title="", detail="x", status=418))) is UnexpectedAnswer


def test_a_problem_reads_as_one_line() -> None:
    problem = Problem(path="rank", message="must be a whole number", value="2.5", hint="write 2 or 3", line=7)
    assert str(problem) == "line 7: rank: must be a whole number (got 2.5); write 2 or 3"


def test_an_error_prints_all_its_problems() -> None:
    error = InvalidJob("2 problems", problems=[Problem(message="one"), Problem(path="x", message="two")])
    assert str(error) == "one\nx: two"
    assert str(JobNotFound(path="id", value="j-1")) == "id: There is no such job (got j-1)"


def test_a_long_value_is_shortened_to_one_line() -> None:
    assert shorten("a\n b") == "a b"
    assert len(shorten("x" * 1000)) == 120
    assert shorten(["a", 1]) == "['a', 1]"
