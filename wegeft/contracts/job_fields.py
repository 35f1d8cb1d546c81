"""Names that other trainers use for the fields of a job, and plain words for what is wrong with one."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wegeft.contracts.errors import Problem, shorten
from wegeft.contracts.yaml_source import Data, Path, Source

ALIASES: dict[str, str] = {
    "model": "base_model",
    "model_name_or_path": "base_model",
    "model_revision": "base_model_revision",
    "revision_of_model": "base_model_revision",
    "adapter": "method",
    "finetuning_type": "method",
    "r": "rank",
    "lora_r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "wegeft_alpha": "alpha",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "cutoff_len": "sequence_len",
    "max_length": "sequence_len",
    "max_seq_length": "sequence_len",
    "max_seq_len": "sequence_len",
    "val_size": "val_set_size",
    "eval_datasets": "test_datasets",
    "train_on_input": "train_on_inputs",
    "per_device_train_batch_size": "micro_batch_size",
    "batch_size": "micro_batch_size",
    "epochs": "num_epochs",
    "n_epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "clip_grad_norm": "max_grad_norm",
    "log_every_n_steps": "logging_steps",
    "enable_activation_checkpointing": "gradient_checkpointing",
}
"""Other trainers' names of our top-level fields."""

DATASET_ALIASES: dict[str, str] = {"ds_type": "file_format", "formatting": "type"}
TYPE_ALIASES: dict[str, str] = {"chat_template": "chat", "openai": "chat", "instruction": "alpaca", "text": "completion"}
"""Other trainers' names of the dataset types."""

UNSUPPORTED: dict[str, str] = {
    "load_in_4bit": "quantised loading is not supported; a .gguf base model is loaded dequantised",
    "load_in_8bit": "quantised loading is not supported; a .gguf base model is loaded dequantised",
    "sample_packing": "packing is not supported; rows of similar length are batched together instead",
    "packing": "packing is not supported; rows of similar length are batched together instead",
    "roles_to_train": "every assistant turn is learnt, and nothing else unless train_on_inputs is true",
    "resume_from_checkpoint": "a job always goes on from its own last checkpoint",
    "save_total_limit": "a job keeps its last checkpoint",
    "federation": "federated jobs are not supported",
    "sweep": "sweeps are not supported; submit one job for each setting",
    "webhooks": "webhooks are not supported; use wgctl jobs wait",
    "init_from": "starting from another adapter is not supported",
    "torch_compile": "compilation is not supported",
    "lora_dropout": "dropout is not supported",
    "dropout": "dropout is not supported",
    "load_best_model_at_end": "set early_stopping_patience, which keeps the best",
    "env": "a job cannot set environment variables",
    "secrets": "a job cannot name secrets",
    "queue": "there is one queue; use priority",
    "strategy": "a job runs on one worker",
}
"""Fields that people will try, and what is so instead."""


def rename_aliases(source: Source) -> tuple[dict[str, Data], list[Problem]]:
    """Return the data under our own field names, and a problem for each field that is given under two names."""
    assert isinstance(source.data, dict)
    data, problems = _rename(source.data, ALIASES, (), source)
    for key in ("datasets", "test_datasets"):
        rows = data.get(key)
        if isinstance(rows, list):
            data[key] = [_rename_dataset(row, (key, index), source, problems) for index, row in enumerate(rows)]
    return data, problems


def _rename(data: dict[str, Data], aliases: dict[str, str], above: Path, source: Source) -> tuple[dict[str, Data], list[Problem]]:
    renamed: dict[str, Data] = {}
    problems: list[Problem] = []
    for key, value in data.items():
        name = aliases.get(key, key)
        if name in renamed:
            problems.append(_problem((*above, key), f"the same as {name}, which is given too", value, "give one of them", source))
        else:
            renamed[name] = value
    return renamed, problems


def _rename_dataset(row: Data, path: Path, source: Source, problems: list[Problem]) -> Data:
    if not isinstance(row, dict):
        return row
    renamed, more = _rename(row, DATASET_ALIASES, path, source)
    problems += more
    kind = renamed.get("type")
    if isinstance(kind, str):
        renamed["type"] = TYPE_ALIASES.get(kind, kind)
    return renamed


