"""safetensors files, read strictly, as numpy arrays.

The format (huggingface/safetensors, README, "Format"): eight bytes with the header's length, little-endian; the header, a JSON object
from names to ``{"dtype", "shape", "data_offsets"}`` and, under ``__metadata__``, from strings to strings; then the numbers.

The library's own reader takes duplicate names, a leading space, hundred-megabyte headers, names with ``../`` and NaN. This one takes
nothing that the library would refuse or read differently, and of the rest only what an adapter needs. Time and memory are bounded
by ``MAX_HEADER_BYTES`` before a byte of the header is looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wegeft.contracts.errors import InvalidTensors, Problem, shorten
from wegeft.contracts.json_names import collect_unique

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 20_000
MAX_NAME_LENGTH = 256
MAX_DIMENSIONS = 8

_PREFIX_BYTES = 8
_CHUNK_BYTES = 1 << 20
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_STORED: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("<i1"),
}
"""How numpy reads the bytes of each type; it has no bfloat16."""
FLOAT_TYPES = frozenset({"F16", "BF16", "F32", "F64"})
"""Types that an adapter may have."""
_NAME = re.compile(r"[!-~]+\Z")
_MAX_PROBLEMS = 50
_LONGEST_KNOWN = 1 << 14
"""Bytes to a header's end, that one is remembered of at most: those that are remembered take a few megabytes."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor as a header describes it."""

    name: str
    dtype: str
    """``F16``, ``BF16``, ``F32`` or ``F64``; ``I8`` where the caller accepts it."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes start, counted from the end of the header."""
    end: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """What a safetensors file says about itself."""

    tensors: tuple[TensorSpec, ...]
    """In the order of their bytes."""
    metadata: Mapping[str, str]
    size: int
    """Bytes before the first tensor."""


def parse_header(content: bytes, file_size: int, accepted: frozenset[str] = FLOAT_TYPES) -> TensorHeader:
    """Return the header at the start of ``content``, which holds all of it, of a file of ``file_size`` bytes.

    ``accepted``: types that its tensors may have. Raises :class:`InvalidTensors` with every problem.
    """
    end = _header_end(content[:_PREFIX_BYTES], file_size)
    parse = _parse if end > _LONGEST_KNOWN else _parse_once
    return parse(bytes(content[_PREFIX_BYTES:end]), file_size, accepted)


def _parse(text: bytes, file_size: int, accepted: frozenset[str]) -> TensorHeader:
    end = _PREFIX_BYTES + len(text)
    entries = _load_json(text)
    metadata = entries.pop(_METADATA, {})
    if not 1 <= len(entries) <= MAX_TENSORS:
        raise InvalidTensors("the file holds too few or too many tensors", value=len(entries), hint=f"1 to {MAX_TENSORS}")
    _refuse(_metadata_problems(metadata))
    _refuse(problem for name, entry in entries.items() for problem in _entry_problems(name, entry, accepted))
    specs = sorted((_spec(name, entry) for name, entry in entries.items()), key=lambda spec: (spec.start, spec.end))
    _refuse(_layout_problems(specs, file_size - end))
    return TensorHeader(tensors=tuple(specs), metadata=metadata, size=end)


_parse_once = lru_cache(maxsize=32)(_parse)
"""The updates of a federation have one header, round after round."""


