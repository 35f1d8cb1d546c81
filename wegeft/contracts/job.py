"""Reading job.yaml, under the names that other trainers use: a whole job, or every problem of a wrong one at once."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import ValidationError

from wegeft.contracts.errors import InvalidJob, Problem
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job_fields import rename_aliases
from wegeft.contracts.job_overrides import override
from wegeft.contracts.job_problems import explain, in_file_order
from wegeft.contracts.job_sections import (
    DatasetSpec,
    DatasetType,
    EvaluationSpec,
    FileFormat,
    OutputSpec,
    RecoverySpec,
    ResourcesSpec,
    bytes_of,
    seconds_of,
)
from wegeft.contracts.job_spec import JobSpec
from wegeft.contracts.job_tasks import ProblemType, TaskType
from wegeft.contracts.methods import Method
from wegeft.contracts.yaml_source import MAX_DEPTH, Data, Source, parse_yaml

__all__ = [
    "DatasetSpec",
    "DatasetType",
    "EvaluationSpec",
    "FederationSpec",
    "FileFormat",
    "Inspection",
    "JobSpec",
    "Method",
    "OutputSpec",
    "ProblemType",
    "RecoverySpec",
    "ResourcesSpec",
    "TaskType",
    "bytes_of",
    "check_spec",
    "inspect_spec",
    "load_spec",
    "override",
    "parse_spec",
    "seconds_of",
]


def load_spec(text: str, overrides: tuple[str, ...] = ()) -> JobSpec:
    """Return the job that a YAML text describes, after ``key=value`` overrides.

    Raises :class:`InvalidJob` with every problem: its line, path, value, and what would be right.
    """
    return check_spec(override(parse_yaml(text), overrides))


def parse_spec(data: Data) -> JobSpec:
    """Return the job in plain ``data``, as it comes in a request; raise :class:`InvalidJob` with every problem."""
    return check_spec(Source(data=data))


def check_spec(source: Source) -> JobSpec:
    """Return the job in ``source``; raise :class:`InvalidJob` with every problem found."""
    found = inspect_spec(source)
    if found.problems or found.spec is None:
        count = len(found.problems)
        raise InvalidJob(f"{count} problem{'s' if count != 1 else ''} in the job file", problems=found.problems)
    return found.spec


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What could be read of a job, and what is wrong with it."""

    spec: JobSpec | None
    """The job; where there are problems, with stand-ins for the ``wrong`` fields, or None where not even that is possible."""
    problems: tuple[Problem, ...]
    """In the order of the file."""
    wrong: frozenset[str] = frozenset()
    """The top-level fields, under our names, that hold a problem."""


def inspect_spec(source: Source) -> Inspection:
    """Return what can be read of the job, and every problem, so that the files that it names can be checked in the same go."""
    if not isinstance(source.data, dict):
        problem = Problem(message="a job is a mapping of fields", hint="start with name:, base_model: and datasets:")
        return Inspection(spec=None, problems=(problem,))
    if _is_deep(source.data):
        return Inspection(spec=None, problems=(Problem(message="nested too deeply", hint=f"at most {MAX_DEPTH} levels"),))
    renamed = rename_aliases(source.data, source)
    problems = list(renamed.problems)
    wrong: set[str] = set()
    spec = None
    for _ in range(_PASSES):
        try:
            spec = _validate(_without(renamed.data, wrong))
            break
        except ValidationError as error:
            found = explain(error, renamed, source, JobSpec, frozenset(wrong))
            problems += found.values()
            if not {path[0] for path in found if path} - wrong:
                break
            wrong |= {str(path[0]) for path in found if path}
    return Inspection(spec=spec, problems=tuple(in_file_order(problems)), wrong=frozenset(wrong))


_PASSES = 3
"""Wrong fields show in the first pass, fields that do not go together in the second, and what is left is read in the third."""
_STAND_INS: dict[str, Data] = {"name": "x", "base_model": "x", "datasets": [{"path": "x.jsonl"}]}


def _without(data: dict[str, Data], wrong: set[str]) -> dict[str, Data]:
    rest = {key: value for key, value in data.items() if key not in wrong}
    return {key: value for key, value in _STAND_INS.items() if key in wrong} | rest


def _validate(data: dict[str, Data]) -> JobSpec:
    return JobSpec.model_validate_json(json.dumps(data))


def _is_deep(data: Data, left: int = MAX_DEPTH) -> bool:
    if left == 0:
        return True
    children = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return any(_is_deep(child, left - 1) for child in children)