def explain(error: ValidationError, source: Source, model: type[BaseModel]) -> list[Problem]:
    """Return one problem for each field that failed, in the order of the file."""
    problems: dict[Path, Problem] = {}
    for details in error.errors(include_url=False):
        path = _plain_path(details["loc"], source.data)
        if details["type"] == "value_error" and ": " in details["msg"]:
            named, _, text = details["msg"].removeprefix("Value error, ").partition(": ")
            path = (*path, *named.split("."))
            problems.setdefault(path, _problem(path, text, _value_at(source.data, path), None, source))
        elif details["type"] == "extra_forbidden":
            problems.setdefault(path, _explain_unknown(path, details["input"], source, model))
        else:
            problems.setdefault(path, _explain_wrong(path, details, source))
    return sorted(problems.values(), key=lambda problem: (problem.line or 0, problem.path))


def _plain_path(location: tuple[int | str, ...], data: Data) -> Path:
    """Drop the names of union members, which pydantic adds to a location, by following the data."""
    path: list[str | int] = []
    here: Data = data
    for step in location:
        if isinstance(here, dict) and isinstance(step, str):
            known = step if step in here else next((a for a in here if ALIASES.get(a, DATASET_ALIASES.get(a)) == step), None)
            if known is None and path and step not in _FIELD_LIKE(here, step):
                path.append(step)
                break
            path.append(known or step)
            here = here.get(known) if known else None
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            path.append(step)
            here = here[step]
        elif here is None and not path:
            path.append(step)
    return tuple(path)


def _FIELD_LIKE(here: dict[str, Data], step: str) -> tuple[str, ...]:  # noqa: N802
    return (step,) if step.isidentifier() and step in here else ()


def _value_at(data: Data, path: Path) -> Data:
    for step in path:
        if isinstance(data, dict) and isinstance(step, str):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            return None
    return data


def _explain_unknown(path: Path, value: Any, source: Source, model: type[BaseModel]) -> Problem:  # noqa: ANN401
    name = str(path[-1])
    if name in UNSUPPORTED:
        return _problem(path, "not supported", value, UNSUPPORTED[name], source)
    known = known_names(model, path[:-1])
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(sorted(set(known) - set(ALIASES)))}"
    return _problem(path, "unknown field", value, hint, source)


def known_names(model: type[BaseModel], above: Path) -> list[str]:
    """Return the names that a mapping at ``above`` may hold, other trainers' names among them."""
    for step in above:
        if isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or model
    extra = ALIASES if not above else {}
    return [*model.model_fields, *extra]


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


_WORDS = {
    "missing": "required, but not given",
    "string_type": "must be a text",
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
}


def _explain_wrong(path: Path, details: ErrorDetails, source: Source) -> Problem:
    kind = details["type"]
    value = None if kind == "missing" else details["input"]
    context = details.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return _problem(path, "not in the right form", value, _PATTERN_HINTS.get(str(path[-1]), f"must match {context.get('pattern')}"), source)
    if kind in ("literal_error", "enum"):
        return _problem(path, "not one of the choices", value, f"one of: {context.get('expected')}", source)
    message = _WORDS.get(kind) or details["msg"].replace("Input should be", "must be").replace("Value error, ", "")
    return _problem(path, message, value, None, source)


_PATTERN_HINTS = {
    "name": "1 to 64 of a-z 0-9 . _ -, starting and ending with a letter or digit",
    "save_every": "a number and s, m, h or d, for example 90s or 5m",
    "max_duration": "a number and s, m, h or d, for example 12h",
    "memory": "a number and Mi or Gi, for example 8Gi",
}


def _problem(path: Path, message: str, value: Data, hint: str | None, source: Source) -> Problem:
    line, column = _position(path, source)
    shown = None if value is None else shorten(value)
    return Problem(path=dotted(path), message=message, value=shown, hint=hint, line=line, column=column)


def _position(path: Path, source: Source) -> tuple[int | None, int | None]:
    while path:
        if path in source.positions:
            return source.positions[path]
        path = path[:-1]
    return source.positions.get((), (None, None))


def dotted(path: Path) -> str:
    """Return ``datasets[0].path`` for ``("datasets", 0, "path")``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
