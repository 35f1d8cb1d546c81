"""Writes the pages of ``docs/`` that say what the code says: commands, settings, fields of a job, errors.

``python -m cli.reference`` writes them; a test holds the committed pages to it.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cli.failures import MEANINGS
from cli.main import COMMANDS, load_command, wgctl
from infra.settings import GROUPS, PREFIX, Settings
from wegeft.contracts.errors import ERROR_KINDS, WegeftError, title_of
from wegeft.contracts.federation_spec import FederationSpec, StartSpec
from wegeft.contracts.job import DatasetSpec, EvaluationSpec, JobSpec, OutputSpec, RecoverySpec, ResourcesSpec
from wegeft.contracts.job_fields import ALIASES, TYPE_ALIASES, UNSUPPORTED
from wegeft.contracts.methods import METHODS

_SECTIONS: dict[str, type[BaseModel]] = {
    "evaluation": EvaluationSpec,
    "resources": ResourcesSpec,
    "job_recovery": RecoverySpec,
    "output": OutputSpec,
    "federation": FederationSpec,
    "federation.start": StartSpec,
}
_NOTE = "<!-- Written by `make docs` (python -m cli.reference) from the code. Do not edit. -->"


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its file name in ``docs/``."""
    makers: dict[str, Callable[[], Iterator[str]]] = {
        "cli.md": _cli_page,
        "settings.md": _settings_page,
        "job-spec.md": _job_page,
        "errors.md": _errors_page,
    }
    return {name: "\n".join([_NOTE, "", *make()]).rstrip() + "\n" for name, make in makers.items()}


def _cli_page() -> Iterator[str]:
    yield from ("# wgctl", "", inspect.cleandoc(wgctl.help or ""), "")
    for name, entry in COMMANDS.items():
        if not entry.is_hidden:
            yield from _command(load_command(name), f"wgctl {name}")
    yield from ("## Exit statuses", "", "| status | meaning |", "| --- | --- |")
    yield from (f"| {status} | {meaning} |" for status, meaning in MEANINGS.items())


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    if isinstance(command, click.Group):
        yield from (f"## {path}", "", inspect.cleandoc(command.help or ""), "")
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None  # noqa: S101 - it is in the list
            yield from _command(inner, f"{path} {name}")
        return
    yield from (f"{'###' if ' ' in path.removeprefix('wgctl ') else '##'} {path}", "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```", f"{path} {usage}", "```", "", inspect.cleandoc(command.help or ""), "")
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    yield from ("| option | |", "| --- | --- |", *(f"| `{_cell(names)}` | {_cell(text)} |" for names, text in records), "")
    examples = re.findall(r"^\$ (.+)$", command.epilog or "", re.MULTILINE)
    yield from ("```", *examples, "```", "")


def _settings_page() -> Iterator[str]:
    yield from (
        "# Settings",
        "",
        "Environment variables. An unknown `WEGEFT_` variable or a wrong value is an error, and all are reported at once.",
        "",
    )
    for group, names in GROUPS.items():
        yield from (f"## {group}", "", "| variable | value | default | |", "| --- | --- | --- | --- |")
        for name in names:
            field = Settings.model_fields[name]
            yield f"| `{PREFIX}{name.upper()}` | {_kind(field)} | {_default(field)} | {_cell(field.description or '')} |"
        yield ""


def _methods() -> Iterator[str]:
    yield from (
        "## Methods",
        "",
        "What `method` may be. An option that a method does not have is an error; all take `target_modules`, `exclude_modules`,",
        "`layers_to_transform` and `modules_to_save`.",
        "",
        "| method | what is trained | rank | alpha / rank | other options |",
        "| --- | --- | --- | --- | --- |",
    )
    for method, traits in METHODS.items():
        alpha = "-" if traits.alpha_per_rank is None else f"{traits.alpha_per_rank:g}"
        options = ", ".join(f"`{name}`" for name in sorted(traits.options)) or "-"
        yield f"| `{method}` | {traits.title} | {traits.rank or '-'} | {alpha} | {options} |"
    yield ""


