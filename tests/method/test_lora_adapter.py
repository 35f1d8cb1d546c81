"""The LoRA folder computes exactly what the adapter does, in an installation that has never heard of us."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from tests.method.models import IDS, adapted, bert, dense_reference, error, gpt2, llama, logits
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors
from wegeft.method import lora_equivalent_size, to_lora

FOREIGN = """
import sys, torch
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "wegeft":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[3])).logits, sys.argv[4])
assert not any(name.partition(".")[0] == "wegeft" for name in sys.modules)
"""


def lora_error(model: nn.Module, folder: Path, expected: torch.Tensor) -> float:
    return error(logits(PeftModel.from_pretrained(model, folder)), expected)


def test_plain_peft_without_this_package_has_the_same_logits(tmp_path: Path) -> None:
    model = adapted(llama())
    model.save_pretrained(tmp_path / "adapter")
    llama().save_pretrained(tmp_path / "base")
    to_lora(tmp_path / "adapter", llama(), tmp_path / "lora")
    torch.save(IDS, tmp_path / "ids.pt")
    arguments = [str(tmp_path / part) for part in ("base", "lora", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", FOREIGN, *arguments], check=True, capture_output=True, text=True, cwd=tmp_path)
    found = torch.load(tmp_path / "logits.pt")
    assert error(found, logits(model)) < 1e-5
    assert error(found, logits(dense_reference(llama(), [model]))) < 1e-5


def test_folder_is_what_engines_ask_for(tmp_path: Path) -> None:
    model = adapted(llama())
    to_lora(model, None, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 4,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    expected |= {"fan_in_fan_out": False, "inference_mode": True, "rank_pattern": {}, "alpha_pattern": {}}
    assert {key: config[key] for key in expected} == expected
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 14
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (4, 48)
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (32, 4)
    assert sum(t.numel() for t in tensors.values()) == lora_equivalent_size(model.peft_config["default"], llama())[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


@pytest.mark.parametrize("tied", ["type", "layer", "width", [["q_proj", "k_proj"], ["o_proj"]]])
def test_every_sharing_converts(tmp_path: Path, tied: str | list[list[str]]) -> None:
    model = adapted(llama(), tied_modules=tied)
    to_lora(model, None, tmp_path / "lora")
    assert lora_error(llama(), tmp_path / "lora", logits(model)) < 1e-5


def test_unequal_ranks_are_padded_to_one(tmp_path: Path) -> None:
    model = adapted(llama(), rank_pattern={"q_proj": 2, "down_proj": 7}, alpha_pattern={"v_proj": 1.0})
    to_lora(model, None, tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 7
    assert lora_error(llama(), tmp_path / "lora", logits(model)) < 1e-5


def test_subset_of_layers_is_named_in_full(tmp_path: Path) -> None:
    model = adapted(llama(), target_modules=["q_proj"], layers_to_transform=[1])
    to_lora(model, None, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert lora_error(llama(), tmp_path / "lora", logits(model)) < 1e-5


def test_conv1d_converts(tmp_path: Path) -> None:
    model = adapted(gpt2())
    to_lora(model, None, tmp_path / "lora")
    assert lora_error(gpt2(), tmp_path / "lora", logits(model)) < 1e-5


def test_output_form_converts_where_there_is_no_bias(tmp_path: Path) -> None:
    model = adapted(llama(), transform="output")
    to_lora(model, None, tmp_path / "lora")
    assert lora_error(llama(), tmp_path / "lora", logits(model)) < 1e-5
    with pytest.raises(InvalidAdapterConfig, match="edits the bias"):
        to_lora(adapted(llama(bias=True), transform="output"), None, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_saved_modules_are_carried_along(tmp_path: Path) -> None:
    model = adapted(bert(), modules_to_save=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save.default.weight.mul_(3)
    to_lora(model, None, tmp_path / "lora")
    assert lora_error(bert(), tmp_path / "lora", logits(model)) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_reported_error_is_the_dense_one_of_every_storage_type(tmp_path: Path, dtype: Any, limit: float) -> None:
    model = adapted(llama())
    export = to_lora(model, None, tmp_path / "lora", dtype=dtype)
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    change = (dense_reference(llama(), [model]).get_submodule(name).weight - llama().get_submodule(name).weight.double()).detach()
    dense_error = float((up.double() @ down.double() - change).norm() / change.norm())
    assert export.errors[name] == pytest.approx(dense_error, rel=1e-3, abs=1e-12)
    assert 0 < export.largest_error < limit


def test_a_change_that_a_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTensors, match="cannot hold the change"):
        to_lora(adapted(llama(), std=1e5), None, tmp_path / "lora", dtype="float16")
    with pytest.raises(InvalidAdapterConfig, match="not a storage type"):
        to_lora(adapted(llama()), None, tmp_path / "lora", dtype="int8")  # type: ignore[arg-type] # what a caller without a checker may do
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    to_lora(adapted(llama()), None, tmp_path / "lora")
    before = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError):
        to_lora(adapted(llama(), seed=2), None, tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").read_bytes() == before


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("wegeft.method.lora_adapter.save_file", full)
    with pytest.raises(OSError, match="No space"):
        to_lora(adapted(llama()), None, tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_folder_must_fit_the_base_model(tmp_path: Path) -> None:
    adapted(llama()).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.wegeft_generators.q_proj.phi"] = torch.zeros(31, 4)
    save_file(tensors, path)
    with pytest.raises(InvalidTensors, match=r"q_proj.phi: must have shape \(32, 4\) \(got \(31, 4\)\)"):
        to_lora(tmp_path / "adapter", llama(), tmp_path / "lora")
    with pytest.raises(InvalidAdapterConfig, match="needs the base model"):
        to_lora(tmp_path / "adapter", None, tmp_path / "lora")


def test_merged_model_is_refused(tmp_path: Path) -> None:
    model = adapted(llama())
    model.merge_adapter()
    with pytest.raises(InvalidAdapterConfig, match="merged"):
        to_lora(model, None, tmp_path / "lora")
