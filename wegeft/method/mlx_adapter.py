"""A LoRA adapter that mlx-lm loads on Apple silicon."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidAdapterConfig, Problem
from wegeft.method.export_folder import ERROR_LIMITS, Export, check_dtype, check_errors, check_free, write_folder
from wegeft.method.low_rank import Array, Factors, balanced, relative_error
from wegeft.method.native_adapter import AdapterSource, NativeAdapter, low_rank_factors, read_adapter

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"

MlxDtype = Literal["float32", "float16", "bfloat16"]

_SCALE = 1.0
_BLOCKS = "model.layers."

MODEL_TYPES = frozenset(
    [
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "starcoder2",
    ]
)
"""Families whose linear layers have the same names and shapes in mlx-lm 0.32 as in transformers."""


def to_mlx(
    source: AdapterSource,
    base_model: nn.Module | None,
    out_dir: str | os.PathLike[str],
    *,
    dtype: MlxDtype = "float32",
    adapter_name: str = "default",
) -> Export:
    """Write a folder for ``mlx_lm … --adapter-path``, read it back, and return how far it is from the adapter.

    ``source`` and ``base_model`` as in ``to_lora``. mlx-lm computes ``y + scale·(x A) B``, so its factors are transposed:
    ``lora_a = ψᵀ`` (in×rank) and ``lora_b = (s·Wφ)ᵀ`` (rank×out), with ``scale = 1`` and smaller ranks padded with zeros. Blocks that
    the adapter leaves out stay unchanged.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidAdapterConfig`` for a base model not in
    ``MODEL_TYPES``, a layer that mlx-lm lacks, an edited bias or ``modules_to_save``; ``InvalidTensors`` if the folder does not hold
    the adapter or ``dtype`` cannot. Source: ``mlx_lm/tuner/lora.py`` and ``mlx_lm/tuner/utils.py``.
    """
    check_dtype(dtype, get_args(MlxDtype))
    out = Path(out_dir)
    check_free(out)
    adapter = read_adapter(source, base_model, adapter_name)
    adapter.check_low_rank("mlx-lm")
    config = _config_of(adapter)
    errors: dict[str, float] = {}

    def write(folder: Path) -> None:
        save_file(_tensors_of(adapter, dtype), folder / WEIGHTS_FILE, metadata={"format": "mlx"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        errors.update(_measure(folder, adapter))
        check_errors(errors, ERROR_LIMITS[dtype])

    write_folder(out, write)
    return Export(path=out, dtype=dtype, errors=errors)


def _config_of(adapter: NativeAdapter) -> dict[str, Any]:
    names = [name for group in adapter.groups for name in group.members]
    _check_layers(adapter.base, names)
    model: Any = adapter.base
    blocks = int(model.config.num_hidden_layers)
    first = min((int(name.removeprefix(_BLOCKS).partition(".")[0]) for name in names if name.startswith(_BLOCKS)), default=0)
    parameters = {"rank": _rank_of(adapter), "scale": _SCALE, "dropout": 0.0, "keys": sorted({_key_of(name) for name in names})}
    # mlx-lm counts blocks from the last one.
    config = {"fine_tune_type": "lora", "num_layers": blocks - first, "lora_parameters": parameters}
    base = adapter.config.base_model_name_or_path
    return config | ({"model": base} if base else {})


def _check_layers(model: Any, names: Iterable[str]) -> None:
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in MODEL_TYPES:
        hint = f"supported: {', '.join(sorted(MODEL_TYPES))}; for others merge the adapter and convert the model"
        raise InvalidAdapterConfig("mlx-lm names the layers of this architecture otherwise", path="base_model", value=model_type, hint=hint)
    problems = []
    for name in names:
        if name == "lm_head" and model.config.tie_word_embeddings:
            problems.append(Problem(path=name, message="mlx-lm has no separate output layer where embeddings are tied"))
        elif name != "lm_head" and not name.startswith(_BLOCKS):
            problems.append(Problem(path=name, message="mlx-lm has no such layer"))
    if problems:
        raise InvalidAdapterConfig("some layers have no place in an MLX adapter", problems=problems)


def _key_of(name: str) -> str:
    """Return what mlx-lm calls a layer inside its block: ``self_attn.q_proj`` of ``model.layers.3.self_attn.q_proj``."""
    return name.removeprefix(_BLOCKS).partition(".")[2] if name.startswith(_BLOCKS) else name


def _rank_of(adapter: NativeAdapter) -> int:
    return max(group.rank for group in adapter.groups)


def _tensors_of(adapter: NativeAdapter, dtype: MlxDtype) -> dict[str, Tensor]:
    rank = _rank_of(adapter)
    tensors = {}
    for edit in adapter.edits():
        factors = low_rank_factors(edit) if dtype == "float32" else balanced(low_rank_factors(edit))
        missing = rank - factors.rank
        tensors[f"{edit.name}.lora_a"] = _stored(np.pad(factors.down, ((0, missing), (0, 0))).T, dtype)
        tensors[f"{edit.name}.lora_b"] = _stored(np.pad(factors.up / _SCALE, ((0, 0), (0, missing))).T, dtype)
    return tensors


def _stored(array: Array, dtype: MlxDtype) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    return torch.from_numpy(np.ascontiguousarray(array)).to(kind)


def _measure(folder: Path, adapter: NativeAdapter) -> dict[str, float]:
    """Return each layer's error in numpy, by the formula with which mlx-lm fuses: ``(scale·Bᵀ) Aᵀ``."""
    scale = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["lora_parameters"]["scale"]
    tensors = load_file(folder / WEIGHTS_FILE)
    errors = {}
    for edit in adapter.edits():
        down, up = (tensors[f"{edit.name}.{part}"].double().numpy().T for part in ("lora_a", "lora_b"))
        errors[edit.name] = relative_error(Factors(up=scale * up, down=down), edit.factors())
    return errors
