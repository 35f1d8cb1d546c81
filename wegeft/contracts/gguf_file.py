"""LoRA adapters in GGUF files, read strictly: only what llama.cpp's converter and ours write, in bounded time and memory.

The format (ggml, docs/gguf.md, version 3, little-endian): magic and counts; keys with typed values; the tensors' names, sizes, types and
offsets; then the numbers, each tensor at a multiple of 32 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wegeft.contracts.errors import InvalidTensors, Problem, shorten

MAX_GGUF_HEADER_BYTES = 1 << 20
_MAX_TENSORS = 20_000
_MAX_KEYS = 100
_MAX_TEXT = 4096
_MAX_NAME = 63
_ALIGNMENT = 32
_BLOCK = 32
_BLOCK_BYTES = 34
_MOST_PROBLEMS = 50

_TEXT = 8
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_KINDS = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_WANTED = {"general.type": "adapter", "adapter.type": "lora"}


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A matrix as the header describes it."""

    name: str
    kind: str
    """``F32``, ``F16``, ``BF16`` or ``Q8_0``."""
    rows: int
    columns: int
    start: int
    """Where its bytes start in the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        count = self.rows * self.columns
        return count // _BLOCK * _BLOCK_BYTES if self.kind == "Q8_0" else count * _ITEM_BYTES[self.kind]


@dataclass(frozen=True, kw_only=True)
class GgufAdapter:
    """What a GGUF adapter says about itself."""

    architecture: str
    alpha: float
    tensors: Mapping[str, GgufTensor]
    """By name: ``<tensor of the base>.lora_a``, rank×in, and ``.lora_b``, out×rank."""


def parse_gguf_adapter(content: bytes, file_size: int) -> GgufAdapter:
    """Return the header at the start of ``content`` of a file of ``file_size`` bytes.

    ``content`` is all of the file, or its first :data:`MAX_GGUF_HEADER_BYTES`. Raises :class:`InvalidTensors` with what is wrong.
    """
    cursor = _Cursor(content[:MAX_GGUF_HEADER_BYTES])
    if cursor.take(4) != b"GGUF" or cursor.number("<I") != 3:
        raise InvalidTensors("not a GGUF file of version 3")
    tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
    if not 1 <= tensor_count <= _MAX_TENSORS or key_count > _MAX_KEYS:
        raise InvalidTensors("the file holds too few or too many tensors or keys", value=f"{tensor_count} tensors, {key_count} keys")
    keys: dict[str, Any] = {}
    for _ in range(key_count):
        name = cursor.text()
        if name in keys:
            raise InvalidTensors("a key is there twice", path=shorten(name))
        keys[name] = cursor.value(name)
    entries = [(cursor.text(_MAX_NAME), *cursor.matrix()) for _ in range(tensor_count)]
    tensors = _place(entries, -(-cursor.position // _ALIGNMENT) * _ALIGNMENT, file_size)
    return GgufAdapter(architecture=_check_keys(keys), alpha=keys["adapter.lora.alpha"], tensors=tensors)


def _check_keys(keys: Mapping[str, Any]) -> str:
    problems = [
        Problem(path=name, message="not what an adapter says", value=shorten(keys.get(name)), hint=wanted)
        for name, wanted in _WANTED.items()
        if keys.get(name) != wanted
    ]
    alpha, architecture = keys.get("adapter.lora.alpha"), keys.get("general.architecture")
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha <= 0:
        problems.append(Problem(path="adapter.lora.alpha", message="not a positive number", value=shorten(alpha)))
    if not isinstance(architecture, str) or not architecture:
        problems.append(Problem(path="general.architecture", message="not a name", value=shorten(architecture)))
    if keys.get("general.alignment", _ALIGNMENT) != _ALIGNMENT:
        problems.append(Problem(path="general.alignment", message="must be 32", value=shorten(keys["general.alignment"])))
    if problems:
        raise InvalidTensors("not a GGUF adapter", problems=problems)
    return str(architecture)


def _place(entries: list[tuple[str, str, int, int, int]], start: int, file_size: int) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    problems: list[Problem] = []
    end = start
    for name, kind, rows, columns, offset in entries:
        tensor = GgufTensor(name=name, kind=kind, rows=rows, columns=columns, start=start + offset)
        if name in tensors or not name.endswith((".lora_a", ".lora_b")):
            problems.append(Problem(path=shorten(name), message="named twice, or no factor of a LoRA", hint="<tensor>.lora_a or .lora_b"))
        if tensor.start != end:
            problems.append(Problem(path=shorten(name), message="does not follow the tensor before it", value=str(offset)))
        tensors[name] = tensor
        end = -(-(tensor.start + tensor.size) // _ALIGNMENT) * _ALIGNMENT
    for name, tensor in tensors.items():
        other = f"{name[:-1]}{'b' if name.endswith('a') else 'a'}"
        if other not in tensors:
            problems.append(Problem(path=shorten(name), message="its other factor is missing", hint=other))
        elif name.endswith("a") and tensor.rows != tensors[other].columns:
            problems.append(Problem(path=shorten(name), message="the two factors have different ranks"))
    last = max(tensor.start + tensor.size for tensor in tensors.values())
    if not problems and file_size not in (last, end):
        problems.append(Problem(message="the file is not as long as its tensors", value=f"{file_size} bytes", hint=f"{end} bytes"))
    if problems:
        raise InvalidTensors("the file's tensors are not those of a LoRA", problems=problems[:_MOST_PROBLEMS])
    return tensors


def read_gguf_tensor(content: bytes, tensor: GgufTensor) -> NDArray[np.float64]:
    """Return a matrix from its own bytes, rows×columns in float64; raise :class:`InvalidTensors` where a number is not finite."""
    array: NDArray[np.float64]
    match tensor.kind:
        case "Q8_0":
            blocks = np.frombuffer(content, np.dtype([("scale", "<f2"), ("values", "i1", (_BLOCK,))]))
            array = blocks["scale"].astype(np.float64)[:, None] * blocks["values"]
        case "BF16":
            array = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        case kind:
            array = np.frombuffer(content, "<f4" if kind == "F32" else "<f2").astype(np.float64)
    if not np.isfinite(array).all():
        raise InvalidTensors("holds NaN or infinity", path=tensor.name)
    return array.reshape(tensor.rows, tensor.columns)


class _Cursor:
    """Reads forward; past the end it is a header that is too long or cut off."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._content):
            raise InvalidTensors("the header is cut off or too long", hint=f"at most {MAX_GGUF_HEADER_BYTES} bytes")
        taken, self.position = self._content[self.position : end], end
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int = _MAX_TEXT) -> str:
        size = self.number("<Q")
        if not 1 <= size <= longest:
            raise InvalidTensors("a text is empty or too long", value=f"{size} bytes", hint=f"at most {longest}")
        content = self.take(size)
        if not content.isascii() or not content.decode("ascii").isprintable():
            raise InvalidTensors("a text is not printable ASCII", value=shorten(ascii(content)))
        return content.decode("ascii")

    def value(self, name: str) -> Any:
        kind = self.number("<I")
        if kind == _TEXT:
            return self.text()
        if kind not in _SCALARS:
            raise InvalidTensors("not a kind of value that an adapter needs", path=shorten(name), value=kind)
        return self.number(_SCALARS[kind])

    def matrix(self) -> tuple[str, int, int, int]:
        """Return type, rows, columns and offset of the tensor whose name was read last."""
        if self.number("<I") != 2:
            raise InvalidTensors("a tensor is not a matrix")
        columns, rows, kind, offset = self.number("<Q"), self.number("<Q"), self.number("<I"), self.number("<Q")
        if not (1 <= rows < 1 << 24 and 1 <= columns < 1 << 24) or offset >= 1 << 48:
            raise InvalidTensors("not the sizes of a tensor", value=f"{rows}×{columns} at {offset}")
        if kind not in _KINDS or (_KINDS[kind] == "Q8_0" and columns % _BLOCK):
            raise InvalidTensors("not an accepted type of tensor", value=kind, hint="F32, F16, BF16, or Q8_0 with rows of whole blocks")
        return _KINDS[kind], rows, columns, offset
