"""When a generated answer counts as the expected one: as the papers' own evaluations have it, and whatever an expression does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wegeft.contracts.errors import InvalidData
from wegeft.contracts.job import EvaluationSpec
from workers.matching import Matcher


def matcher(**fields: Any) -> Matcher:
    return Matcher(EvaluationSpec.model_validate_json(json.dumps({"exact_match": True, **fields})))


def test_white_space_around_an_answer_does_not_count() -> None:
    """And nothing else is forgiven."""
    assert matcher().share(["4 2", " a ", "B"], [" 4 2\n", "a", "b"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("given", "expected", "is_match"),
    [
        ("so it is 3 + 4 = 7.", "7", True),
        ("1,234 apples", "#### 1234", True),
        ("about -2.5", "-2.5004", True),
        ("about 2.5", "2.502", False),
        ("none", "7", False),
        ("7 and then 8", "7", False),
        ("9" * 400, "9" * 400, False),
        ("1.000000", "1", True),
    ],
)
def test_the_last_number_counts(given: str, expected: str, is_match: bool) -> None:
    """To a thousandth, commas left aside, as in LLM-Adapters' evaluation of Math10k."""
    assert matcher(match="last_number").is_match(given, expected) is is_match


def test_expected_answers_need_the_number_that_is_compared() -> None:
    """Else no model could be right."""
    with pytest.raises(InvalidData, match="the expected answer has no number") as caught:
        matcher(match="last_number").check(["5", "five"])
    assert caught.value.problems[0].path == "held-out row 2"


def test_an_expression_finds_what_counts() -> None:
    """In both texts: GSM8K's answer behind ####, in the first or the last match."""
    gsm8k = {"match": "regex", "regex": r"####\s*(\d+)"}
    assert matcher(**gsm8k).is_match("#### 3, no: #### 4", "12 / 3 = 4 #### 4")
    assert not matcher(**gsm8k, regex_pick="first").is_match("#### 3, no: #### 4", "12 / 3 = 4 #### 4")
    assert not matcher(**gsm8k).is_match("4", "#### 4")


def test_an_expression_for_the_given_answer_alone() -> None:
    """AQuA expects a letter: the first capital of the answer is compared with it."""
    aqua = matcher(match="regex", regex="[A-E]", regex_pick="first")
    assert aqua.is_match("the answer is B, not C", "B")
    assert not aqua.is_match("the answer is C, not B", "B")
    commonsense = matcher(match="regex", regex="the correct answer is (.+)")
    assert commonsense.is_match("the correct answer is true", "the correct answer is true")
    assert commonsense.is_match("well, the correct answer is solution2 ", "solution2")


def test_an_expression_that_takes_for_ever_finds_nothing() -> None:
    """It is given up, and the answer does not match."""
    slow = matcher(match="regex", regex="(a|a)*$")
    slow.check(["a"])
    assert not slow.is_match("a" * 3000 + "b", "a")
