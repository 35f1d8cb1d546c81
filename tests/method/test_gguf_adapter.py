"""The GGUF adapter, read back by ggml's own reader and recomputed densely with llama.cpp's order of rows undone, is the adapter."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor
from transformers.pytorch_utils import Conv1D

from tests.method.export_cases import head_trained
from tests.method.gguf_base import NAMES, from_stored, heads_of, tensor_name, to_stored, write_llama
from tests.method.models import adapted, bert, dense_reference, error, gpt2, llama, logits
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors
from wegeft.method import to_gguf
from wegeft.method.gguf_layout import join_pairs, part_pairs

GPT2_NAMES = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def export(source: Any, base: nn.Module | None, out: Path, **options: Any) -> Any:
    return to_gguf(source, base, out, ollama_base="smollm2", **options)


def stored_deltas(path: Path) -> dict[str, Tensor]:
    """Return ``scale · B A`` by tensor of the base model, as llama.cpp's ``llama-adapter.h`` scales it."""
    reader = gguf.GGUFReader(path)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    arrays = {t.name: torch.tensor(gguf.quants.dequantize(t.data, t.tensor_type), dtype=torch.float64) for t in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in arrays if name.endswith(".lora_a")}
    rank = {name: arrays[f"{name}.lora_b"].shape[1] for name in names}
    return {name: alpha / rank[name] * arrays[f"{name}.lora_b"] @ arrays[f"{name}.lora_a"] for name in names}


def llama_place(config: Any, name: str) -> tuple[str, int | None]:
    return tensor_name(f"{name}.weight"), heads_of(config, name)


def gpt2_place(config: Any, name: str) -> tuple[str, int | None]:  # as llama_place
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{GPT2_NAMES[rest]}.weight", None


