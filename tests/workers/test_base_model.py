"""Base models from folders: what loads, what is refused and in which words, and that nothing local asks the network."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import make_model, make_model_folder, make_tokenizer
from wegeft.contracts.errors import BaseModelNotFound, BaseModelUnusable, NoCapacity, WegeftError
from workers.base_model import BaseModel, ModelRequest, load_base_model
from workers.weights_digest import digest_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(source: Path | str, **options: Any) -> BaseModel:
    return load_base_model(ModelRequest(base_model=str(source), **options))


def refusal(source: Path | str, **options: Any) -> WegeftError:
    with pytest.raises((BaseModelNotFound, BaseModelUnusable, NoCapacity)) as caught:
        load(source, **options)
    return caught.value


@pytest.mark.usefixtures("no_network")
def test_a_folder_loads_without_the_network_frozen_and_exact(folder: Path) -> None:
    base = load(folder)
    tokens = torch.tensor([[1, 20, 30, 40]])
    assert torch.equal(base.model(tokens).logits, make_model()(tokens).logits)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.tokenizer.decode(base.tokenizer("hi<|im_end|>")["input_ids"]) == "hi<|im_end|>"
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert (base.identity, base.former_identity) == (f"{folder}@{digest_weights(folder)}", f"{folder}@sha256:{digest}")
    assert (base.commit, base.license, base.device.type) == (None, None, "cpu")


def test_bf16_decides_the_dtype(folder: Path) -> None:
    assert load(folder).model.dtype == torch.float32
    assert load(folder, bf16=False).model.dtype == torch.float32
    assert load(folder, bf16=True).model.dtype == torch.bfloat16


def test_attention_can_be_chosen(folder: Path) -> None:
    assert load(folder, attn_implementation="eager").model.config._attn_implementation == "eager"
    error = refusal(folder, attn_implementation="flash_attention_2")
    assert isinstance(error, BaseModelUnusable)
    assert "attn_implementation" in (error.problems[0].hint or "")


def test_a_card_tells_the_license(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "README.md").write_text("---\nlicense: apache-2.0\ntags: []\n---\n\n# Model\nlicense: other\n")
    assert load(copy).license == "apache-2.0"
    (copy / "README.md").write_text("# Model\nlicense: other\n")
    assert load(copy).license is None


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "no/such/folder", "..", "a model", "", "https://x.org/m"]
)
def test_what_is_no_folder_and_no_id_is_not_found(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(source) if source != ".." else refusal("../no-such-folder")
    assert isinstance(error, BaseModelNotFound)
    assert error.problems[0].path == "base_model"
    assert error.problems[0].hint


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"config.json": None}, "no config.json", None),
        ({"config.json": None, "adapter_config.json": "{}"}, "no config.json", "give the model that it adapts"),
        ({"config.json": None, "model.gguf": "GGUF"}, "no config.json", "name the .gguf file itself"),
        ({"model.safetensors": None}, "no safetensors weights", None),
        ({"model.safetensors": None, "pytorch_model.bin": "x"}, "no safetensors weights", "pickled weights are never read"),
        ({"model.safetensors": "broken"}, "is not safetensors", "is the download complete?"),
        ({"tokenizer.json": "{broken"}, "its tokenizer cannot be loaded", None),
        ({"config.json": "{broken"}, "cannot be loaded", None),
        ({"config.json": '{"model_type": "vit"}'}, "cannot be loaded", None),
        ({"config.json": '{"model_type": "none-such"}'}, "cannot be loaded", "is it a causal language model?"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, str | None], message: str, hint: str | None
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    for name, content in change.items():
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_text(content)
    error = refusal(copy)
    assert isinstance(error, BaseModelUnusable)
    assert message in error.message
    assert hint is None or hint in (error.problems[0].hint or "")


def test_missing_weights_are_refused_and_not_made_up(tmp_path: Path) -> None:
    model = make_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    make_tokenizer().save_pretrained(tmp_path)
    error = refusal(tmp_path)
    assert "3 weights are missing" in error.message
    assert "layers.1.mlp" in (error.problems[0].value or "")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(100)])
    tokenizer.save_pretrained(copy)
    assert "the tokenizer has 359 tokens and the model only 320" in refusal(copy).message


def test_a_model_that_brings_code_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "brings-code", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    error = refusal(copy)
    assert "trust_remote_code" in (error.problems[0].hint or "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(folder: Path) -> None:
    assert isinstance(refusal(folder, gpus=1), NoCapacity)
