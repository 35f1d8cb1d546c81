"""The MLX adapter, recomputed in numpy by mlx-lm's formula, is the adapter."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from tests.method.export_cases import head_trained
from tests.method.models import adapted, bert, dense_reference, error, gpt2, llama, logits
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors
from wegeft.method import to_mlx


@torch.no_grad()
def dense_model(base: nn.Module, folder: Path) -> nn.Module:
    """Return ``base`` in float64 with ``y = W x + scale·(x A) B`` folded into its weights, as mlx-lm's LoRALinear computes it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale, keys = config["lora_parameters"]["scale"], config["lora_parameters"]["keys"]
    model: Any = copy.deepcopy(base).double()
    arrays = {name: tensor.double().numpy() for name, tensor in load_file(folder / "adapters.safetensors").items()}
    blocks = range(model.config.num_hidden_layers)[-config["num_layers"] :]
    for name in [*(f"model.layers.{block}.{key}" for block in blocks for key in keys), *keys]:
        if f"{name}.lora_a" in arrays:
            down, up = arrays.pop(f"{name}.lora_a"), arrays.pop(f"{name}.lora_b")
            x = np.eye(down.shape[0])
            model.get_submodule(name).weight += torch.from_numpy(scale * (x @ down @ up)).T
    assert not arrays
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 32, "target_modules": ["q_proj", "o_proj"]},
        {"tied_modules": "layer"},
        {"tied_modules": "width"},
        {"transform": "output"},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 1.5}},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "k_proj"]},
        {"layers_to_transform": [0], "target_modules": ["q_proj", "k_proj"]},
        {"target_modules": ["lm_head", "up_proj"]},
    ],
    ids=str,
)
def test_logits_are_the_adapters(tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapted(llama(), **options)
    report = to_mlx(model, None, tmp_path / "out")
    found = logits(dense_model(llama(), tmp_path / "out"))
    assert error(found, logits(dense_reference(llama(), [model]))) < 1e-5
    assert report.largest_error < 1e-6
    assert len(report.errors) == len(model.base_model.plans["default"])


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
def test_a_saved_folder_converts_on_the_base_it_was_trained_on(tmp_path: Path) -> None:
    model = adapted(llama(), target_modules=["lm_head", "q_proj"])
    model.save_pretrained(tmp_path / "adapter")
    to_mlx(tmp_path / "adapter", llama(), tmp_path / "out")
    assert error(logits(dense_model(llama(), tmp_path / "out")), logits(model)) < 1e-5


def test_folder_is_what_mlx_lm_reads(tmp_path: Path) -> None:
    model = adapted(llama(), rank_pattern={"down_proj": 2}, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    model.peft_config["default"].base_model_name_or_path = "org/base"
    to_mlx(model, None, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text()) == {
        "fine_tune_type": "lora",
        "model": "org/base",
        "num_layers": 1,
        "lora_parameters": {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.down_proj", "self_attn.q_proj"]},
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "out" / "adapters.safetensors").items()}
    assert shapes == {
        "model.layers.1.mlp.down_proj.lora_a": (48, 4),
        "model.layers.1.mlp.down_proj.lora_b": (4, 32),
        "model.layers.1.self_attn.q_proj.lora_a": (32, 4),
        "model.layers.1.self_attn.q_proj.lora_b": (4, 32),
    }
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter_config.json", "adapters.safetensors", "out"]


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 1e-2)])
def test_reported_error_is_the_dense_one_of_every_storage_type(tmp_path: Path, dtype: Any, limit: float) -> None:
    model = adapted(llama())
    report = to_mlx(model, None, tmp_path / "out", dtype=dtype)
    exact, found = dense_reference(llama(), [model]).state_dict(), dense_model(llama(), tmp_path / "out").state_dict()
    for name, value in report.errors.items():
        key = f"{name}.weight"
        delta = exact[key] - llama().state_dict()[key].double()
        assert value == pytest.approx(float((found[key] - exact[key]).norm() / delta.norm()), rel=1e-3, abs=1e-12)
    assert 0 < report.largest_error < limit
    assert error(logits(dense_model(llama(), tmp_path / "out")), logits(model)) < 50 * limit


def test_small_changes_survive_half_precision(tmp_path: Path) -> None:
    assert to_mlx(adapted(llama(), wegeft_alpha=1e-7), None, tmp_path / "out", dtype="float16").largest_error < 2e-3


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning")
def test_what_has_no_place_in_an_mlx_adapter_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    cases: list[tuple[PeftModel, str]] = [
        (adapted(bert(), target_modules=["query"]), "names the layers of this architecture otherwise"),
        (adapted(gpt2()), "names the layers of this architecture otherwise"),
        (head_trained(), "cannot carry modules"),
        (adapted(llama(tied=True), target_modules=["lm_head"]), "embeddings are tied"),
        (adapted(llama(bias=True), transform="output"), "edits the bias"),
    ]
    for model, message in cases:
        with pytest.raises(InvalidAdapterConfig) as caught:
            to_mlx(model, None, tmp_path / "out")
        assert message in str(caught.value)
    with pytest.raises(InvalidAdapterConfig, match="not a storage type"):
        to_mlx(adapted(llama()), None, tmp_path / "out", dtype="q8_0")  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(InvalidTensors, match="cannot hold the change"):
        to_mlx(adapted(llama(), wegeft_alpha=1e14), None, tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError):
        to_mlx(adapted(llama()), None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


MLX = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
base, ids, out, *adapters = sys.argv[1:]
found = []
for adapter in adapters:
    model = load_adapters(load_model(Path(base))[0], adapter)
    found.append(model(mx.array(json.loads(ids))).tolist())
Path(out).write_text(json.dumps(found))
"""
"""Writes the logits of mlx-lm with each adapter."""


def test_mlx_lm_computes_the_adapters_logits(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    llama().save_pretrained(tmp_path / "base")
    options: list[dict[str, Any]] = [{"rank_pattern": {"down_proj": 2}}, {"layers_to_transform": [0], "target_modules": ["q_proj"]}]
    models = [adapted(llama(), **chosen) for chosen in options]
    folders = [to_mlx(model, None, tmp_path / f"out{index}").path for index, model in enumerate(models)]
    ids = [[3, 17, 5, 40, 22, 9]]
    command = [sys.executable, "-c", MLX, str(tmp_path / "base"), json.dumps(ids), str(tmp_path / "found.json"), *map(str, folders)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    for model, found in zip(models, json.loads((tmp_path / "found.json").read_text()), strict=True):
        assert error(torch.tensor(found), logits(dense_reference(llama(), [model]), torch.tensor(ids))) < 1e-4
