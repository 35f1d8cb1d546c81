"""How large factors may be that the hub computes with, told by the headers of their files before a number is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wegeft.contracts.errors import Problem
from wegeft.contracts.gguf_file import GgufAdapter
from wegeft.contracts.tensors import TensorHeader

MAX_RANK = 4096
"""What compares factors makes matrices of rank×rank, or of twice as many rows and columns."""
MAX_FACTOR_BYTES = 256 << 20
"""Of one factor in float64."""
MAX_GENERATOR_BYTES = 1 << 30
"""Of all the factors of a version that are held at once, in float64."""

_FLOAT64_BYTES = 8
_GENERATOR = re.compile(r"base_model\.wegeft_generators\..+(?P<end>\.phi|\.psi)\Z")
_LORA = re.compile(r".+(?P<end>\.lora_A\.weight|\.lora_B\.weight|\.lora_a|\.lora_b)\Z")
_RANK_AXES = {".phi": 1, ".psi": 0, ".lora_A.weight": 0, ".lora_B.weight": 1, ".lora_a": 1, ".lora_b": 0}
"""By the end of a factor's name in safetensors; mlx-lm stores both of its factors transposed."""


@dataclass(frozen=True, kw_only=True)
class FactorSize:
    """How large a factor is."""

    name: str
    rank: int
    count: int
    """Of its numbers."""


def sizes_of(header: TensorHeader) -> Iterator[FactorSize]:
    """Yield the size of every factor of a generator, a LoRA or an mlx-lm adapter in safetensors."""
    for spec in header.tensors:
        found = _GENERATOR.match(spec.name) or _LORA.match(spec.name)
        if found:
            rank = spec.shape[_RANK_AXES[found["end"]]] if len(spec.shape) > 1 else 1
            yield FactorSize(name=spec.name, rank=rank, count=math.prod(spec.shape))


def gguf_sizes_of(adapter: GgufAdapter) -> Iterator[FactorSize]:
    """Yield the size of every factor of a GGUF adapter."""
    for name, tensor in adapter.tensors.items():
        yield FactorSize(name=name, rank=tensor.rows if name.endswith(".lora_a") else tensor.columns, count=tensor.rows * tensor.columns)


def size_problems(sizes: Iterable[FactorSize]) -> Iterator[Problem]:
    """Yield every factor that is too large to be compared with another."""
    for one in sizes:
        size = one.count * _FLOAT64_BYTES
        if one.rank > MAX_RANK:
            yield Problem(path=one.name, message="the rank is too large to be checked", value=str(one.rank), hint=f"at most {MAX_RANK}")
        if size > MAX_FACTOR_BYTES:
            hint = f"at most {MAX_FACTOR_BYTES}"
            yield Problem(path=one.name, message="the factor is too large to be checked", value=f"{size} bytes in float64", hint=hint)


def generator_problems(header: TensorHeader, *, transform: str) -> Iterator[Problem]:
    """Yield in what a version's generators are too large to be compared with a derived format's; ``transform``: ``input`` or ``output``."""
    sizes = [size for size in sizes_of(header) if _GENERATOR.match(size.name)]
    yield from size_problems(sizes)
    end = ".psi" if transform == "input" else ".phi"
    held = sum(size.count for size in sizes if size.name.endswith(end)) * _FLOAT64_BYTES
    if held > MAX_GENERATOR_BYTES:
        hint = f"at most {MAX_GENERATOR_BYTES}; convert it where it is used"
        yield Problem(
            path="format", message="the version's generators are too large to be checked", value=f"{held} bytes in float64", hint=hint
        )
