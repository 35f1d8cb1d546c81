"""A trained adapter as the two files that PEFT loads, without what PEFT writes and no reader needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open

from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE

_COPY = re.compile(r"base_model\.model\..+\.(randlora_[AB])\Z")


def save_adapter(model: Any, folder: Path) -> None:
    """Write the ``PeftModel``'s adapter into ``folder``: its configuration, and tensors that no layer repeats."""
    # Told to look for itself whether embeddings were trained, PEFT would ask the network.
    model.save_pretrained(folder, save_embedding_layers=False)
    _drop_class_path(folder / CONFIG_FILE)
    _drop_copies(folder / WEIGHTS_FILE)


def _drop_class_path(path: Path) -> None:
    """Remove the dotted path of the base model's class, which PEFT files where it has no name for the task: no file says what to import."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("auto_mapping") is not None:
        text = json.dumps(config | {"auto_mapping": None}, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def _drop_copies(path: Path) -> None:
    """Remove the random bases that RandLoRA stores again with every layer; it loads the shared ones into all of them."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        kept = [name for name in names if not ((copy := _COPY.match(name)) and f"base_model.{copy[1]}" in names)]
        if len(kept) == len(names):
            return
        tensors = {name: file.get_tensor(name).clone() for name in kept}
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata)