def read_tensors(content: bytes, accepted: frozenset[str] = FLOAT_TYPES) -> dict[str, NDArray[Any]]:
    """Return the tensors of a whole safetensors file by name, as read-only arrays; bfloat16 comes as float32, which is exact.

    ``accepted``: types that they may have. Raises :class:`InvalidTensors` where the header is wrong or any number is NaN or infinite.
    """
    header = parse_header(content, len(content), accepted)
    tensors = {}
    for spec in header.tensors:
        stored = np.frombuffer(content, _STORED[spec.dtype], spec.count, header.size + spec.start)
        array = _widen(stored) if spec.dtype == "BF16" else stored.astype(stored.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        tensors[spec.name] = array.reshape(spec.shape)
    check_finite(tensors)
    return tensors


def read_tensor(content: bytes, spec: TensorSpec) -> NDArray[Any]:
    """Return one tensor from its own bytes, as it is described; bfloat16 comes as float32."""
    stored = np.frombuffer(content, _STORED[spec.dtype], spec.count)
    return (_widen(stored) if spec.dtype == "BF16" else stored).reshape(spec.shape)


def check_finite(tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise :class:`InvalidTensors`, naming each tensor that holds NaN or infinity."""
    _refuse(_finite_problem(name, _unfinite(array), int(array.size)) for name, array in tensors.items())


def check_stream(chunks: Iterable[bytes], file_size: int) -> TensorHeader:
    """Check a whole safetensors file of ``file_size`` bytes as it comes, in flat memory; return its header.

    Raises :class:`InvalidTensors` where the header is wrong, any number is NaN or infinite, or the stream has another length.
    """
    stream = _Stream(chunks)
    prefix = stream.read(_PREFIX_BYTES)
    header = parse_header(prefix + stream.read(_header_end(prefix, file_size) - _PREFIX_BYTES), file_size)
    _refuse(_finite_problem(spec.name, _count_unfinite(stream, spec), spec.count) for spec in header.tensors)
    if stream.read(1):
        raise InvalidTensors("more bytes came than the file has", hint=f"{file_size} bytes")
    return header


def _count_unfinite(stream: _Stream, spec: TensorSpec) -> int:
    found, left = 0, spec.end - spec.start
    while left:
        piece = stream.read(min(left, _CHUNK_BYTES))
        if not piece or len(piece) % _STORED[spec.dtype].itemsize:
            raise InvalidTensors("the file ends early", path=spec.name)
        left -= len(piece)
        stored = np.frombuffer(piece, _STORED[spec.dtype])
        array = _widen(stored) if spec.dtype == "BF16" else stored
        found += _unfinite(array)
    return found


def _unfinite(array: NDArray[Any]) -> int:
    """Return how many numbers are NaN or infinite; counted only where there are any, as that takes longer."""
    is_finite = np.isfinite(array)
    return 0 if is_finite.all() else int(array.size - is_finite.sum())


def _widen(bfloat16: NDArray[Any]) -> NDArray[np.float32]:
    """Return bfloat16 numbers, given by their bits, as the float32 of the same upper half."""
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


def _finite_problem(name: str, unfinite: int, count: int) -> Problem | None:
    return Problem(path=name, message="holds NaN or infinity", value=f"{unfinite} of {count} numbers") if unfinite else None


class _Stream:
    """Chunks as a file that returns as much as it is asked for, and less only at the end."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), bytearray()

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        taken = bytes(self._rest[:size])
        del self._rest[:size]
        return taken


def _refuse(problems: Iterable[Problem | None]) -> None:
    found = list(islice((problem for problem in problems if problem is not None), _MAX_PROBLEMS))
    if found:
        raise InvalidTensors(problems=found)


def _header_end(prefix: bytes, file_size: int) -> int:
    if len(prefix) < _PREFIX_BYTES or file_size < _PREFIX_BYTES:
        raise InvalidTensors("too short for a safetensors file", value=f"{file_size} bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidTensors("not a safetensors file, or its header is too long", value=length, hint=f"at most {MAX_HEADER_BYTES} bytes")
    if _PREFIX_BYTES + length > file_size:
        raise InvalidTensors("the header is longer than the file", value=length, hint=f"the file has {file_size} bytes")
    return _PREFIX_BYTES + length


def _load_json(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise InvalidTensors("the header does not start with '{'", value=header[:20])
    try:
        entries: dict[str, Any] = json.loads(
            header.decode(), object_pairs_hook=collect_unique, parse_int=_natural, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise InvalidTensors(f"the header is not the JSON that it should be: {shorten(str(error))}") from error
    return entries


def _natural(text: str) -> int:
    if text.startswith("-") or len(text) > 19:
        raise ValueError(f"not a length: {shorten(text, 40)}")
    return int(text)


def _no_number(text: str) -> None:
    raise ValueError(f"not a whole number: {shorten(text, 40)}")


def _metadata_problems(metadata: object) -> Iterator[Problem]:
    if not isinstance(metadata, dict):
        yield Problem(path=_METADATA, message="not an object", value=shorten(metadata))
        return
    for name, value in metadata.items():
        if not _is_text(name) or not isinstance(value, str) or not _is_text(value):
            yield Problem(path=_METADATA, message="not a text under a text", value=shorten(ascii(f"{name}: {value}")))


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _entry_problems(name: str, entry: object, accepted: frozenset[str]) -> Iterator[Problem]:
    shown = shorten(ascii(name).strip("'"))
    if len(name) > MAX_NAME_LENGTH or not _NAME.match(name) or ".." in name or "\\" in name or name[0] in "/.":
        hint = f"1 to {MAX_NAME_LENGTH} visible ASCII characters, without '..' or '\\', not starting with '/' or '.'"
        yield Problem(path=shown, message="not a tensor's name", hint=hint)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        yield Problem(path=shown, message="needs dtype, shape and data_offsets, and nothing else", value=shorten(entry))
        return
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in accepted:
        yield Problem(path=shown, message="not an accepted type", value=shorten(entry["dtype"]), hint=", ".join(sorted(accepted)))
    if not _is_lengths(entry["shape"]) or not 1 <= len(entry["shape"]) <= MAX_DIMENSIONS or 0 in entry["shape"]:
        hint = f"1 to {MAX_DIMENSIONS} lengths, none of them 0"
        yield Problem(path=shown, message="not an accepted shape", value=shorten(entry["shape"]), hint=hint)
    if not _is_lengths(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
        yield Problem(path=shown, message="data_offsets are not two positions", value=shorten(entry["data_offsets"]))


def _is_lengths(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _spec(name: str, entry: dict[str, Any]) -> TensorSpec:
    start, end = entry["data_offsets"]
    return TensorSpec(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), start=start, end=end)


def _layout_problems(specs: list[TensorSpec], data_size: int) -> Iterator[Problem]:
    reached = 0
    for spec in specs:
        if spec.start != reached:
            what = "overlaps another tensor" if spec.start < reached else "leaves a hole before it"
            yield Problem(path=spec.name, message=what, value=f"bytes {spec.start} to {spec.end}", hint=f"it should start at {reached}")
        size = spec.count * _STORED[spec.dtype].itemsize
        if spec.end - spec.start != size:
            described = f"{spec.dtype} of {list(spec.shape)} has {size} bytes"
            yield Problem(path=spec.name, message="shape and bytes differ", value=f"{spec.end - spec.start} bytes", hint=described)
        reached = max(reached, spec.end)
    if reached != data_size:
        what = "the file ends before its last tensor" if reached > data_size else "bytes follow the last tensor"
        yield Problem(message=what, value=f"{data_size} bytes of data", hint=f"the tensors have {reached}")
