"""A whole model with the adapter in its weights, for everything that knows no adapters."""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, Problem
from wegeft.method.export_folder import Export, check_dtype, check_free, write_folder
from wegeft.method.low_rank import ratio
from wegeft.method.merging import delta_bias, delta_weight
from wegeft.method.native_adapter import AdapterSource, LayerEdit, NativeAdapter, read_adapter
from wegeft.method.stored_base import check_same_base, copy_tokenizer, open_base
from wegeft.method.stored_head import open_base_of

MergedDtype = Literal["float32", "float16", "bfloat16"]

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Changes:
    tensors: State
    """By key of the base model's state, as they will be stored."""
    errors: dict[str, float]
    weight_errors: dict[str, float]
    """By layer, as in ``Export``."""


def merge_into(
    base: nn.Module | str | os.PathLike[str] | None,
    adapter: AdapterSource,
    out_dir: str | os.PathLike[str],
    *,
    dtype: MergedDtype | None = None,
    allow_other_base: bool = False,
    adapter_name: str = "default",
) -> Export:
    """Write a model folder with ``W (I + s·φψ)``, or ``(I + s·φψ) W`` and its bias, that plain transformers loads.

    ``base``: a model, a folder or a ``.gguf`` file on this machine, or None to take it from ``adapter``, a PEFT model; it is not changed.
    ``dtype``: how all weights are stored; by default as the base model's are, float32 for a GGUF file. The sum is made in float64 and
    rounded once; the result says how much of ΔW, and of the weight, that rounding took. Modules trained in full are put in, an output
    layer that was tied to the embeddings is written separately if the adapter edits it, and a stored base's tokenizer comes along.

    Raises ``FileExistsError`` if ``out_dir`` exists and is not an empty folder; ``InvalidAdapterConfig`` if the adapter names another
    base model and ``allow_other_base`` is False, does not fit the base, or the base is quantised; ``InvalidTensors`` if ``dtype`` cannot
    hold the weights; ``BaseModelNotFound`` or ``BaseModelUnusable`` for a base that cannot be opened.
    """
    if dtype is not None:
        check_dtype(dtype, get_args(MergedDtype))
    out = Path(out_dir)
    check_free(out)
    stored = Path(base) if isinstance(base, str | os.PathLike) else None
    native = read_adapter(adapter, _as_model(base) if stored is None else _opened(stored, adapter), adapter_name)
    if not allow_other_base:
        check_same_base(native.config, str(stored) if stored is not None else getattr(native.base, "name_or_path", None))
    model = _checked(native.base)
    changes = _changes(native, None if dtype is None else getattr(torch, dtype))
    state, are_tied = _merged_state(model, changes.tensors, dtype)

    def write(folder: Path) -> None:
        _save(model, state, folder, are_tied=are_tied)
        if stored is not None:
            copy_tokenizer(stored, folder)

    write_folder(out, write)
    return Export(path=out, dtype=dtype or _dtype_name(changes.tensors), errors=changes.errors, weight_errors=changes.weight_errors)


def _opened(stored: Path, adapter: AdapterSource) -> nn.Module:
    return open_base(stored) if isinstance(adapter, nn.Module) else open_base_of(stored, Path(adapter))


def _as_model(base: object) -> nn.Module | None:
    if base is not None and not isinstance(base, nn.Module):
        raise InvalidAdapterConfig("the base is neither a model nor a path", path="base", value=type(base).__name__)
    return base


def _checked(base: nn.Module) -> PreTrainedModel:
    if not isinstance(base, PreTrainedModel):
        raise InvalidAdapterConfig("only models of transformers can be written as a folder", path="base", value=type(base).__name__)
    method = getattr(getattr(base, "hf_quantizer", None), "quantization_config", None)
    # Weights read from GGUF are plain by now.
    if method is not None and str(getattr(method.quant_method, "value", method.quant_method)) != "gguf":
        raise InvalidAdapterConfig("a quantised base model cannot be merged into", path="base", hint="load it without quantisation")
    return base


def _changes(adapter: NativeAdapter, dtype: torch.dtype | None) -> _Changes:
    whole = {key: tensor if dtype is None else tensor.to(dtype) for key, tensor in adapter.whole_modules().items()}
    changes = _Changes(tensors=whole, errors={}, weight_errors={})
    for edit in adapter.edits():
        _add_change(changes, edit, dtype or _storage_dtype(adapter.base.get_submodule(edit.name)))
    return changes


