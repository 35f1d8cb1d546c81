"""From generators to what every engine reads: a standard LoRA folder that computes exactly the same."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from wegeft.method.export_folder import ERROR_LIMITS, Export, check_dtype, check_errors, check_free, write_folder
from wegeft.method.low_rank import Factors, balanced, relative_error
from wegeft.method.native_adapter import (
    GENERATOR_PREFIX,
    MODULE_PREFIX,
    AdapterSource,
    NativeAdapter,
    low_rank_factors,
    read_adapter,
)
from wegeft.method.targets import named_layers

LoraDtype = Literal["float32", "float16", "bfloat16"]


def to_lora(
    source: AdapterSource,
    base_model: nn.Module | None,
    out_dir: str | os.PathLike[str],
    *,
    dtype: LoraDtype = "float32",
    adapter_name: str = "default",
) -> Export:
    """Write a LoRA folder that computes exactly what the adapter does, read it back, and return how far it is from the adapter.

    ``source``: a PEFT model with WeGeFT adapters, or a folder that ``save_pretrained`` wrote; ``base_model``: the model that the folder's
    adapter was trained on, or None to take it from the PEFT model. Per layer ``A = ψ``, ``B = s·Wφ`` (output form: ``A = ψW``,
    ``B = s·φ``), smaller ranks padded with zeros, so that ``lora_alpha = r`` and no pattern is needed: the profile that PEFT, vLLM and
    converters agree on. ``modules_to_save`` are carried along; engines may refuse those. All of the folder appears at once, or nothing.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidAdapterConfig`` if the adapter does not fit the
    base model, is merged, or edits a bias, which LoRA cannot; ``InvalidTensors`` if the file does not hold the generators, or ``dtype``
    cannot hold the change.
    """
    check_dtype(dtype, get_args(LoraDtype))
    out = Path(out_dir)
    check_free(out)
    adapter = read_adapter(source, base_model, adapter_name)
    config = _lora_config(adapter)
    errors: dict[str, float] = {}

    def write(folder: Path) -> None:
        save_file(_lora_tensors(adapter, dtype), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        errors.update(_measure(folder, adapter))
        check_errors(errors, ERROR_LIMITS[dtype])

    write_folder(out, write)
    return Export(path=out, dtype=dtype, errors=errors)


def _lora_tensors(adapter: NativeAdapter, dtype: LoraDtype) -> dict[str, Tensor]:
    rank = max(group.rank for group in adapter.groups)
    kind: torch.dtype = getattr(torch, dtype)
    tensors = {key: tensor.clone() for key, tensor in adapter.tensors.items() if not key.startswith(GENERATOR_PREFIX)}
    for edit in adapter.edits():
        factors = low_rank_factors(edit) if dtype == "float32" else balanced(low_rank_factors(edit))
        missing = rank - factors.rank
        down, up = (torch.from_numpy(part).to(kind) for part in (factors.down, factors.up))
        tensors[f"{MODULE_PREFIX}{edit.name}.lora_A.weight"] = pad(down, (0, 0, 0, missing)).contiguous().clone()
        tensors[f"{MODULE_PREFIX}{edit.name}.lora_B.weight"] = pad(up, (0, missing)).contiguous()
    return tensors


def _measure(folder: Path, adapter: NativeAdapter) -> dict[str, float]:
    """Return each layer's error by the formula of every reader: ``(alpha / r)·B A``."""
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    errors = {}
    for edit in adapter.edits():
        down, up = (tensors[f"{MODULE_PREFIX}{edit.name}.lora_{part}.weight"].double().numpy() for part in "AB")
        errors[edit.name] = relative_error(Factors(up=scale * up, down=down), edit.factors())
    return errors


def _lora_config(adapter: NativeAdapter) -> dict[str, Any]:
    names = sorted(name for group in adapter.groups for name in group.members)
    layers = dict(named_layers(adapter.base))
    rank = max(group.rank for group in adapter.groups)
    source = adapter.config
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_short_names(names, layers),
        fan_in_fan_out=all(isinstance(layers[name], Conv1D) for name in names),
        modules_to_save=source.modules_to_save,
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        inference_mode=True,
    )
    fields: dict[str, Any] = {key: value for key, value in config.to_dict().items() if key != "runtime_config"}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}


def _short_names(names: list[str], layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the last parts of the names if those select just these layers, else the full names."""
    lasts = {name.rpartition(".")[2] for name in names}
    selected = {name for name in layers if name.rpartition(".")[2] in lasts}
    return sorted(lasts) if selected == set(names) else names
