"""safetensors bytes from numpy arrays: equal tensors give equal bytes, so that their digest names them.

The format is told in :mod:`wegeft.contracts.tensors`, which reads what this writes. Names are sorted, the header has no spaces but those
that align the numbers to eight bytes, and metadata is sorted too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wegeft.contracts.errors import InvalidTensors

StoredType = Literal["F64", "F32", "BF16"]
"""Types that numbers are rounded to."""
WrittenType = StoredType | Literal["I8"]
"""Types that a file can hold; what is to be ``I8`` must be int8 already."""

_ALIGNMENT = 8


def write_tensors(
    tensors: Mapping[str, NDArray[Any]],
    stored: WrittenType | Mapping[str, WrittenType] = "F32",
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the safetensors file of ``tensors``, each rounded to ``stored``, a type or one by name; those without any number are left out.

    Raises :class:`InvalidTensors` where a number is not finite, or would not be after rounding.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    pieces, reached = [], 0
    for name in sorted(name for name, array in tensors.items() if array.size):
        kind = stored if isinstance(stored, str) else stored[name]
        numbers = _stored(name, tensors[name], kind)
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [reached, reached + numbers.nbytes]}
        pieces.append(numbers)
        reached += numbers.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *(numbers.data for numbers in pieces)])


def _stored(name: str, array: NDArray[Any], stored: WrittenType) -> NDArray[Any]:
    """Return the numbers as they stand in the file, row after row; ``array`` itself where it is just that."""
    if stored == "I8":
        return np.ascontiguousarray(array.astype(np.int8, casting="safe"))
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, dtype="<f8" if stored == "F64" else "<f4")
    if stored == "BF16":
        bits = bfloat16_bits(numbers)
        numbers = widen_bfloat16(bits)
    if not np.isfinite(numbers).all():
        raise InvalidTensors("holds a number that is not finite", path=name, hint=f"as {stored}")
    return bits.astype("<u2") if stored == "BF16" else numbers


def bfloat16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of the bfloat16 numbers nearest to ``array``, ties to even."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 numbers that bfloat16 bits stand for; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_to(array: NDArray[Any], stored: StoredType) -> NDArray[np.float64]:
    """Return ``array`` as it comes back from a file of ``stored`` numbers; what is missing is error feedback for the next time."""
    match stored:
        case "F64":
            return array.astype(np.float64)
        case "F32":
            return array.astype(np.float32).astype(np.float64)
        case "BF16":
            return widen_bfloat16(bfloat16_bits(array.astype(np.float32))).astype(np.float64)
