"""An adapter in this package's own form beside the base model that it edits: what every export starts from."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem, shorten
from wegeft.method.config import WeGeFTConfig
from wegeft.method.inspection import adapter_state_dict
from wegeft.method.layer import WeGeFTLinear
from wegeft.method.low_rank import Factors
from wegeft.method.merging import Edit
from wegeft.method.shared_input import SharedInput
from wegeft.method.sharing import Group, plan_groups
from wegeft.method.targets import named_layers

GENERATOR_PREFIX = "base_model.wegeft_generators."
"""What the keys of generators start with in an adapter's file; the group's key and ``.phi`` or ``.psi`` follow."""
MODULE_PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's own tensors."""

_FROZEN = ".base_layer."
"""In the keys of weights that an adapter edits and PEFT filed all the same."""

AdapterSource = str | os.PathLike[str] | nn.Module
"""A folder that ``save_pretrained`` wrote, or a PEFT model."""


@dataclass(frozen=True, kw_only=True)
class LayerEdit:
    """What an adapter does to one linear layer, in float64 on the CPU."""

    name: str
    """Of the layer, in the base model."""
    weight: Tensor
    """The frozen weight, out×in whatever the layer's layout, dequantised if need be."""
    bias: Tensor | None
    edit: Edit
    is_transposed: bool
    """Whether the layer keeps its weight as in×out (GPT-2's Conv1D)."""

    def factors(self) -> Factors:
        """Return ΔW as ``up·down``: ``(s·Wφ)·ψ`` for the input form, ``(s·φ)·(ψW)`` for the output form."""
        phi, psi, weight = (_array(t) for t in (self.edit.phi, self.edit.psi, self.weight))
        if self.edit.transform == "input":
            return Factors(up=weight @ phi, down=psi)
        return Factors(up=phi, down=psi @ weight)

    @property
    def edits_bias(self) -> bool:
        """Whether the bias changes too, which no low-rank adapter of another engine can express."""
        return self.edit.transform == "output" and self.bias is not None and bool(self.bias.any())


@dataclass(frozen=True, kw_only=True)
class NativeAdapter:
    """An adapter whose tensors were checked against its configuration and its base model."""

    config: WeGeFTConfig
    tensors: Mapping[str, Tensor]
    """As ``adapter_model.safetensors`` holds them."""
    base: nn.Module
    groups: tuple[Group, ...]

    def edits(self) -> Iterator[LayerEdit]:
        """Yield the edit of each layer, one at a time, so that only one weight is held in float64."""
        layers = dict(named_layers(self.base))
        for group in self.groups:
            phi, psi = (_exact(self.tensors[f"{GENERATOR_PREFIX}{group.key}.{part}"]) for part in ("phi", "psi"))
            edit = Edit(phi=group.scaling * phi, psi=psi, transform=self.config.transform)
            for name in group.members:
                weight, bias = WeGeFTLinear(layers[name], name, SharedInput()).base_parameters()
                yield LayerEdit(
                    name=name,
                    weight=_exact(weight),
                    bias=None if bias is None else _exact(bias),
                    edit=edit,
                    is_transposed=isinstance(layers[name], Conv1D),
                )

    def whole_modules(self) -> dict[str, Tensor]:
        """Return the tensors that replace the base model's own (``modules_to_save``), under their names in the base model.

        PEFT also files the frozen weight of an edited output layer; what equals the base model's brings nothing and is left out.
        Raises ``InvalidAdapterConfig`` if such a frozen weight is not the base model's.
        """
        layers = dict(named_layers(self.base))
        found = {}
        for key, tensor in self.tensors.items():
            name = key.removeprefix(MODULE_PREFIX).replace(_FROZEN, ".")
            if key.startswith(GENERATOR_PREFIX) or _is_same(tensor, layers, name):
                continue
            if _FROZEN in key:
                raise InvalidAdapterConfig("the adapter was trained on another weight than the base model's", path=name)
            found[name] = tensor
        return found

    def check_low_rank(self, engine: str) -> None:
        """Raise ``InvalidAdapterConfig`` if the adapter trains modules in full, which low-rank adapters of ``engine`` cannot carry."""
        names = sorted(self.whole_modules())
        if names:
            message = f"adapters of {engine} cannot carry modules that were trained in full"
            raise InvalidAdapterConfig(message, path="modules_to_save", value=", ".join(names), hint="merge the adapter instead")


