"""Local base models are told apart by numbers of all their tensors, wherever and in however many files they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wegeft.contracts.errors import BaseModelUnusable
from workers.weights_digest import BLOCK_BYTES, digest_weights

LONG = 4 * BLOCK_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tensors = {"short": torch.arange(3.0), "long": torch.arange(float(LONG)), "empty": torch.zeros(0)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_copies_and_shards_of_the_same_tensors_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    digest = digest_weights(folder)
    assert digest.startswith("weights1:")
    assert len(digest) == len("weights1:") + 64
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        save_file({name: tensor}, copy / f"model-0000{number}-of-00003.safetensors", metadata={"format": "pt"})
    assert digest_weights(copy) == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["short"].add_(1),
        lambda tensors: tensors["long"][-1:].add_(1),
        lambda tensors: tensors["long"][LONG // 2].add_(1),
        lambda tensors: tensors.update(long=tensors["long"].reshape(2, -1)),
        lambda tensors: tensors.update(short=tensors["short"].view(torch.int32)),
        lambda tensors: tensors.update(other=tensors.pop("short")),
    ],
)
def test_other_numbers_shapes_types_or_names_are_another_model(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    before, file = digest_weights(folder), folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    assert digest_weights(folder) != before


def test_another_configuration_is_another_model(folder: Path) -> None:
    before = digest_weights(folder)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    assert digest_weights(folder) != before


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
        b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [-9, 0]}}',
    ],
)
def test_what_is_not_safetensors_is_told(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BaseModelUnusable) as caught:
        digest_weights(folder)
    assert caught.value.problems[0].value == "model.safetensors"


def test_a_header_longer_than_its_file_is_not_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(BaseModelUnusable):
        digest_weights(folder)
