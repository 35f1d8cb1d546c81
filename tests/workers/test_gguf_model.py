"""Base models from GGUF files: they load as the model that was written, are converted once, and what is none is refused."""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, make_model, make_tokenizer
from tests.workers.test_base_model import load, no_network, refusal
from wegeft.contracts.errors import BaseModelNotFound
from workers import gguf_model

__all__ = ["no_network"]


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
