"""Names that other trainers use for the fields of a job, and fields of theirs that a job cannot have."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from wegeft.contracts.errors import Problem, shorten
from wegeft.contracts.yaml_source import Data, Path, Source

ALIASES: dict[str, dict[str, str]] = {
    "": {
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
        "lora_dropout": "dropout",
        "input_dropout": "dropout",
        "wegeft_dropout": "weight_dropout",
        "init_wegeft_weights": "init_weights",
        "transform_dim": "transform",
        "additional_target": "modules_to_save",
        "lora_modules_to_save": "modules_to_save",
        "peft_layers_to_transform": "layers_to_transform",
        "lora_target": "target_modules",
        "lora_target_modules": "target_modules",
        "cutoff_len": "sequence_len",
        "max_length": "sequence_len",
        "max_seq_length": "sequence_len",
        "max_seq_len": "sequence_len",
        "val_size": "val_set_size",
        "eval_datasets": "test_datasets",
        "train_on_input": "train_on_inputs",
        "packing": "sample_packing",
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
        "task_type": "task",
        "enable_activation_checkpointing": "gradient_checkpointing",
    },
    "datasets": {"ds_type": "file_format", "formatting": "type"},
    "output": {"tags": "aliases"},
}
"""Other trainers' names of our fields, by the section in which they stand; ``""`` is the top."""

TYPE_ALIASES: dict[str, str] = {
    "chat_template": "chat",
    "openai": "chat",
    "instruction": "alpaca",
    "prompt-completion": "prompt_completion",
    "text": "completion",
    "text_classification": "labelled_text",
    "imagefolder": "labelled_image",
}
"""Other trainers' names of the dataset types."""

_NO_QUANTISATION = "a .gguf base model is loaded dequantised"

UNSUPPORTED: dict[str, dict[str, str]] = {
    "": {
        "load_in_4bit": _NO_QUANTISATION,
        "load_in_8bit": _NO_QUANTISATION,
        "quantization_bit": _NO_QUANTISATION,
        "eval_sample_packing": "held-out rows are laid out in whichever way is less work",
        "roles_to_train": "every assistant turn is learnt, and nothing else unless train_on_inputs is true",
        "resume_from_checkpoint": "a job always goes on from its own last checkpoint",
        "save_total_limit": "a job keeps its last checkpoint",
        "sweep": "submit one job for each setting",
        "webhooks": "use wgctl jobs wait",
        "init_from": "a job starts from the base model alone",
        "torch_compile": "",
        "load_best_model_at_end": "set early_stopping_patience, which keeps the best",
        "greater_is_better": "metric_for_best_model says it: less of eval_loss and perplexity, more of all others",
        "num_labels": "told from the rows, or by label_names",
        "id2label": "use label_names, a list of names",
        "env": "",
        "secrets": "",
        "project": "there are no projects; use labels",
        "queue": "there is one queue; use priority",
        "strategy": "a job runs on one worker",
        "share_across_layers": "use tied_modules: module_type or layer",
        "init_lora_weights": "use method: pissa, or leave it out",
        "use_dora": "use method: dora",
        "use_rslora": "use method: rslora",
        "peft_use_dora": "use method: dora",
        "peft_use_rslora": "use method: rslora",
        "hub_model_id": "use output.adapter: namespace/name",
        "output_dir": "the adapter goes to the hub; use output.adapter, then wgctl adapters download",
        "dataset": "use datasets, a list with a path for each file",
    },
    "datasets": {
        "split": "a file is one split; use test_datasets or val_set_size to hold rows out",
        "weight": "every row is taken once in an epoch",
        "name": "only files can be named; use path",
        "roles_to_train": "every assistant turn is learnt, and nothing else unless train_on_inputs is true",
        "message_property_mappings": "a message has role and content",
    },
    "resources": {
        "accelerators": "use gpus: 1; the kind of GPU cannot be chosen",
        "num_nodes": "a job runs on one worker",
        "use_spot": "a lost worker is always replaced; there is nothing to choose",
    },
    "job_recovery": {"recover_on_exit_codes": "a worker's end is told by its error, not by an exit code"},
    "output": {"suffix": "versions are numbered; use aliases to name one"},
}
"""Fields that people will try, by the section in which they stand, and what is so instead, if anything."""

