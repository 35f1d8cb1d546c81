"""YAML in, plain data out, with the place of every value; nothing else ever happens."""

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wegeft.contracts.errors import InvalidJob
from wegeft.contracts.yaml_source import MAX_BYTES, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1.0e-3", 1e-3),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("+3", 3),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("'null'", "null"),
        ('"2e-4"', "2e-4"),
        ("!!str 7", "7"),
        ("2026-11-21", "2026-11-21"),
        (".inf", math.inf),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    assert parse_yaml(f"key: {text}").data == {"key": value}


def test_every_value_remembers_its_line_and_column() -> None:
    source = parse_yaml("a: 1\nlist:\n  - x: 2\n  - y\n")
    assert source.positions[("a",)] == (1, 1)
    assert source.positions[("list", 0, "x")] == (3, 5)
    assert source.positions[("list", 1)] == (4, 5)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: [1,", "expected the node content", 1),
        ("a: 1\nb: 2\na: 3", "the key 'a' is given twice", 3),
        ("a: &x 1\nb: *x", "aliases", 2),
        ("<<: {a: 1}", "a key must be a plain word", 1),
        ("? [a]\n: b", "a key must be a plain word", 1),
        ("a: !!python/object/apply:os.system [id]", "not plain data", 1),
        ("a: !!int 3", "not plain data", 1),
        ("a:\n\t- b", "indent with spaces", 2),
        ("--- 1\n--- 2", "single document", 2),
        ("ok: 1\nbad: \x01", r"U\+0001", 2),
        ("a: " + "9" * 5000, "too many digits", 1),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text: str, message: str, line: int) -> None:
    with pytest.raises(InvalidJob, match=message) as caught:
        parse_yaml(text)
    assert caught.value.problems[0].line == line


@pytest.mark.parametrize("text", ["[" * 3000, "- " * 40 + "x", "a: " + "{a: " * 200])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob):
        parse_yaml(text)


def test_a_file_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidJob, match="too long"):
        parse_yaml("a: " + "x" * MAX_BYTES)


def test_a_byte_order_mark_is_not_part_of_the_first_key() -> None:
    assert parse_yaml("\ufeffname: x").data == {"name": "x"}


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidJob):
        parse_yaml(text)


_WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12)
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(_PLAIN)
def test_json_is_read_as_json(data: object) -> None:
    assert parse_yaml(json.dumps(data)).data == data
