"""Our reader of safetensors: strict, bounded, and never at odds with the library's."""

from __future__ import annotations

import json
import math
import struct
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.tensors import FLOAT_TYPES, MAX_HEADER_BYTES, MAX_TENSORS, check_finite, check_stream, parse_header, read_tensors

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = struct.pack("<2f", 1.5, -2.0)


def file_of(header: object, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def check(content: bytes) -> None:
    """Refuse as a whole and refuse as a stream must agree."""
    try:
        read_tensors(content)
    except InvalidTensors:
        with pytest.raises(InvalidTensors):
            check_stream(iter([content]), len(content))
        raise
    check_stream(iter([content]), len(content))


def test_what_numpy_saved_is_read_back() -> None:
    tensors: dict[str, Any] = {
        "a.phi": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(5, np.float16),
        "c": np.full((1, 1, 2), -0.5, np.float64),
    }
    found = read_tensors(save(tensors, {"format": "pt"}))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_arrays_are_read_only() -> None:
    found = read_tensors(file_of({"a": ENTRY}))
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


def test_bfloat16_is_widened_exactly() -> None:
    values = np.array([1.0, -3.0, 0.0078125, 3.3895314e38, 9.1835e-41, -0.0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    found = read_tensors(file_of({"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, bits.tobytes()))["a"]
    assert found.dtype == np.float32
    assert found.shape == (2, 3)
    np.testing.assert_array_equal(found.ravel().view(np.uint32) >> 16, bits)
    np.testing.assert_array_equal(found.ravel().view(np.uint32) & 0xFFFF, 0)


def test_metadata_and_order_are_kept() -> None:
    entries = {"late": {**ENTRY, "data_offsets": [8, 16]}, "__metadata__": {"format": "pt", "ключ": "wert"}, "early": ENTRY}
    header = parse_header(file_of(entries, DATA * 2), len(file_of(entries, DATA * 2)))
    assert [spec.name for spec in header.tensors] == ["early", "late"]
    assert header.metadata == {"format": "pt", "ключ": "wert"}


def test_a_header_that_was_seen_before_is_held_to_the_file_and_to_the_types_of_this_time() -> None:
    content = file_of({"a": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}})
    whole_numbers = frozenset({"I8"})
    for _ in range(2):
        assert [spec.name for spec in parse_header(content, len(content), whole_numbers).tensors] == ["a"]
        for size, accepted in ((len(content) + 1, whole_numbers), (len(content), FLOAT_TYPES)):
            with pytest.raises(InvalidTensors):
                parse_header(content, size, accepted)


def test_padding_after_the_header_is_accepted() -> None:
    assert read_tensors(file_of(json.dumps({"a": ENTRY}) + "   "))["a"].tolist() == [1.5, -2.0]


WRONG_CONTAINERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "no header": (struct.pack("<Q", 0), "does not start"),
    "header longer than the file": (struct.pack("<Q", 100) + b"{}", "longer than the file"),
    "header of 2^63": (struct.pack("<Q", 2**63) + b"{}", "too long"),
    "header over the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * (MAX_HEADER_BYTES + 1), "too long"),
    "a zip": (b"PK\x03\x04" + b"\x00" * 60, "does not start|too long"),
    "a pickle": (b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00" + b"x" * 40, "too long"),
    "leading space": (file_of(" " + json.dumps({"a": ENTRY})), "does not start"),
    "byte order mark": (file_of(b"\xef\xbb\xbf" + json.dumps({"a": ENTRY}).encode()), "does not start"),
    "not JSON": (file_of("{nonsense}"), "JSON"),
    "cut JSON": (file_of('{"a": '), "JSON"),
    "two objects": (file_of(json.dumps({"a": ENTRY}) + "{}"), "JSON"),
    "an array": (file_of("[]"), "does not start"),
    "not UTF-8": (file_of(b'{"a\xff": 1}'), "JSON"),
    "no tensors": (file_of({}, b""), "too few"),
    "only metadata": (file_of({"__metadata__": {"a": "b"}}, b""), "too few"),
    "duplicate names": (file_of(f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'), "more than once"),
    "duplicate fields": (file_of('{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'), "more than once"),
    "duplicate metadata": (file_of(f'{{"__metadata__": {{"a": "b", "a": "c"}}, "x": {json.dumps(ENTRY)}}}'), "more than once"),
    "deep nesting": (file_of('{"a":' + "[" * 100_000), "JSON"),
    "deep objects": (file_of('{"a":' * 100_000), "JSON"),
    "NaN in the header": (file_of('{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}'), "whole number"),
    "a fraction": (file_of('{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}'), "whole number"),
    "minus zero": (file_of('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-0, 8]}}'), "not a length"),
    "a number of a thousand digits": (
        file_of('{"a": {"dtype": "F32", "shape": [9%s], "data_offsets": [0, 8]}}' % ("9" * 999)),
        "not a length",
    ),
    "trailing bytes": (file_of({"a": ENTRY}, DATA + b"x"), "follow the last"),
    "missing bytes": (file_of({"a": ENTRY}, DATA[:-1]), "ends before"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_CONTAINERS.values(), ids=WRONG_CONTAINERS)
def test_a_wrong_container_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidTensors) as caught:
        check(content)
    assert any(part in str(caught.value) for part in message.split("|"))


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "a..b", "/abs", ".hidden", "a\x00b", "a\nb", "a b", "ä", "a\\b", "x" * 257, "\u202e", "\x7f"],
    ids=ascii,
)
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidTensors, match="name") as caught:
        check(file_of({name: ENTRY}))
    assert "\x00" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "I64"}, "type"),
        ({"dtype": "F8_E4M3"}, "type"),
        ({"dtype": "f32"}, "type"),
        ({"dtype": 7}, "type"),
        ({"dtype": None}, "type"),
        ({"dtype": ["F32"]}, "type"),
        ({"shape": []}, "shape"),
        ({"shape": [0]}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"shape": 2}, "shape"),
        ({"shape": ["2"]}, "shape"),
        ({"shape": [True, 2]}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": [3]}, "bytes differ"),
        ({"shape": [2**62, 4]}, "bytes differ"),
        ({"data_offsets": [0]}, "positions"),
        ({"data_offsets": [0, 8, 8]}, "positions"),
        ({"data_offsets": [0, None]}, "positions"),
        ({"data_offsets": {"0": 8}}, "positions"),
        ({"data_offsets": [8, 0]}, "bytes differ"),
        ({"data_offsets": [4, 12]}, "hole"),
        ({"extra": 1}, "nothing else"),
    ],
    ids=str,
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTensors) as caught:
        check(file_of({"a": ENTRY | change}))
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", [None, 1, "x", [], {}, {"dtype": "F32"}], ids=str)
def test_what_is_no_entry_is_refused(entry: object) -> None:
    with pytest.raises(InvalidTensors, match="needs dtype"):
        check(file_of({"a": entry}))