def _is_same(tensor: Tensor, layers: Mapping[str, nn.Module], name: str) -> bool:
    owner, _, part = name.rpartition(".")
    module = layers.get(owner)
    own = getattr(module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module, part, None)
    return isinstance(own, Tensor) and own.shape == tensor.shape and torch.equal(tensor.to(own.device, own.dtype), own)


def low_rank_factors(edit: LayerEdit) -> Factors:
    """Return the factors of an edit; raise ``InvalidAdapterConfig`` if it changes a bias, which no factors express."""
    if edit.edits_bias:
        raise InvalidAdapterConfig("the output form edits the bias, which LoRA cannot", path=edit.name, hint="merge the adapter instead")
    return edit.factors()


def read_adapter(source: AdapterSource, base_model: nn.Module | None, adapter_name: str = "default") -> NativeAdapter:
    """Return the adapter of a folder on ``base_model``, or of a PEFT model, whose base is used if ``base_model`` is None.

    Raises ``InvalidAdapterConfig`` if there is no WeGeFT adapter, or it is merged, or does not fit the base model; ``InvalidTensors``
    if the file does not hold its generators. Pickled files are never read.
    """
    if isinstance(source, nn.Module):
        config, tensors = _from_model(source, adapter_name)
        base = base_model if base_model is not None else _base_of(source)
    else:
        if base_model is None:
            raise InvalidAdapterConfig("converting a folder needs the base model that it was trained on", path="base_model")
        config, tensors = _from_folder(Path(source))
        base = base_model
    groups = tuple(plan_groups(base, config))
    check_generators(tensors, groups)
    return NativeAdapter(config=config, tensors=tensors, base=base, groups=groups)


def read_config(folder: Path) -> WeGeFTConfig:
    """Return the configuration of an adapter's folder; raise ``InvalidAdapterConfig`` if it holds no WeGeFT adapter."""
    # PEFT would look a missing folder up in the network.
    if not (folder / CONFIG_NAME).is_file():
        raise InvalidAdapterConfig(f"the folder has no {CONFIG_NAME}", path=str(folder))
    try:
        config = WeGeFTConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidAdapterConfig(f"its {CONFIG_NAME} cannot be read: {shorten(str(error))}", path=str(folder)) from error
    if not isinstance(config, WeGeFTConfig):
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        hint = "adapters of PEFT's own methods are read as they are"
        raise InvalidAdapterConfig("the folder does not hold a WeGeFT adapter", path=str(folder), value=kind, hint=hint)
    return config


def _from_folder(folder: Path) -> tuple[WeGeFTConfig, Mapping[str, Tensor]]:
    config = read_config(folder)
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise InvalidTensors(f"the folder has no {SAFETENSORS_WEIGHTS_NAME}", path=str(folder), hint="pickled weights are never read")
    try:
        return config, load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except SafetensorError as error:
        raise InvalidTensors(f"{SAFETENSORS_WEIGHTS_NAME} cannot be read: {shorten(str(error))}", path=str(folder)) from error


def _from_model(model: Any, adapter_name: str) -> tuple[WeGeFTConfig, Mapping[str, Tensor]]:
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, WeGeFTConfig):
        raise InvalidAdapterConfig("the model does not hold a WeGeFT adapter of this name", path="adapter_name", value=adapter_name)
    if any(isinstance(module, WeGeFTLinear) and module.merged for module in model.modules()):
        raise InvalidAdapterConfig("a merged model has no separate adapter to convert", hint="call unmerge_adapter() first")
    return config, adapter_state_dict(model, adapter_name)


def _base_of(model: Any) -> nn.Module:
    base: nn.Module = model.get_base_model()
    return base


def check_generators(tensors: Mapping[str, Tensor], groups: tuple[Group, ...]) -> None:
    """Raise ``InvalidTensors`` unless every generator is there, in shape and finite."""
    shapes = {f"{GENERATOR_PREFIX}{group.key}.phi": (group.width, group.rank) for group in groups}
    shapes |= {f"{GENERATOR_PREFIX}{group.key}.psi": (group.rank, group.width) for group in groups}
    problems = []
    for key, shape in sorted(shapes.items()):
        found = tensors.get(key)
        seen = None if found is None else tuple(found.shape)
        if seen != shape:
            problems.append(Problem(path=key, message=f"must have shape {shape}", value="missing" if seen is None else str(seen)))
        elif found is not None and not torch.isfinite(found).all():
            problems.append(Problem(path=key, message="holds numbers that are not finite"))
    if problems:
        raise InvalidTensors("the adapter's tensors do not fit its configuration and the base model", problems=problems)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(tensor.numpy(), dtype=np.float64)
