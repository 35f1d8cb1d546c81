"""From generators to what every engine reads: a standard LoRA folder that computes exactly the same."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem
from wegeft.method.config import WeGeFTConfig
from wegeft.method.inspection import adapter_state_dict
from wegeft.method.layer import WeGeFTLinear
from wegeft.method.shared_input import SharedInput
from wegeft.method.sharing import Group, plan_groups
from wegeft.method.targets import named_layers

_GENERATOR = "base_model.wegeft_generators."
_MODULE = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    config: WeGeFTConfig
    tensors: Mapping[str, Tensor]
    model: nn.Module


def to_lora(source: Any, base_model: nn.Module | None, out_dir: str | os.PathLike[str], *, adapter_name: str = "default") -> Path:
    """Write a LoRA folder that computes exactly what the adapter does, and return its path; all of it appears at once, or nothing.

    ``source``: a PEFT model with WeGeFT adapters, or a folder that ``save_pretrained`` wrote; ``base_model``: the model that the folder's
    adapter was trained on, or None to take it from the PEFT model. Per layer ``A = ψ``, ``B = s·Wφ`` (output form: ``A = ψW``,
    ``B = s·φ``), in float32, smaller ranks padded with zeros, so that ``lora_alpha = r`` and no pattern is needed: the profile that
    PEFT, vLLM and converters agree on. ``modules_to_save`` are carried along; engines may refuse those.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidAdapterConfig`` if the adapter does not fit the
    base model, is merged, or edits a bias, which LoRA cannot; ``InvalidTensors`` if the file does not hold the generators.
    """
    adapter = _from_folder(Path(source), base_model) if isinstance(source, str | os.PathLike) else _from_model(source, adapter_name)
    groups = plan_groups(adapter.model, adapter.config)
    tensors = _lora_tensors(adapter, groups)
    config = _lora_config(adapter, groups)
    out = Path(out_dir)

    def write(folder: Path) -> None:
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    _write_folder(out, write)
    return out


def _from_folder(folder: Path, base_model: nn.Module | None) -> _Adapter:
    if base_model is None:
        raise InvalidAdapterConfig("converting a folder needs the base model that it was trained on", path="base_model")
    config = WeGeFTConfig.from_pretrained(str(folder))
    if not isinstance(config, WeGeFTConfig):
        raise InvalidAdapterConfig("the folder does not hold a WeGeFT adapter", path=str(folder), value=getattr(config, "peft_type", None))
    return _Adapter(config=config, tensors=load_file(folder / SAFETENSORS_WEIGHTS_NAME), model=base_model)


def _from_model(source: Any, adapter_name: str) -> _Adapter:
    config = source.peft_config[adapter_name]
    if not isinstance(config, WeGeFTConfig):
        raise InvalidAdapterConfig("the model does not hold a WeGeFT adapter", path=adapter_name, value=config.peft_type)
    if any(isinstance(module, WeGeFTLinear) and module.merged for module in source.modules()):
        raise InvalidAdapterConfig("a merged model has no separate adapter to convert", hint="call unmerge_adapter() first")
    return _Adapter(config=config, tensors=adapter_state_dict(source, adapter_name), model=source.get_base_model())


@torch.no_grad()
def _lora_tensors(adapter: _Adapter, groups: list[Group]) -> dict[str, Tensor]:
    _check_generators(adapter, groups)
    layers = dict(named_layers(adapter.model))
    rank = max(group.rank for group in groups)
    tensors = {}
    for group in groups:
        phi, psi = (adapter.tensors[f"{_GENERATOR}{group.key}.{part}"].float() for part in ("phi", "psi"))
        for name in group.members:
            weight = _weight_of(layers[name], name, adapter.config).to(phi.device)
            down, up = (psi, weight @ phi) if adapter.config.transform == "input" else (psi @ weight, phi)
            tensors[f"{_MODULE}{name}.lora_A.weight"] = pad(down, (0, 0, 0, rank - group.rank)).contiguous().clone()
            tensors[f"{_MODULE}{name}.lora_B.weight"] = pad(group.scaling * up, (0, rank - group.rank)).contiguous()
    return tensors | {key: tensor.clone() for key, tensor in adapter.tensors.items() if not key.startswith(_GENERATOR)}


def _check_generators(adapter: _Adapter, groups: list[Group]) -> None:
    shapes = {f"{_GENERATOR}{group.key}.phi": (group.width, group.rank) for group in groups}
    shapes |= {f"{_GENERATOR}{group.key}.psi": (group.rank, group.width) for group in groups}
    problems = []
    for key, shape in sorted(shapes.items()):
        found = adapter.tensors.get(key)
        seen = None if found is None else tuple(found.shape)
        if seen != shape:
            problems.append(Problem(path=key, message=f"must have shape {shape}", value="missing" if seen is None else str(seen)))
    if problems:
        raise InvalidTensors("the adapter's tensors do not fit its configuration and the base model", problems=problems)


def _weight_of(layer: nn.Module, name: str, config: WeGeFTConfig) -> Tensor:
    """Return the frozen weight as float32 out×in; dequantised if need be."""
    weight, bias = WeGeFTLinear(layer, name, SharedInput()).base_parameters()
    if config.transform == "output" and bias is not None and bool(bias.any()):
        raise InvalidAdapterConfig("the output form edits the bias, which LoRA cannot", path=name, hint="merge the adapter instead")
    return weight.float()


def _lora_config(adapter: _Adapter, groups: list[Group]) -> dict[str, Any]:
    names = sorted(name for group in groups for name in group.members)
    layers = dict(named_layers(adapter.model))
    rank = max(group.rank for group in groups)
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


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        write(folder)
        folder.rename(out)