@pytest.mark.parametrize(
    "metadata", [None, [], "x", {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": "\x00"}, {"\x00": "a"}, {"a": "\ud800"}]
)
def test_wrong_metadata_is_refused(metadata: object) -> None:
    with pytest.raises(InvalidTensors, match=r"object|text"):
        check(file_of({"__metadata__": metadata, "a": ENTRY}))


def test_overlapping_tensors_are_refused() -> None:
    with pytest.raises(InvalidTensors) as caught:
        check(file_of({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, DATA + DATA[:4]))
    assert "overlaps" in str(caught.value)


def test_two_tensors_on_the_same_bytes_are_refused() -> None:
    with pytest.raises(InvalidTensors) as caught:
        check(file_of({"a": ENTRY, "b": ENTRY}))
    assert "overlaps" in str(caught.value)


def test_every_problem_is_named_at_once_up_to_a_bound() -> None:
    entries = {f"t{number}": {**ENTRY, "dtype": "I8"} for number in range(200)}
    with pytest.raises(InvalidTensors) as caught:
        check(file_of(entries))
    assert len(caught.value.problems) == 50
    assert caught.value.problems[0].path == "t0"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_numbers_that_are_not_finite_are_refused(dtype: str, value: float) -> None:
    good, bad = np.array([1.0, 2.0], np.float64), np.array([1.0, value], np.float64)
    entries, data = {}, b""
    for name, array in {"good": good, "bad": bad}.items():
        stored = (
            (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2") if dtype == "BF16" else array.astype(f"<f{int(dtype[1:]) // 8}")
        )
        entries[name] = {"dtype": dtype, "shape": [2], "data_offsets": [len(data), len(data) + stored.nbytes]}
        data += stored.tobytes()
    with pytest.raises(InvalidTensors) as caught:
        check(file_of(entries, data))
    assert [(problem.path, problem.value) for problem in caught.value.problems] == [("bad", "1 of 2 numbers")]


def test_finite_arrays_pass() -> None:
    check_finite({"a": np.ones(3)})
    with pytest.raises(InvalidTensors, match="bad"):
        check_finite({"a": np.ones(3), "bad": np.array([np.inf, np.nan])})


@given(cuts=st.lists(st.integers(0, 400), max_size=8))
def test_a_stream_may_come_in_any_pieces(cuts: list[int]) -> None:
    content = save({"a": np.arange(20, dtype=np.float32), "b": np.ones((3, 5), np.float16)})
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    header = check_stream(iter([content[i:j] for i, j in pairwise(bounds)]), len(content))
    assert {spec.name for spec in header.tensors} == {"a", "b"}


@pytest.mark.parametrize("change", [-9, -1, 1, 5])
def test_a_stream_of_another_length_is_refused(change: int) -> None:
    content = file_of({"a": ENTRY})
    sent = content[:change] if change < 0 else content + b"x" * change
    with pytest.raises(InvalidTensors):
        check_stream(iter([sent]), len(content))


def test_a_stream_is_not_held_in_memory() -> None:
    size = 64 << 20
    head = file_of({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}, b"")

    def chunks() -> Iterator[bytes]:
        yield head
        for _ in range(64):
            yield bytes(1 << 20)

    import tracemalloc

    tracemalloc.start()
    try:
        check_stream(chunks(), len(head) + size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


HOSTILE = {
    "many keys": ('{"a":1,' + ",".join(f'"{number}":1' for number in range(90_000)) + "}"),
    "many duplicates at the end": "{" + ",".join(f'"{number % 80_000}":1' for number in range(80_500)) + "}",
    "nested arrays": '{"a":' + "[" * 1_000_000,
    "long digits": '{"a":' + "9" * 1_000_000 + "}",
    "many empty tensors": "{" + ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(17_000)) + "}",
    "long name": '{"' + "x" * 1_000_000 + '":1}',
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_quickly(header: str) -> None:
    content = file_of(header[:MAX_HEADER_BYTES])
    started = time.process_time()
    with pytest.raises(InvalidTensors):
        read_tensors(content)
    assert time.process_time() - started < 2


def test_as_many_tensors_as_fit_are_read() -> None:
    count = 9_000
    entries = {f"t{n}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(count)}
    assert count < MAX_TENSORS
    assert len(read_tensors(file_of(json.dumps(entries, separators=(",", ":")), bytes(4 * count)))) == count


def test_torch_is_not_needed() -> None:
    import subprocess

    program = "import sys, wegeft.contracts.tensors; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
