"""Adapters of a wanted size that the gate accepts, for benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE

_MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
_RANK, _BLOCK = 4, 4 << 20


def write_adapter(folder: Path, size: int, seed: int = 0) -> Path:
    """Write a LoRA adapter of about ``size`` bytes into a new folder and return it; memory does not grow with it."""
    folder.mkdir(parents=True)
    width = size // (8 * _RANK)
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    half = width * _RANK * 4
    names = {f"{_MODULE}.lora_A.weight": ([_RANK, width], 0), f"{_MODULE}.lora_B.weight": ([width, _RANK], half)}
    tensors = {name: {"dtype": "F32", "shape": shape, "data_offsets": [at, at + half]} for name, (shape, at) in names.items()}
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    block = np.random.default_rng(seed).standard_normal(_BLOCK // 4, np.float32).tobytes()
    with (folder / WEIGHTS_FILE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, 2 * half, _BLOCK):
            file.write(block[: min(_BLOCK, 2 * half - start)])
    return folder
