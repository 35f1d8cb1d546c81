"""What tells two local base models apart: their configuration, and numbers from every tensor of their weights.

Reading gigabytes at each start would take longer than many a job's first step, so of a long tensor three blocks are read. A fine-tuned or
merged model differs from its origin in them; a change that keeps clear of every block is not seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wegeft.contracts.errors import BaseModelUnusable

BLOCK_BYTES = 4096
_HEADER_LIMIT = 100_000_000
"""Of the safetensors library."""


def digest_weights(folder: Path) -> str:
    """Return ``weights1:`` and 64 hex digits: the same for the same tensors, however they are spread over files and wherever these are.

    The number is the version of what is read. Raises :class:`BaseModelUnusable` where a file is not safetensors.
    """
    found = hashlib.sha256(hashlib.sha256((folder / "config.json").read_bytes()).digest())
    entries = [entry for file in folder.glob("*.safetensors") for entry in _entries(file)]
    for entry in sorted(entries):
        found.update(entry.encode() + b"\n")
    return f"weights1:{found.hexdigest()}"


def _entries(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            yield from _described(file, path.stat().st_size)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        hint = "is the download complete?"
        raise BaseModelUnusable("a file of its weights is not safetensors", path="base_model", value=path.name, hint=hint) from error


def _described(file: BinaryIO, size: int) -> Iterator[str]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
        raise ValueError("the header does not fit into the file")
    header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, about in header.items():
        start, end = (8 + length + int(offset) for offset in about["data_offsets"])
        if not 8 + length <= start <= end <= size:
            raise ValueError("a tensor lies outside the file")
        yield json.dumps([name, about["dtype"], about["shape"], _sample(file, start, end)])


def _sample(file: BinaryIO, start: int, end: int) -> str:
    """Return the digest of a short tensor's bytes, or of the first, the middle and the last block of a long one's."""
    if end - start <= 3 * BLOCK_BYTES:
        spans = [(start, end - start)]
    else:
        spans = [(place, BLOCK_BYTES) for place in (start, (start + end - BLOCK_BYTES) // 2, end - BLOCK_BYTES)]
    found = hashlib.sha256()
    for place, length in spans:
        file.seek(place)
        found.update(file.read(length))
    return found.hexdigest()
