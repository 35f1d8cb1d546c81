"""Base models on disk: opening them without a network, their tokenizer's files, and whether two names mean one model."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from wegeft.contracts.base_model_name import is_commit, unpin
from wegeft.contracts.errors import BaseModelNotFound, BaseModelUnusable, InvalidAdapterConfig, shorten
from wegeft.method.config import WeGeFTConfig

_SNAPSHOT = re.compile(r"models--(?P<id>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})")
_INPUT_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""What makes a model's input: a tokenizer, or an image processor."""
OPENING_ERRORS = (OSError, ValueError, KeyError, NotImplementedError)
"""What transformers raises for a model that it cannot load."""
_MAPPINGS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING")
_MAPPINGS_OF_IMAGES = ("IMAGE_CLASSIFICATION",)


def open_base(path: Path) -> nn.Module:
    """Return the model of a folder, in its own dtype, or of a ``.gguf`` file, dequantised to float32; nothing is downloaded.

    Raises ``BaseModelNotFound`` or ``BaseModelUnusable``. Pickled weights are never read, and code in the folder is never run.
    """
    if not path.exists():
        raise BaseModelNotFound("there is no such folder or file", path="base_model", value=str(path))
    try:
        model: nn.Module = _open_gguf(path) if path.suffix == ".gguf" else _open_folder(path)
    except OPENING_ERRORS as error:
        raise BaseModelUnusable(f"it cannot be loaded: {shorten(str(error), 300)}", path="base_model", value=str(path)) from error
    return model.eval()


def _open_gguf(path: Path) -> Any:
    options = {"gguf_file": path.name, "local_files_only": True, "dtype": torch.float32}
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)


def _open_folder(path: Path) -> Any:
    names = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [None]
    if names[0] not in _known_classes():
        raise BaseModelUnusable(
            "its architecture is not one of transformers'", path="base_model", value=names[0], hint="give the model itself"
        )
    kind = getattr(transformers, names[0])
    return kind.from_pretrained(path, dtype="auto", local_files_only=True, use_safetensors=True)


def _known_classes() -> set[str]:
    """Return the names that a configuration may choose a class by: heads for the tasks that adapters are trained for."""
    mappings = (getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in (*_MAPPINGS, *_MAPPINGS_OF_IMAGES))
    return {name for mapping in mappings for name in mapping.values() if isinstance(name, str)}


def copy_tokenizer(path: Path, folder: Path) -> None:
    """Put the tokenizer or image processor of a stored base model, if it has one, into ``folder``."""
    if path.suffix == ".gguf":
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).save_pretrained(folder)
        return
    for file in {file for pattern in _INPUT_FILES for file in path.glob(pattern)}:
        if file.is_file():
            shutil.copy(file, folder / file.name)


def check_same_base(config: WeGeFTConfig, base_name: str | None) -> None:
    """Raise ``InvalidAdapterConfig`` if the adapter names another base model, or another commit of it; an unknown name differs from none.

    The same weights under another name cannot be told from other weights, so a caller must be able to insist.
    """
    wanted = config.base_model_name_or_path
    if not wanted or not base_name:
        return
    commits = {config.revision if is_commit(config.revision or "") else _commit_in(wanted), _commit_in(base_name)} - {None}
    if canonical_name(wanted) in _names_of(base_name) and len(commits) < 2:
        return
    hint = f"it was trained on {wanted}" + (f" at {config.revision}" if config.revision else "") + "; insist if this is the same model"
    raise InvalidAdapterConfig("the adapter belongs to another base model", path="base_model", value=base_name, hint=hint)


def _names_of(base_name: str) -> set[str]:
    names = {canonical_name(base_name)}
    if base_name.lower().endswith(".gguf"):
        # transformers names a model that it read from GGUF by the folder.
        names.add(canonical_name(str(Path(base_name).parent)))
    return names


def canonical_name(name: str) -> str:
    """Return what two names of one base model share: the id of a cached snapshot, the name of a GGUF file, an absolute path, or the id."""
    plain, _ = unpin(name)
    cached = _SNAPSHOT.search(plain)
    if cached is not None:
        return cached["id"].replace("--", "/", 1)
    if plain.lower().endswith(".gguf"):
        return plain.replace("\\", "/").rpartition("/")[2]
    path = Path(plain).expanduser()
    return str(path.resolve()) if path.exists() else plain


def _commit_in(name: str) -> str | None:
    cached = _SNAPSHOT.search(name)
    return cached["commit"] if cached is not None else unpin(name)[1]
