"""The strict reader of GGUF adapters: what llama.cpp's writer makes, and nothing that is damaged or hostile."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.gguf_file import parse_gguf_adapter, read_gguf_tensor


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    writer.add_file_type(0)
    for name, kind in (("blk.0.attn_q.weight", "F32"), ("blk.1.attn_q.weight", "F16"), ("blk.2.x.weight", "Q8_0")):
        stored = gguf.GGMLQuantizationType[kind]
        for part, shape in (("lora_a", (3, 32)), ("lora_b", (5, 3))):
            stored = gguf.GGMLQuantizationType.F16 if kind == "Q8_0" and part == "lora_b" else stored
            data = np.linspace(-1, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
            writer.add_tensor(f"{name}.{part}", gguf.quants.quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_what_the_library_writes_is_read_as_the_library_reads_it(content: bytes, tmp_path: Path) -> None:
    adapter = parse_gguf_adapter(content, len(content))
    assert (adapter.architecture, adapter.alpha, len(adapter.tensors)) == ("llama", 4.0, 6)
    (tmp_path / "b.gguf").write_bytes(content)
    for found in gguf.GGUFReader(tmp_path / "b.gguf").tensors:
        tensor = adapter.tensors[found.name]
        ours = read_gguf_tensor(content[tensor.start : tensor.start + tensor.size], tensor)
        assert np.array_equal(ours, gguf.quants.dequantize(found.data, found.tensor_type))


def swapped(content: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in content
    return content.replace(old, new)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-40],
        lambda content: content + bytes(64),
        lambda content: b"GGML" + content[4:],
        lambda content: content[:4] + struct.pack("<I", 2) + content[8:],
        lambda content: content[:8] + struct.pack("<Q", 1 << 40) + content[16:],
        lambda content: content[:16] + struct.pack("<Q", 1 << 40) + content[24:],
        lambda content: swapped(content, b"adapter.type", b"adapter.typo"),
        lambda content: swapped(content, struct.pack("<f", 4.0), struct.pack("<f", float("nan"))),
        lambda content: swapped(content, b"blk.1.attn_q", b"blk.0.attn_q"),
        lambda content: swapped(content, b"weight.lora_b", b"weight.lora_c"),
        lambda content: swapped(content, b"blk.2.x", b"blk.2\n0"),
        lambda content: b"",
    ],
)
def test_damage_is_refused(content: bytes, damage: object) -> None:
    broken = damage(content)  # type: ignore[operator]
    with pytest.raises(InvalidTensors):
        parse_gguf_adapter(broken, len(broken))


@given(st.data())
def test_no_changed_byte_crashes_the_reader(content: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, min(len(content), 700) - 1))
    broken = content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    try:
        adapter = parse_gguf_adapter(broken, len(broken))
        for tensor in adapter.tensors.values():
            read_gguf_tensor(broken[tensor.start : tensor.start + tensor.size], tensor)
    except InvalidTensors:
        pass


def test_a_number_that_is_not_finite_is_refused(content: bytes) -> None:
    tensor = next(iter(parse_gguf_adapter(content, len(content)).tensors.values()))
    with pytest.raises(InvalidTensors, match="NaN"):
        read_gguf_tensor(struct.pack("<f", float("nan")) * tensor.rows * tensor.columns, tensor)
