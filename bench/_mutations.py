"""Seeded damage to files: to their bytes without regard to what they mean, and to a tensor file's header by those who know it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

_WORDS = (
    b"__metadata__", b'"F32"', b'"F64"', b'"BF16"', b'"I8"', b'"BOOL"', b"NaN", b"Infinity", b"-0", b"1e999", b"1e3", b"null", b"true",
    b"[]", b"{}", b"-1", b"0.0", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b'"\\ud800"', b"\\u0000", b"\x00",
    b"\xff\xfe", b"\xef\xbb\xbf", b"/../", b"../", b"base_model.", b".phi", b".psi", b"\x80\x02c", b"PK\x03\x04", b" " * 64, b"[" * 64,
    b'{"a":' * 64, b'"shape":[', b'"data_offsets":[0,0]', b",", b'"', b"}",
)  # fmt: skip
_NAMES = ("phi", "../phi", "a/b", "", "__metadata__", "base_model.wegeft_generators.q_proj.phi", "é", "\u202e", "x" * 300, "a\nb", "q..phi")
_NUMBERS: tuple[Any, ...] = (0, 1, -1, 2**31, 2**53, 2**63, 2**64, 0.5, 1e300, True, None, "4", [4], {})


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, content: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    return rng.choice((content[:start], content[start:], content[:start] + content[end:]))


def repeat(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content))
    piece = content[start : start + rng.choice((1, 4, 16, 64))]
    return content[:start] + piece * rng.choice((2, 3, 50)) + content[start:]


def insert_word(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice(_WORDS) + content[start + rng.choice((0, 0, 1, 4)) :]


def change_length(rng: random.Random, content: bytes) -> bytes:
    """Say another length of the header."""
    stated = int.from_bytes(content[:8], "little")
    length = rng.choice((0, 1, 7, stated - 1, stated + 1, len(content) - 8, len(content), 100_000_001, 2**31, 2**63, 2**64 - 1))
    return (max(length, 0) % 2**64).to_bytes(8, "little") + content[8:]


def change_header(rng: random.Random, content: bytes) -> bytes:
    """Write the header anew with one to three things changed, and its true length before it."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_HEADER_CHANGES)(rng, header)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        name = rng.choice(list(header) or ["x"])
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header.get(name))}}}"
    written = text.encode("utf-8", "surrogatepass")
    return len(written).to_bytes(8, "little") + written + content[end:]


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Change one to three fields of a JSON object."""
    fields: dict[str, Any] = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice([*fields, *_NAMES])
        value = rng.choice([*_NUMBERS, *_NAMES, *fields.values()])
        if rng.random() < 0.2:
            fields.pop(name, None)
        else:
            fields[name] = [value] * rng.choice((1, 1000)) if rng.random() < 0.2 else value
    return json.dumps(fields).encode()


def _rename(rng: random.Random, header: dict[str, Any]) -> None:
    if header:
        header[rng.choice(_NAMES)] = header.pop(rng.choice(list(header)))


def _drop(rng: random.Random, header: dict[str, Any]) -> None:
    if header:
        del header[rng.choice(list(header))]


def _copy(rng: random.Random, header: dict[str, Any]) -> None:
    if header:
        header[rng.choice(_NAMES)] = header[rng.choice(list(header))]


def _set_part(rng: random.Random, header: dict[str, Any]) -> None:
    entries = [entry for entry in header.values() if isinstance(entry, dict)]
    if entries:
        entry = rng.choice(entries)
        part = rng.choice([*entry, "dtype", "shape", "data_offsets", "extra"])
        entry[part] = rng.choice(
            [*_NUMBERS, "F32", "F16", "BF16", "F8_E4M3", "I64", [2, 2], [0, 0], [0], [64, 0], [2**32, 2**32], [-1, -1]]
        )


def _move(rng: random.Random, header: dict[str, Any]) -> None:
    offsets = [
        entry["data_offsets"] for entry in header.values() if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list)
    ]
    if offsets and (chosen := rng.choice(offsets)):
        place = rng.randrange(len(chosen))
        step = rng.choice((-4, -1, 1, 4, 256))
        chosen[place] = chosen[place] + step if isinstance(chosen[place], int) else step


def _swap_shapes(rng: random.Random, header: dict[str, Any]) -> None:
    entries = [entry for entry in header.values() if isinstance(entry, dict) and isinstance(entry.get("shape"), list)]
    if entries:
        entry = rng.choice(entries)
        entry["shape"] = entry["shape"][::-1] if rng.random() < 0.5 else [*entry["shape"], 1]


_HEADER_CHANGES = (_rename, _drop, _copy, _set_part, _set_part, _move, _move, _swap_shapes)
BYTE_MUTATIONS: tuple[Mutation, ...] = (flip_bits, cut, repeat, insert_word)


def mutate_weights(rng: random.Random, content: bytes) -> bytes:
    """Damage a tensor file, more often in its header than in its numbers."""
    mutation = rng.choice((change_header, change_header, change_length, *BYTE_MUTATIONS))
    if mutation in BYTE_MUTATIONS and rng.random() < 0.8:
        end = 8 + int.from_bytes(content[:8], "little")
        header = mutation(rng, content[8:end])
        return len(header).to_bytes(8, "little") + header + content[end:]
    return mutation(rng, content)


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Damage a JSON file."""
    return rng.choice((change_json, change_json, *BYTE_MUTATIONS))(rng, content)
