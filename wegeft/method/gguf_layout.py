"""What llama.cpp calls the layers of a model, and in which order it keeps their rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from torch import nn

from wegeft.contracts.errors import InvalidAdapterConfig, Problem
from wegeft.method.low_rank import Array


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp stores one family of models."""

    name: str
    """``general.architecture``."""
    pairs_are_adjacent: bool = False
    """Whether q and k keep the two numbers that a rotation mixes side by side, where transformers keeps them half a head apart."""


ARCHITECTURES = {
    "arcee": Architecture(name="arcee", pairs_are_adjacent=True),
    "gemma": Architecture(name="gemma"),
    "gemma2": Architecture(name="gemma2"),
    "gemma3_text": Architecture(name="gemma3"),
    "gpt2": Architecture(name="gpt2"),
    "granite": Architecture(name="granite", pairs_are_adjacent=True),
    "llama": Architecture(name="llama", pairs_are_adjacent=True),
    "mistral": Architecture(name="llama", pairs_are_adjacent=True),
    "olmo": Architecture(name="olmo", pairs_are_adjacent=True),
    "olmo2": Architecture(name="olmo2"),
    "phi3": Architecture(name="phi3"),
    "qwen2": Architecture(name="qwen2"),
    "qwen3": Architecture(name="qwen3"),
    "smollm3": Architecture(name="smollm3", pairs_are_adjacent=True),
    "starcoder2": Architecture(name="starcoder2"),
}
"""By transformers' ``model_type``. Only families whose linear layers llama.cpp's converter (``conversion/*.py``) stores whole, under one
name each, changed by nothing but the order of the rows of q and k."""


def join_pairs(rows: Array, heads: int) -> Array:
    """Return the rows of q or k with rotated pairs adjacent: row ``2i + h`` of a head is its row ``h·(size/2) + i``. rows: out×any.

    Source: ``LlamaModel.permute`` in llama.cpp's ``conversion/llama.py``.
    """
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def part_pairs(rows: Array, heads: int) -> Array:
    """Undo ``join_pairs``."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where llama.cpp keeps one layer's weight."""

    tensor: str
    """``blk.3.attn_q.weight``."""
    heads: int | None
    """How many heads' pairs are adjacent there; None where the rows are as in transformers."""

    def to_stored(self, rows: Array) -> Array:
        """Return rows of transformers' order in the stored order."""
        return rows if self.heads is None else join_pairs(rows, self.heads)

    def from_stored(self, rows: Array) -> Array:
        """Return stored rows in transformers' order."""
        return rows if self.heads is None else part_pairs(rows, self.heads)


def architecture_of(model: nn.Module) -> Architecture:
    """Return how llama.cpp stores the model; raise ``InvalidAdapterConfig`` for a family not in ``ARCHITECTURES``."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    found = ARCHITECTURES.get(str(model_type))
    if found is None:
        hint = f"supported: {', '.join(ARCHITECTURES)}; for others merge the adapter and convert the model"
        raise InvalidAdapterConfig("there is no GGUF layout for this architecture", path="base_model", value=model_type, hint=hint)
    return found


def places_of(model: nn.Module, names: Iterable[str]) -> dict[str, Place]:
    """Return where llama.cpp keeps the named layers; raise ``InvalidAdapterConfig`` with every layer that it does not have."""
    architecture = architecture_of(model)
    config: Any = model.config
    blocks = int(config.num_hidden_layers)
    tensor_names = gguf.get_tensor_name_map(_model_arch(architecture), blocks)
    found = {name: tensor_names.get_name(f"{name}.weight", try_suffixes=(".weight",)) for name in names}
    problems = [Problem(path=name, message=f"llama.cpp's {architecture.name} has no such tensor") for name, t in found.items() if not t]
    if config.tie_word_embeddings:
        tied = [name for name, tensor in found.items() if tensor == "output.weight"]
        problems += [Problem(path=name, message="llama.cpp has no separate output layer where embeddings are tied") for name in tied]
    if problems:
        raise InvalidAdapterConfig("some layers have no place in a GGUF adapter", problems=problems)
    return {name: Place(tensor=str(tensor), heads=_heads(architecture, config, name)) for name, tensor in found.items()}


def _model_arch(architecture: Architecture) -> Any:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)


def _heads(architecture: Architecture, config: Any, name: str) -> int | None:
    if not architecture.pairs_are_adjacent:
        return None
    match name.rpartition(".")[2]:
        case "q_proj":
            return int(config.num_attention_heads)
        case "k_proj":
            return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        case _:
            return None


def quantise(array: Array, kind: gguf.GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Return rows of numbers in a storage type of ggml: typed numbers for F32 and F16, raw bytes for the others."""
    with np.errstate(over="ignore"):  # What does not fit becomes infinite, and the reader of the result says so.
        quantised: np.ndarray[Any, Any] = gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), kind)
    return quantised


def dequantise(stored: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> Array:
    """Return the numbers that ggml reads from ``stored``."""
    return np.asarray(gguf.quants.dequantize(stored, kind), dtype=np.float64)
