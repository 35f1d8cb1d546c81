"""Our reader of safetensors beside the library's, over files that hypothesis makes: what both read is the same."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from tests.contracts.test_tensors import check, file_of
from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.tensors import parse_header, read_tensors

DESERIALIZE: Any = safetensors.deserialize
NAMES = st.text(st.sampled_from("abcXYZ019._-+@"), min_size=1, max_size=20).filter(lambda name: ".." not in name and name[0] != ".")
ARRAYS = st.builds(
    lambda dtype, shape, seed: np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    st.integers(0, 9),
)


@given(st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=5), st.dictionaries(st.text("ab"), st.text("cd"), max_size=2))
def test_whatever_the_library_writes_is_read_alike(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    content = save(tensors, metadata)
    found = read_tensors(content)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert parse_header(content, len(content)).metadata == metadata


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    tensors = draw(st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=3))
    content = bytearray(save(tensors, {"format": "pt"}))
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(draw(st.integers(1, 3))):
        # mostly in the header: the numbers are any bytes anyway
        at = draw(st.integers(0, min(header_end, len(content)) - 1) | st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["set", "insert", "delete", "copy", "cut"])):
            case "set":
                content[at] = draw(st.sampled_from(b'0123456789{}[]",: \\-.eF') | st.integers(0, 255))
            case "insert":
                content[at:at] = draw(st.sampled_from([b" ", b"0", b"-", b"[", b'"a":', b"\\u0000", b"\x00", b"1e3", b".0"]))
            case "delete":
                del content[at : at + draw(st.integers(1, 9))]
            case "copy":
                content[at:at] = content[at : at + draw(st.integers(1, 60))]
            case _:
                del content[at:]
        if not content:
            break
    if len(content) >= 8 and draw(st.booleans()):
        # a header of another length, honestly announced, gets further in
        end = content.find(b"}}", 8) + 2
        content[:8] = struct.pack("<Q", max(0, end - 8))
    return bytes(content)


@st.composite
def odd_headers(draw: st.DrawFn) -> bytes:
    """Headers that say sensible things in odd ways: spaces, escapes, orders, repetitions, other shapes of the same bytes."""
    count = draw(st.integers(1, 3))
    space = st.sampled_from(["", "", " ", "\n", "\t "])
    parts = []
    for number in range(count):
        dtype, shape = draw(
            st.sampled_from([("F32", [2, 3]), ("F32", [6]), ("BF16", [3, 4]), ("F64", [1, 3]), ("F16", [12]), ("F32", [5])])
        )
        start = 24 * number + draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, -24]))
        fields = [f'"dtype":{draw(space)}"{dtype}"', f'"shape":{draw(space)}{shape}', f'"data_offsets":[{start},{draw(space)}{start + 24}]']
        fields += draw(st.sampled_from([[], [], [], [], ['"extra":1'], ['"dtype":"F32"']]))
        name = draw(st.sampled_from([*[f"t{number}", f"\\u0074{number}", f"t{number}\\/x"] * 3, "same", f"a{number}..", "__metadata__"]))
        parts.append(f'{draw(space)}"{name}"{draw(space)}:{{{",".join(draw(st.permutations(fields)))}}}')
    parts += draw(st.sampled_from([[], ['"__metadata__":{}'], ['"__metadata__":{"a":"b"}'], ['"__metadata__":null']]))
    header = f"{draw(space)}{{{','.join(draw(st.permutations(parts)))}}}{draw(space)}"
    return file_of(header, np.arange(6 * count, dtype="<f4").tobytes())


@settings(max_examples=500)
@given(mutated_files() | odd_headers())
def test_what_we_accept_the_library_reads_alike(content: bytes) -> None:
    try:
        found = read_tensors(content)
    except InvalidTensors:
        return
    described = {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in DESERIALIZE(content)}
    header = parse_header(content, len(content))
    ours = {s.name: (s.dtype, list(s.shape), content[header.size + s.start : header.size + s.end]) for s in header.tensors}
    assert ours == described
    if all(spec.dtype != "BF16" for spec in header.tensors):  # the library cannot give those to numpy
        theirs = load(content)
        assert all(np.array_equal(found[name], theirs[name]) for name in theirs)


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda header: file_of(b"{" + header)))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with suppress(InvalidTensors):
        check(content)