@torch.no_grad()
def dense_model(base: nn.Module, path: Path, place: Callable[[Any, str], tuple[str, int | None]] = llama_place) -> nn.Module:
    """Return ``base`` in float64 with the changes of the file written into its weights."""
    deltas = stored_deltas(path)
    model: Any = copy.deepcopy(base).double()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
            tensor, heads = place(model.config, name)
            delta = deltas.pop(tensor, None)
            if delta is not None:
                delta = delta if heads is None else from_stored(delta, heads)
                layer.weight += delta.t() if isinstance(layer, Conv1D) else delta
    assert not deltas
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_modules": "layer"},
        {"tied_modules": "width"},
        {"transform": "output"},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 1.5}},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "k_proj"]},
    ],
    ids=str,
)
def test_logits_are_the_adapters(tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapted(llama(), **options)
    report = export(model, None, tmp_path / "out")
    found = logits(dense_model(llama(), tmp_path / "out" / "adapter.gguf"))
    assert error(found, logits(dense_reference(llama(), [model]))) < 1e-5
    assert error(found, logits(model)) < 1e-5
    assert report.largest_error < 1e-6
    assert len(report.errors) == len(model.base_model.plans["default"])


def test_layers_that_keep_their_weight_transposed_convert(tmp_path: Path) -> None:
    model = adapted(gpt2())
    export(model, None, tmp_path / "out")
    found = dense_model(gpt2(), tmp_path / "out" / "adapter.gguf", gpt2_place)
    assert error(logits(found), logits(dense_reference(gpt2(), [model]))) < 1e-5


def test_a_saved_folder_converts_on_the_base_it_was_trained_on(tmp_path: Path) -> None:
    model = adapted(llama())
    model.save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", llama(), tmp_path / "out")
    assert error(logits(dense_model(llama(), tmp_path / "out" / "adapter.gguf")), logits(model)) < 1e-5
    with pytest.raises(InvalidAdapterConfig, match="needs the base model"):
        export(tmp_path / "adapter", None, tmp_path / "again")


def test_file_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    export(adapted(llama(), rank_pattern={"down_proj": 2}), None, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    expected = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    assert expected.items() <= fields.items()
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    layers = [f"blk.{block}.{name}.weight" for block in range(2) for name in NAMES.values() if "norm" not in name]
    assert set(shapes) == {f"{layer}.{part}" for layer in layers for part in ("lora_a", "lora_b")}
    # ggml counts dimensions from the innermost: A is [in, rank] and B [rank, out].
    assert shapes["blk.1.ffn_up.weight.lora_a"] == (32, 4)
    assert shapes["blk.1.ffn_up.weight.lora_b"] == (4, 48)
    assert shapes["blk.0.ffn_down.weight.lora_a"] == (48, 2)
    assert (tmp_path / "out" / "Modelfile").read_text().splitlines()[1:] == ["FROM smollm2", "ADAPTER ./adapter.gguf"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["Modelfile", "adapter.gguf", "out"]


@pytest.mark.parametrize(
    ("dtype", "limit", "kinds"),
    [("float32", 1e-6, {"F32"}), ("float16", 2e-3, {"F16"}), ("bfloat16", 1e-2, {"BF16"}), ("q8_0", 2e-2, {"Q8_0", "F16"})],
)
def test_reported_error_is_the_dense_one_of_every_storage_type(tmp_path: Path, dtype: Any, limit: float, kinds: set[str]) -> None:
    model = adapted(llama())
    report = export(model, None, tmp_path / "out", dtype=dtype)
    path = tmp_path / "out" / "adapter.gguf"
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors} == kinds
    exact, found = dense_reference(llama(), [model]).state_dict(), dense_model(llama(), path).state_dict()
    for name, value in report.errors.items():
        key = f"{name}.weight"
        delta = exact[key] - llama().state_dict()[key].double()
        assert value == pytest.approx(float((found[key] - exact[key]).norm() / delta.norm()), rel=1e-3, abs=1e-12)
    assert 0 < report.largest_error < limit
    assert error(logits(dense_model(llama(), path)), logits(model)) < 50 * limit


def test_small_changes_survive_half_precision(tmp_path: Path) -> None:
    model = adapted(llama(), wegeft_alpha=1e-7)
    assert export(model, None, tmp_path / "out", dtype="float16").largest_error < 2e-3


def test_a_change_that_a_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = adapted(llama(), wegeft_alpha=1e14)
    with pytest.raises(InvalidTensors, match="cannot hold the change"):
        export(model, None, tmp_path / "out", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_ordered_as_llama_cpp_rotates_them() -> None:
    rows = np.arange(16.0)[:, None] * np.ones(3)
    assert join_pairs(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    for heads in (1, 2, 4, 8):
        assert np.array_equal(part_pairs(join_pairs(rows, heads), heads), rows)
        assert np.array_equal(join_pairs(rows, heads), to_stored(torch.tensor(rows), heads).numpy())
        # transformers reads GGUF models by undoing the same order.
        assert np.array_equal(LlamaTensorProcessor()._reverse_permute_weights(join_pairs(rows, heads), heads, heads), rows)


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning")
def test_what_has_no_place_in_a_gguf_adapter_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    cases: list[tuple[PeftModel, str]] = [
        (adapted(bert(), target_modules=["query"]), "no GGUF layout"),
        (head_trained(), "cannot carry modules"),
        (adapted(llama(tied=True), target_modules=["lm_head"]), "embeddings are tied"),
        (adapted(llama(bias=True), transform="output"), "edits the bias"),
    ]
    for model, message in cases:
        with pytest.raises(InvalidAdapterConfig) as caught:
            export(model, None, tmp_path / "out")
        assert message in str(caught.value)
    model = adapted(llama())
    for options in ({"dtype": "q4_0"}, {"ollama_base": "x\nRUN y"}, {"ollama_base": None}):
        with pytest.raises(InvalidAdapterConfig):
            to_gguf(model, None, tmp_path / "out", **{"ollama_base": "x", **options})  # type: ignore[arg-type] # wrong on purpose
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError):
        export(adapted(llama()), None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


LLAMA_CPP = """
import json, sys
import xllamacpp as x
ids = json.loads(sys.argv[2])
params = x.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.port = sys.argv[1], 256, 1, False, 0
params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.lora_adapters = [x.CommonAdapterLoraInfo(path, 1.0) for path in sys.argv[4:]]
server, rows = x.Server(params), []
for end in range(1, len(ids) + 1):
    request = {"prompt": ids[:end], "n_predict": 1, "n_probs": 64, "temperature": 0, "samplers": ["temperature"], "cache_prompt": False}
    answer = server.handle_completions(request)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    found = answer.get("completion_probabilities") or answer["choices"][0]["logprobs"]["content"]
    rows.append([entry["logprob"] for entry in sorted(found[0]["top_logprobs"], key=lambda entry: entry["id"])])
open(sys.argv[3], "w").write(json.dumps(rows))
"""
"""Writes llama.cpp's log-probabilities of every token after every prefix."""


def test_llama_cpp_computes_the_adapters_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    base = write_llama(llama(), tmp_path / "base.gguf")
    model = adapted(llama(), std=0.15, rank_pattern={"down_proj": 2})
    export(model, None, tmp_path / "out")
    ids = [3, 17, 5, 40, 22, 9]
    for adapters, expected in (([], llama().double()), ([str(tmp_path / "out" / "adapter.gguf")], dense_reference(llama(), [model]))):
        command = [sys.executable, "-c", LLAMA_CPP, str(base), json.dumps(ids), str(tmp_path / "found.json"), *adapters]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        found = torch.tensor(json.loads((tmp_path / "found.json").read_text()), dtype=torch.float64)
        assert float((found - logits(expected, torch.tensor([ids]))[0].log_softmax(-1)).abs().max()) < 1e-4
