"""Base models from folders, GGUF files and ids: what loads, what is refused and in which words, and that nothing local asks the network."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, make_model, make_model_folder, make_tokenizer
from wegeft.contracts.errors import BaseModelNotFound, BaseModelUnusable, NoCapacity, WegeftError
from workers import gguf_model
from workers.base_model import BaseModel, ModelRequest, load_base_model
from workers.model_source import find_model
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


MERGING_TOKENIZER = functools.partial(make_tokenizer, merges=(("a", "b"),))
"""A GGUF file must hold a merge."""


def write_gguf(path: Path, model: Any) -> Path:
    """Write a Llama as llama.cpp's converter does, in float32."""
    import gguf

    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = MERGING_TOKENIZER().get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in SPECIAL_TOKENS else 1 for word in words])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue
        weights = tensor.numpy().astype(np.float32)
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                weights = weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weights))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "Tiny.Q4_1.gguf", make_model(vocabulary=len(MERGING_TOKENIZER())))


@pytest.mark.usefixtures("no_network")
def test_a_gguf_file_loads_as_a_plain_model(gguf_file: Path, tmp_path: Path) -> None:
    base = load(gguf_file, cache=tmp_path / "cache")
    tokens = torch.tensor([[1, 20, 30, 40]])
    own = make_model(vocabulary=base.model.config.vocab_size)(tokens).logits
    torch.testing.assert_close(base.model(tokens).logits, own, rtol=1e-5, atol=1e-4)
    assert not hasattr(base.model.config, "quantization_config")
    assert base.tokenizer.chat_template == CHAT_TEMPLATE
    assert base.tokenizer.eos_token_id == 2
    assert base.identity == f"Tiny.Q4_1.gguf@sha256:{hashlib.sha256(gguf_file.read_bytes()).hexdigest()}"


def test_a_converted_file_is_kept_and_used_again(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(gguf_file, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(hashlib.sha256(gguf_file.read_bytes()).hexdigest())
    monkeypatch.setattr(gguf_model, "_convert", None)
    again = load(gguf_file, cache=tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True))
    monkeypatch.undo()
    monkeypatch.setattr(gguf_model, "CACHED_FILE_LIMIT", 10)
    load(gguf_file, cache=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_an_interrupted_conversion_left_is_not_used(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_model, "_convert", fill)
    with pytest.raises(OSError, match="No space left"):
        load(gguf_file, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_conversions_at_once_end_in_one_folder(gguf_file: Path, tmp_path: Path) -> None:
    threads = [threading.Thread(target=load, args=(gguf_file,), kwargs={"cache": tmp_path}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 1
    load(gguf_file, cache=tmp_path)


def test_a_cache_that_cannot_be_written_is_done_without(gguf_file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert load(gguf_file, cache=blocked / "cache").model is not None


@pytest.mark.usefixtures("no_network")
def test_gguf_files_that_are_none_are_refused(tmp_path: Path) -> None:
    assert isinstance(refusal(tmp_path / "absent.gguf"), BaseModelNotFound)
    for content in (b"", b"hello"):
        (tmp_path / "a.gguf").write_bytes(content)
        assert "not GGUF" in refusal(tmp_path / "a.gguf").message
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    assert "cannot be read" in refusal(tmp_path / "a.gguf").message


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.BaseHTTPRequestHandler):
    """The two answers of the Hugging Face hub that loading needs."""

    folder: Path

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(("/api/models/org/tiny/revision/nope", "/api/models/org/secret", "/api/models/org/gated")):
            code = "RevisionNotFound" if "nope" in path else "GatedRepo" if "gated" in path else "RepoNotFound"
            self._send(403 if code == "GatedRepo" else 404, b"{}", {"X-Error-Code": code})
        elif path.startswith("/api/models/org/tiny/tree/"):
            self._send(200, json.dumps([self._entry(file) for file in sorted(self.folder.iterdir())]).encode())
        elif path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            self._send(200, json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self._send_file(self.folder / path.rpartition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _entry(self, file: Path) -> dict[str, Any]:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest()}

    def _send_file(self, file: Path) -> None:
        content = file.read_bytes()
        self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[str]:
    copy = shutil.copytree(folder, tmp_path / "repository")
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "code.py").write_text("raise SystemExit\n")
    handler = type("Handler", (_Hub,), {"folder": copy})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


_ASK = """
import json, sys
from wegeft.contracts.errors import WegeftError
from workers.base_model import ModelRequest, load_base_model
for model, revision in json.loads(sys.argv[1]):
    try:
        base = load_base_model(ModelRequest(base_model=model, revision=revision))
        print(json.dumps([base.identity, base.commit, base.license]))
    except WegeftError as error:
        print(json.dumps([error.code, error.problems[0].path, str(error)]))
"""


def ask(endpoint: str, home: Path, *wanted: tuple[str, str | None]) -> list[list[str]]:
    """Load models at revisions in a process of its own, for the libraries read their endpoint when they are imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", _ASK, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()[-len(wanted) :]]


@pytest.mark.slow
def test_an_id_is_pinned_to_its_commit_and_works_offline_afterwards(hub: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    pinned = [f"org/tiny@{COMMIT}", COMMIT, "mit"]
    assert ask(hub, home, ("org/tiny", None)) == [pinned]
    fetched = {path.name for path in home.rglob("snapshots/*/*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "code.py"}
    assert ask("http://127.0.0.1:9", home, ("org/tiny", None), ("org/tiny", COMMIT)) == [pinned, pinned]


@pytest.mark.slow
def test_an_id_that_the_hub_refuses_says_why(hub: str, tmp_path: Path) -> None:
    expected = {
        ("org/secret", None): ["base_model_not_found", "base_model", "no such model"],
        ("org/tiny", "nope"): ["base_model_not_found", "base_model_revision", "no such revision"],
        ("org/gated", None): ["base_model_unusable", "base_model", "gated"],
    }
    for (code, path, words), (found_code, found_path, text) in zip(expected.values(), ask(hub, tmp_path / "home", *expected), strict=True):
        assert (found_code, found_path) == (code, path)
        assert words in text


def test_an_id_without_a_network_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(BaseModelNotFound) as caught:
        find_model("no-such-org/no-such-model")
    assert "local cache" in caught.value.message