UNSUPPORTED_TYPES: dict[str, str] = {
    "sharegpt": "use chat, with role and content instead of from and value",
    "input_output": "use prompt_completion",
    "dpo": "",
    "kto": "",
    "pretraining": "use completion",
}
"""Dataset types that people will try, and what is so instead."""


def section_of(above: Path) -> str:
    """Return the section that a path of keys leads to: ``""`` at the top, ``datasets`` for ``("test_datasets", 0)``."""
    first = str(above[0]) if above else ""
    return "datasets" if ALIASES[""].get(first, first) == "test_datasets" else first


def canonical(above: Path, key: str) -> str:
    """Return our name of the field ``key`` that stands under ``above``."""
    return ALIASES.get(section_of(above), {}).get(key, key)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A job's data under our own field names."""

    data: dict[str, Data]
    written: dict[Path, str]
    """How the user spelt the last step of each path that was renamed."""
    problems: tuple[Problem, ...]
    """Fields that were given under two names."""

    def path_as_written(self, path: Path) -> Path:
        """Return ``path`` with every step as the user spelt it."""
        return tuple(self.written.get(path[: length + 1], step) for length, step in enumerate(path))


def rename_aliases(data: dict[str, Data], source: Source) -> Renamed:
    """Return ``data`` under our own field names."""
    problems: list[Problem] = []
    written: dict[Path, str] = {}
    renamed = _rename(data, (), source, (written, problems))
    for key, value in renamed.items():
        if key in ("datasets", "test_datasets") and isinstance(value, list):
            renamed[key] = [
                _rename_dataset(row, (key, index), source, (written, problems)) if isinstance(row, dict) else row
                for index, row in enumerate(value)
            ]
        elif key in ALIASES and isinstance(value, dict):
            renamed[key] = _rename(value, (key,), source, (written, problems))
    return Renamed(data=renamed, written=written, problems=tuple(problems))


_Notes = tuple[dict[Path, str], list[Problem]]


def _rename(data: dict[str, Data], above: Path, source: Source, notes: _Notes) -> dict[str, Data]:
    written, problems = notes
    renamed: dict[str, Data] = {}
    for key, value in data.items():
        name = canonical(above, key)
        if name in renamed:
            other = written.get((*above, name), name)
            problems.append(problem_at((*above, key), f"the same field as {other}, which is given too", value, "give one of them", source))
            continue
        renamed[name] = value
        if name != key:
            written[(*above, name)] = key
    return renamed


def _rename_dataset(row: dict[str, Data], path: Path, source: Source, notes: _Notes) -> Data:
    renamed = _rename(row, path, source, notes)
    kind = renamed.get("type")
    if isinstance(kind, str):
        renamed["type"] = TYPE_ALIASES.get(kind, kind)
    return renamed


def known_names(model: type[BaseModel], above: Path) -> list[str]:
    """Return the names that a mapping at ``above`` may hold, other trainers' names among them."""
    for step in above:
        name = canonical((), step) if isinstance(step, str) else None
        if name in model.model_fields:
            model = _model_in(model.model_fields[name].annotation) or model
    return [*model.model_fields, *ALIASES.get(section_of(above), {})]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def problem_at(path: Path, message: str, value: object, hint: str | None, source: Source) -> Problem:
    """Return a problem at a path of keys, with the line and column of the nearest value that is in the file."""
    line, column = _position(path, source) or (None, None)
    return Problem(path=dotted(path), message=message, value=_shown(value), hint=hint, line=line, column=column)


def _shown(value: object) -> str | None:
    """Return a value as one would write it in the file."""
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return shorten(value)
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def _position(path: Path, source: Source) -> tuple[int, int] | None:
    for length in range(len(path), 0, -1):
        if path[:length] in source.positions:
            return source.positions[path[:length]]
    return source.positions.get(())


_PLAIN_KEY = re.compile(r"[^.\[\]\s\"]+")


def dotted(path: Path) -> str:
    """Return ``datasets[0].path`` for ``("datasets", 0, "path")``."""
    text = ""
    for step in path:
        if isinstance(step, str) and _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{step}]" if isinstance(step, int) else f"[{json.dumps(step, ensure_ascii=False)}]"
    return text
