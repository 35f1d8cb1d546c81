"""What is wrong with a job, in plain words: one problem a field, in the order of the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from wegeft.contracts.errors import Problem
from wegeft.contracts.job_fields import UNSUPPORTED, UNSUPPORTED_TYPES, Renamed, known_names, problem_at, section_of
from wegeft.contracts.yaml_source import Data, Path, Source

CLASH = "clash"
"""The type of the error by which a model says that its fields, each valid by itself, do not go together."""


@dataclass(frozen=True, kw_only=True)
class Clash:
    """Fields that do not go together."""

    path: str
    """The field to blame, dotted, from the model that reports it."""
    message: str
    hint: str | None = None
    involves: frozenset[str] = frozenset()
    """Other top-level fields that the rule reads; where one of them is wrong by itself, the clash is not reported."""


def refuse_clashes(clashes: Sequence[Clash]) -> None:
    """Raise the error that :func:`explain` turns into one problem for each clash; nothing where there is none."""
    if clashes:
        text = "; ".join(f"{clash.path}: {clash.message}" for clash in clashes)
        raise PydanticCustomError(CLASH, "{text}", {"text": text, "clashes": tuple(clashes)})


def explain(
    error: ValidationError, renamed: Renamed, source: Source, model: type[BaseModel], wrong: frozenset[str] = frozenset()
) -> dict[Path, Problem]:
    """Return one problem for each field that failed, by its path under our own names.

    A clash that reads one of the ``wrong`` top-level fields is left out: it may be gone once that field is right.
    """
    found: dict[Path, list[Problem]] = {}
    for details in error.errors(include_url=False):
        path = path_of(details, renamed.data)
        if details["type"] == CLASH:
            clashes = [clash for clash in details["ctx"]["clashes"] if not clash.involves & wrong]
            for place, problem in (_explain_clash(path, clash, renamed, source) for clash in clashes):
                found.setdefault(place, []).append(problem)
        else:
            found.setdefault(path, []).append(_explain_field(path, details, renamed, source, model))
    inner = {place[:length] for place in found for length in range(len(place))}
    return {place: _merge(problems) for place, problems in found.items() if place not in inner}


def in_file_order(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems from the top of the file to its end; those that are nowhere in it come first."""
    return sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0, problem.path))


def path_of(details: ErrorDetails, data: Data) -> Path:
    """Return where an error is, without the names of union members that pydantic adds, by following the data."""
    path: list[str | int] = []
    here: Data = data
    for step in details["loc"]:
        is_missing = isinstance(here, dict) and details["type"] == "missing"
        if _holds(here, step) or is_missing:
            path.append(step)
            here = _item(here, step)
    return tuple(path)


def _holds(data: Data, step: str | int) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int) and step < len(data)


def _item(data: Data, step: str | int) -> Data:
    if isinstance(data, dict) and isinstance(step, str):
        return data.get(step)
    return data[step] if isinstance(data, list) and isinstance(step, int) and step < len(data) else None


def _explain_field(path: Path, details: ErrorDetails, renamed: Renamed, source: Source, model: type[BaseModel]) -> Problem:
    written = renamed.path_as_written(path)
    if details["type"] == "extra_forbidden":
        return _explain_unknown(written, details["input"], source, model)
    message, hint = _describe(path, details)
    value = None if details["type"] == "missing" else details["input"]
    return problem_at(written, message, value, hint, source)


def _explain_clash(above: Path, clash: Clash, renamed: Renamed, source: Source) -> tuple[Path, Problem]:
    steps = [int(step) if step.isdigit() else step for step in clash.path.split(".")]
    path = (*above, *steps)
    value: Data = renamed.data
    for step in path:
        value = _item(value, step)
    return path, problem_at(renamed.path_as_written(path), clash.message, value, clash.hint, source)


def _merge(problems: list[Problem]) -> Problem:
    """Return one problem that says what each member of a union wanted."""
    messages = list(dict.fromkeys(problem.message for problem in problems))
    first, *rest = messages
    text = " or ".join([first, *(message.removeprefix("must be ") for message in rest)])
    hint = next((problem.hint for problem in problems if problem.hint), None)
    return problems[0].model_copy(update={"message": text, "hint": hint})


def _explain_unknown(path: Path, value: object, source: Source, model: type[BaseModel]) -> Problem:
    name, above = str(path[-1]), path[:-1]
    instead = UNSUPPORTED.get(section_of(above), {}).get(name)
    if instead is not None:
        return problem_at(path, "not supported", value, instead or None, source)
    known = known_names(model, above)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else _suggest_fields(model, above)
    return problem_at(path, "unknown field", value, hint, source)


def _suggest_fields(model: type[BaseModel], above: Path) -> str:
    if not above:
        return "docs/job-spec.md lists every field"
    return f"one of: {', '.join(sorted(known_names(model, above)))}"


_WORDS = {
    "missing": "required, but not given",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
    "json_invalid": "must be Unicode text without lone surrogates",
}

_BOUNDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "string_too_long": "must be at most {max_length} characters long",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entry",
}

_FORMS = {
    "name": "1 to 64 of a-z 0-9 . _ -, starting and ending with a letter or digit",
    "save_every": "a number and s, m, h or d, for example 90s or 5m",
    "max_duration": "a number and s, m, h or d, for example 12h",
    "grace": "a number and s, m, h or d, for example 60s",
    "deadline": "a number and s, m, h or d, for example 1h",
    "memory": "a number and Mi or Gi, for example 8Gi",
    "path": "no control characters",
    "base_model": "no control characters",
    "labels": "a key is 1 to 64 of A-Z a-z 0-9 . _ / -, starting with a letter or digit",
}


def _describe(path: Path, details: ErrorDetails) -> tuple[str, str | None]:
    """Return the message and the hint of an error that pydantic found."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    field = str(path[0] if path and path[0] == "labels" else path[-1] if path else "")
    if kind == "string_pattern_mismatch":
        return "not in the right form", _FORMS.get(field)
    if kind == "union_tag_invalid":
        return _describe_choice(context["tag"], re.findall(r"'([^']*)'", context["expected_tags"]))
    if kind == "union_tag_not_found":
        return "must be a name, or a mapping with a name", None
    if kind in ("literal_error", "enum"):
        return _describe_choice(value, re.findall(r"'([^']*)'", str(context.get("expected"))) or [str(context.get("expected"))])
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**{name: _number(bound) for name, bound in context.items()}), None
    message = _WORDS.get(kind) or details["msg"].replace("Input should be", "must be")
    return message, _suggest_spelling(kind, value)


def _number(bound: object) -> object:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _describe_choice(value: object, choices: list[str]) -> tuple[str, str | None]:
    message = f"must be '{choices[0]}'" if len(choices) == 1 else f"must be one of {', '.join(choices)}"
    if isinstance(value, str) and value in UNSUPPORTED_TYPES and "chat" in choices:
        return message, UNSUPPORTED_TYPES[value] or None
    close = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.6) if isinstance(value, str) else []
    return message, f"did you mean {close[0]}?" if close else None


def _suggest_spelling(kind: str, value: object) -> str | None:
    match kind, value:
        case "string_type", bool() | int() | float():
            return "put it in quotes"
        case "bool_type", str() if value.lower() in ("yes", "on", "y", "1"):
            return "write true"
        case "bool_type", str() if value.lower() in ("no", "off", "n", "0"):
            return "write false"
        case (("int_type" | "float_type"), str()) if re.fullmatch(r"[-+.0-9eE]+", value):
            return "write it without quotes"
        case (("tuple_type" | "list_type"), str() | dict()):
            return "write a list: [first, second]"
    return None