def _add_change(changes: _Changes, edit: LayerEdit, dtype: torch.dtype) -> None:
    delta = delta_weight(edit.weight, edit.edit)
    merged = edit.weight + delta
    stored = merged.to(dtype)
    _check_held([edit.name] if _overflowed(stored, merged) else [])
    changes.tensors[f"{edit.name}.weight"] = (stored.t() if edit.is_transposed else stored).contiguous()
    rounding = float((stored.double() - merged).norm())
    changes.errors[edit.name] = ratio(rounding, float(delta.norm()))
    changes.weight_errors[edit.name] = ratio(rounding, float(merged.norm()))
    bias_change = None if edit.bias is None else delta_bias(edit.bias, edit.edit)
    if edit.bias is not None and bias_change is not None:
        changes.tensors[f"{edit.name}.bias"] = (edit.bias + bias_change).to(dtype)


def _storage_dtype(layer: Any) -> torch.dtype:
    inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    kind: torch.dtype = inner.weight.dtype
    return kind


def _dtype_name(state: Mapping[str, Tensor]) -> str:
    return "+".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))


def _merged_state(model: PreTrainedModel, changed: State, dtype: str | None) -> tuple[State, bool]:
    """Return the whole state after the change, and whether the weights that the base ties are still one."""
    state = {key: tensor.detach() for key, tensor in _plain_state(model).items()}
    unknown = sorted(changed.keys() - state.keys())
    if unknown:
        hint = "open the model with the head that the adapter was trained with"
        raise InvalidAdapterConfig("the base model has no such tensors", path="base", value=", ".join(unknown), hint=hint)
    parted = _parted_keys(model, state, changed)
    return _cast(state, None if dtype is None else getattr(torch, dtype)) | changed, not parted


def _parted_keys(model: PreTrainedModel, state: State, changed: State) -> set[str]:
    """Return the keys of what shares memory with a changed tensor and stays as it was; only embeddings and the output layer may."""
    owners: dict[int, set[str]] = {}
    for key, tensor in state.items():
        owners.setdefault(tensor.data_ptr(), set()).add(key)
    parted = {other for key in changed for other in owners[state[key].data_ptr()]} - changed.keys()
    tables = (getattr(layer, "weight", None) for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    ends = [table.data_ptr() for table in tables if isinstance(table, Tensor)]
    strange = sorted(key for key in parted if state[key].data_ptr() not in ends)
    if strange:
        message = "merging would change layers that share a weight with an edited one"
        raise InvalidAdapterConfig(message, path="base", value=", ".join(strange))
    return parted


def _plain_state(model: nn.Module) -> State:
    """Return the state under the names that the model had before adapters wrapped some of its modules."""
    plain: State = {}
    for key, tensor in model.state_dict().items():
        if ".modules_to_save." not in key and ".wegeft_generators." not in key:
            plain[key.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return plain


def _cast(state: State, dtype: torch.dtype | None) -> State:
    if dtype is None:
        return state
    cast = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    _check_held(key for key, tensor in cast.items() if _overflowed(tensor, state[key]))
    return cast


def _overflowed(stored: Tensor, exact: Tensor) -> bool:
    return stored.is_floating_point() and not torch.isfinite(stored).all() and bool(torch.isfinite(exact).all())


def _check_held(overflowed: Iterable[str]) -> None:
    hint = "choose bfloat16 or float32"
    problems = [Problem(path=key, message="the storage type cannot hold these weights", hint=hint) for key in overflowed]
    if problems:
        raise InvalidTensors("the merged model cannot be stored in this type", problems=problems)


def _save(model: PreTrainedModel, state: State, folder: Path, *, are_tied: bool) -> None:
    """Save the state through an empty model of the same class, so that the base stays as it is."""
    config = copy.deepcopy(model.config)
    # Plain weights under a quantised configuration would be refused, and read back wrongly.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if not are_tied:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    with torch.device("meta"):
        shell = type(model)(config)
    shell.load_state_dict(state, strict=True, assign=True)
    if are_tied:
        shell.tie_weights()
    if shell.can_generate():
        shell.generation_config = model.generation_config
    shell.save_pretrained(folder)
