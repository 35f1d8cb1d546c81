"""``--set key=value``: fields of a job file set from the command line."""

from __future__ import annotations

import json
import re

from wegeft.contracts.errors import InvalidJob, Problem, shorten
from wegeft.contracts.job_fields import canonical
from wegeft.contracts.yaml_source import Data, Path, Source, parse_yaml

_STEP = re.compile(r"[^.\[\]]+")


def override(source: Source, overrides: tuple[str, ...]) -> Source:
    """Return ``source`` with ``key=value`` or ``outer.inner=value`` set; a value is read as YAML.

    Raises :class:`InvalidJob` with every override that cannot be set.
    """
    if not isinstance(source.data, dict):
        return source
    data: dict[str, Data] = json.loads(json.dumps(source.data))
    positions = dict(source.positions)
    problems = []
    for text in overrides:
        try:
            path = _set(data, text)
        except InvalidJob as error:
            problems.append(Problem(path="--set", message=error.problems[0].message, value=shorten(text), hint=error.problems[0].hint))
            continue
        positions = {known: place for known, place in positions.items() if known[: len(path)] != path} | {path: None}
    if problems:
        raise InvalidJob("an override cannot be set", problems=problems)
    return Source(data=data, positions=positions)


def _set(data: dict[str, Data], text: str) -> Path:
    """Set what ``key=value`` says, in place, and return where; a field given under another name gives way."""
    key, equals, written = text.partition("=")
    steps = _STEP.findall(key.strip())
    if not equals or not steps:
        raise InvalidJob("an override must be key=value", hint="for example --set learning_rate=1e-3")
    value = parse_yaml(written).data
    here: Data = data
    path: Path = ()
    for step in steps[:-1]:
        path, here = _descend(here, path, step)
    last = steps[-1]
    if isinstance(here, dict):
        for other in [name for name in here if canonical(path, name) == canonical(path, last)]:
            del here[other]
        here[last] = value
        return (*path, last)
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
        return (*path, int(last))
    raise InvalidJob("the override's path leads nowhere", hint="a list's entries are numbered from 0: datasets.0.path")


def _descend(here: Data, path: Path, step: str) -> tuple[Path, Data]:
    if isinstance(here, list) and step.isdigit() and int(step) < len(here):
        return (*path, int(step)), here[int(step)]
    if isinstance(here, dict):
        name = next((name for name in here if canonical(path, name) == canonical(path, step)), step)
        return (*path, name), here.setdefault(name, {})
    raise InvalidJob("the override's path leads nowhere", hint="a list's entries are numbered from 0: datasets.0.path")
