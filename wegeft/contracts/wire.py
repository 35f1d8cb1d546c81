"""How the tensors of an update travel: in float32, in bfloat16, or as int8 with one scale for each row of its generator.

A site and its server must read the same numbers out of the same bytes, so both do it here. As ``int8``, a tensor ``<name>`` of type I8
holds whole numbers from −127 to 127, and ``<name>.scale`` of type F32 what they are multiplied with. Scales run along the tensor's shorter
side, which is the generator's rank in φ (width×rank) as in ψ (rank×width), so that they take next to nothing; its other sides are 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from wegeft.contracts.errors import InvalidTensors, Problem
from wegeft.contracts.tensor_writer import StoredType, round_to, write_tensors
from wegeft.contracts.tensors import FLOAT_TYPES, read_tensors

Wire = Literal["fp32", "bf16", "int8"]
"""Numbers in which updates travel."""

_SCALE = ".scale"
_LARGEST = 127
_LEAST_SCALE = float(np.finfo(np.float32).tiny)
_FLOATS: Mapping[Literal["fp32", "bf16"], StoredType] = {"fp32": "F32", "bf16": "BF16"}


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor's scales: the shorter side, the first of equal ones; a single scale where there are no two sides."""
    along = shape.index(min(shape)) if len(shape) > 1 else None
    return tuple(side if axis == along else 1 for axis, side in enumerate(shape))


def bytes_on(wire: Wire, shape: tuple[int, ...]) -> int:
    """Return how many bytes the numbers of one tensor take, scales and all, without the file's header."""
    count = math.prod(shape)
    match wire:
        case "fp32":
            return 4 * count
        case "bf16":
            return 2 * count
        case "int8":
            return count + 4 * math.prod(scale_shape(shape))
        case _:
            assert_never(wire)


def write_update(moved: Mapping[str, NDArray[Any]], wire: Wire) -> bytes:
    """Return the safetensors file of an update; equal updates give equal bytes.

    Raises :class:`InvalidTensors` where a number is not finite, or would not be on the wire.
    """
    if wire != "int8":
        return write_tensors(moved, _FLOATS[wire])
    pairs = {name: _quantised(name, array) for name, array in moved.items()}
    whole: dict[str, NDArray[Any]] = {name: numbers for name, (numbers, _) in pairs.items()}
    scales: dict[str, NDArray[Any]] = {f"{name}{_SCALE}": scale for name, (_, scale) in pairs.items()}
    return write_tensors(whole | scales, {**dict.fromkeys(whole, "I8"), **dict.fromkeys(scales, "F32")})


def read_update(content: bytes, wire: Wire) -> dict[str, NDArray[Any]]:
    """Return the numbers of an update's file by name, float32 on a ``bf16`` or ``int8`` wire.

    Raises :class:`InvalidTensors` with every problem of a file that is none, and on an ``int8`` wire of one whose types, scales or shapes
    are not as told above. Whether names and shapes are what was asked for is not looked at.
    """
    if wire != "int8":
        return read_tensors(content)
    tensors = read_tensors(content, accepted=FLOAT_TYPES | {"I8"})
    problems = list(_int8_problems(tensors))
    if problems:
        raise InvalidTensors("not an update in int8", problems=problems)
    return {name: _decoded(tensors[name], tensors[name + _SCALE]) for name in tensors if not name.endswith(_SCALE)}


def as_received(name: str, array: NDArray[Any], wire: Wire) -> NDArray[np.float64]:
    """Return ``array`` as :func:`read_update` gives it back; what is missing is left for the next time."""
    if wire != "int8":
        return round_to(array, _FLOATS[wire])
    return _decoded(*_quantised(name, array)).astype(np.float64)


def _quantised(name: str, array: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers and their scales; a row of zeros has the least scale."""
    if not np.isfinite(array).all() or np.abs(array).max(initial=0.0) > np.finfo(np.float32).max:
        raise InvalidTensors("holds a number that is not finite", path=name, hint="as int8")
    shape = scale_shape(array.shape)
    across = tuple(axis for axis, side in enumerate(shape) if side == 1)
    largest = np.abs(array.astype(np.float64)).max(axis=across, keepdims=True, initial=0.0)
    scale = np.maximum(largest / _LARGEST, _LEAST_SCALE).astype(np.float32)
    whole = np.clip(np.rint(array / scale.astype(np.float64)), -_LARGEST, _LARGEST)
    return whole.astype(np.int8), scale


def _decoded(whole: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # infinity is for whoever looks at the numbers
        return np.multiply(whole, scale, dtype=np.float32)


def _int8_problems(tensors: Mapping[str, NDArray[Any]]) -> Iterator[Problem]:
    for name, array in sorted(tensors.items()):
        if not name.endswith(_SCALE):
            yield from _whole_problems(name, array, tensors.get(name + _SCALE))
        elif name.removesuffix(_SCALE) not in tensors:
            yield Problem(path=name, message="is the scale of no tensor")
        elif array.dtype != np.float32:
            yield Problem(path=name, message="must be F32", value=array.dtype.name)
        elif not (array > 0).all():
            yield Problem(path=name, message="must be positive throughout", value=f"{float(array.min()):g}")


def _whole_problems(name: str, array: NDArray[Any], scale: NDArray[Any] | None) -> Iterator[Problem]:
    if array.dtype != np.int8:
        yield Problem(path=name, message="must be I8", value=array.dtype.name)
    elif int(array.min()) < -_LARGEST:
        yield Problem(path=name, message=f"must hold −{_LARGEST} to {_LARGEST}", value=str(int(array.min())))
    if scale is None:
        yield Problem(path=name + _SCALE, message="is missing")
    elif scale.shape != scale_shape(array.shape):
        yield Problem(path=name + _SCALE, message=f"must have shape {list(scale_shape(array.shape))}", value=str(list(scale.shape)))
