"""Base models of classifiers: opened with the head that an adapter trained in full, which their own files lack."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from wegeft.contracts.adapter import JOB_FILE
from wegeft.contracts.errors import BaseModelUnusable, InvalidTensors, shorten
from wegeft.method.config import WeGeFTConfig
from wegeft.method.native_adapter import MODULE_PREFIX, read_config
from wegeft.method.stored_base import OPENING_ERRORS, open_base

_OUTPUTS = ("classifier", "score", "classification_head", "logits_proj", "head", "out_proj")
"""Last parts of the names of the layers that tell labels."""

Task = Literal["sequence", "image"]
_LOADERS: dict[Task, str] = {"sequence": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """The head of a classifier, as an adapter's folder holds it."""

    outputs: int
    """How many numbers it says of a row."""
    modules: frozenset[str]
    """Everything that the adapter trained in full, by name in the base model."""
    labels: tuple[str, ...]
    """In the order of the outputs; none where the folder does not say them."""


def open_base_of(path: Path, adapter: Path) -> nn.Module:
    """Return the base model of an adapter's folder, with a head of the shape that it was trained with; its numbers the adapter brings.

    Raises what ``open_base`` raises, and ``BaseModelUnusable`` if neither the base model's files nor the adapter hold a weight.
    """
    config = read_config(adapter)
    task = _task_of(path, config)
    head = read_head(adapter) if task else None
    return open_base(path) if task is None or head is None else _open(path, task, head)


def read_head(adapter: Path) -> StoredHead | None:
    """Return the head that an adapter's folder holds, or None where it trained no layer that tells labels."""
    try:
        with safe_open(adapter / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            shapes = {key.removeprefix(MODULE_PREFIX): file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 # no mapping
    except (OSError, SafetensorError) as error:
        raise InvalidTensors(f"{SAFETENSORS_WEIGHTS_NAME} cannot be read: {shorten(str(error))}", path=str(adapter)) from error
    weights = {name.rpartition(".")[0]: shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    found = [shape[0] for name, shape in sorted(weights.items()) if name.rpartition(".")[2] in _OUTPUTS]
    # The layer that tells labels comes last in heads of several layers, and says the fewest numbers.
    if not found:
        return None
    outputs = int(min(found))
    labels = _labels_in(adapter)
    return StoredHead(
        outputs=outputs,
        modules=frozenset(name.rpartition(".")[0] for name in shapes),
        labels=labels if len(labels) == outputs else (),
    )


def _labels_in(adapter: Path) -> tuple[str, ...]:
    try:
        names = json.loads((adapter / JOB_FILE).read_text(encoding="utf-8")).get("label_names") or []
    except (OSError, ValueError, AttributeError):
        return ()
    return tuple(str(name) for name in names)


def _task_of(path: Path, config: WeGeFTConfig) -> Task | None:
    if path.suffix == ".gguf" or not config.modules_to_save:
        return None
    if config.task_type == "SEQ_CLS":
        return "sequence"
    try:
        kind = transformers.AutoConfig.from_pretrained(path, local_files_only=True).model_type
    except OPENING_ERRORS:
        return None
    return "image" if config.task_type is None and kind in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else None


def _open(path: Path, task: Task, head: StoredHead) -> nn.Module:
    loader: Any = getattr(transformers, _LOADERS[task])
    options = {"num_labels": head.outputs, "ignore_mismatched_sizes": True, "output_loading_info": True}
    verbosity = logging.get_verbosity()
    # What is missing is judged here.
    logging.set_verbosity_error()
    try:
        model, report = loader.from_pretrained(path, dtype="auto", local_files_only=True, use_safetensors=True, **options)
    except OPENING_ERRORS as error:
        raise BaseModelUnusable(f"it cannot be loaded: {shorten(str(error), 300)}", path="base_model", value=str(path)) from error
    finally:
        logging.set_verbosity(verbosity)
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    absent = sorted(key for key in {*report["missing_keys"], *mismatched} if key.rpartition(".")[0] not in head.modules)
    if absent:
        hint = "neither its files nor the adapter hold them"
        raise BaseModelUnusable("weights are missing", path="base_model", value=shorten(", ".join(absent)), hint=hint)
    if head.labels:
        model.config.id2label = dict(enumerate(head.labels))
        model.config.label2id = {name: index for index, name in enumerate(head.labels)}
    opened: nn.Module = model.eval()
    return opened