def _job_page() -> Iterator[str]:
    yield from (
        "# job.yaml",
        "",
        "A job is a YAML 1.2 mapping. An unknown field, a wrong value, and fields that do not go together are errors, all reported at once",
        "with their line. Check a file with `wgctl validate job.yaml`.",
        "",
    )
    yield from _fields("", "Fields", JobSpec)
    yield from _methods()
    yield from _fields("datasets", "Each of `datasets` and `test_datasets`", DatasetSpec)
    yield from ("Types may also be called: " + ", ".join(f"`{other}` ({ours})" for other, ours in TYPE_ALIASES.items()) + ".", "")
    for section, model in _SECTIONS.items():
        yield from _fields(section, f"`{section}`", model)
    for name, field in FederationSpec.model_fields.items():
        if choices := _choices(field.annotation):
            yield from _choice_table(f"federation.{name}", choices)
    yield from (
        "## Not supported",
        "",
        "Fields of other trainers that are refused, and what is so instead.",
        "",
        "| field | instead |",
        "| --- | --- |",
    )
    for section, names in UNSUPPORTED.items():
        yield from (f"| `{section}{'.' if section else ''}{name}` | {_cell(instead) or '-'} |" for name, instead in names.items())


def _choices(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of a closed set, of which a field takes one by its ``name``."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return [part for part in parts if isinstance(part, type) and "name" in getattr(part, "model_fields", {})]


def _choice_table(path: str, choices: list[type[BaseModel]]) -> Iterator[str]:
    yield from (
        f"## `{path}`",
        "",
        "A name, or a mapping of `name` and what stands beside it.",
        "",
        "| name | | fields |",
        "| --- | --- | --- |",
    )
    for choice in choices:
        fields = [(name, field) for name, field in choice.model_fields.items() if name != "name"]
        told = [f"`{name}`: {_kind(field)}, {_default(field) or 'optional'}. {field.description}" for name, field in fields]
        name = choice.model_fields["name"]
        value = get_args(name.annotation)[0]
        yield f"| `{value}` | {_cell(inspect.cleandoc(choice.__doc__ or ''))} | {_cell('<br>'.join(told))} |"
    yield ""


def _fields(section: str, title: str, model: type[BaseModel]) -> Iterator[str]:
    others: dict[str, list[str]] = {}
    for other, ours in ALIASES.get(section, {}).items():
        others.setdefault(ours, []).append(f"`{other}`")
    yield from (f"## {title}", "", "| field | value | default | | also called |", "| --- | --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        also = ", ".join(others.get(name, []))
        yield f"| `{name}` | {_kind(field)} | {_default(field)} | {_cell(field.description or '')} | {also} |"
    yield ""


def _errors_page() -> Iterator[str]:
    yield from (
        "# Errors",
        "",
        "Over HTTP an error is `application/problem+json` (RFC 9457) with `code`, `title`, `detail`, `status`, `problems` and",
        "`request_id`; each problem has a `path` and a `message`, and where known a `value`, a `hint`, a `line` and a `column`.",
        "With `--json`, `wgctl` writes the same to standard error.",
        "",
        "| code | meaning | HTTP | exit status | may pass by itself |",
        "| --- | --- | --- | --- | --- |",
    )
    for kind in ERROR_KINDS.values():
        indent = "· " * kind.__mro__.index(WegeftError)
        may_pass = "yes" if kind.is_retryable else ""
        yield f"| {indent}`{kind.code}` | {_cell(title_of(kind))} | {kind.http_status} | {kind.exit_status} | {may_pass} |"


def _kind(field: FieldInfo) -> str:
    bounds = [text for item in field.metadata if (text := _bound(item))]
    return _cell(", ".join([_type_name(field.annotation), *bounds]))


def _type_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [text for item in inner[1:] for part in getattr(item, "metadata", [item]) if (text := _bound(part))]
        return ", ".join([_type_name(inner[0]), *bounds])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in inner if part is not NoneType))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {_type_name(inner[0])}"
    if origin is dict:
        return "mapping of texts"
    return _class_name(annotation)


def _class_name(annotation: type) -> str:
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "folder", SecretStr: "secret text"}
    if annotation in names:
        return names[annotation]
    if issubclass(annotation, BaseModel):
        return "mapping"
    return " or ".join(f"`{member.value}`" for member in annotation)  # type: ignore[attr-defined]  # what is left are enumerations


def _bound(item: Any) -> str:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        value = getattr(item, name, None)
        if value is not None:
            return f"{sign} {value:,}".replace(",", " ") if isinstance(value, int) else f"{sign} {value:g}"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, Path):
        return f"`{value}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`".replace('`"', "`").replace('"`', "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write(folder: Path) -> list[Path]:
    """Write every page under ``folder``; return their paths."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


if __name__ == "__main__":
    for page in write(Path(__file__).parent.parent / "docs"):
        sys.stdout.write(f"{page}\n")
