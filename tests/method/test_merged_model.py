"""The merged folder is a plain model that computes what the adapter does, and says what rounding took."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.method.export_cases import head_trained
from tests.method.gguf_base import write_llama
from tests.method.models import adapted, bert, dense_reference, error, gpt2, llama, logits
from tests.tiny_models import make_tokenizer
from wegeft.contracts.errors import BaseModelNotFound, BaseModelUnusable, InvalidAdapterConfig, InvalidTensors
from wegeft.method import merge_into
from wegeft.method.stored_base import canonical_name, open_base

COMMIT, OTHER_COMMIT = "0" * 39 + "a", "0" * 39 + "b"


def reopened(folder: Path, kind: Any = AutoModelForCausalLM) -> nn.Module:
    model, report = kind.from_pretrained(folder, dtype="auto", output_loading_info=True, local_files_only=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    result: nn.Module = model.eval()
    return result


def named(model: PeftModel, base: str, revision: str | None = None) -> PeftModel:
    """Say what the adapter was trained on."""
    model.peft_config["default"].base_model_name_or_path = base
    model.peft_config["default"].revision = revision
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_modules": "width"},
        {"transform": "output"},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 1.5}},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
    ids=str,
)
def test_plain_transformers_computes_the_same_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model, base = adapted(llama(bias=True), **options), llama(bias=True)
    model.save_pretrained(tmp_path / "adapter")
    before = snapshot(base)
    report = merge_into(base, tmp_path / "adapter", tmp_path / "merged")
    found = logits(reopened(tmp_path / "merged"))
    assert error(found, logits(model)) < 1e-5
    assert error(found, logits(dense_reference(llama(bias=True), [model]))) < 1e-5
    assert report.largest_error < 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_modules_trained_in_full_are_put_in(tmp_path: Path) -> None:
    model = head_trained()
    merge_into(llama(), model, tmp_path / "merged")
    assert error(logits(reopened(tmp_path / "merged")), logits(model)) < 1e-5


def test_other_layouts_and_heads_merge(tmp_path: Path) -> None:
    model = adapted(gpt2())
    merge_into(None, model, tmp_path / "gpt2")
    assert error(logits(reopened(tmp_path / "gpt2")), logits(dense_reference(gpt2(), [model]))) < 1e-5
    classifier = adapted(bert(), target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    classifier.save_pretrained(tmp_path / "adapter")
    bert().save_pretrained(tmp_path / "base")
    merge_into(tmp_path / "base", tmp_path / "adapter", tmp_path / "bert", allow_other_base=True)
    assert error(logits(reopened(tmp_path / "bert", AutoModelForSequenceClassification)), logits(classifier)) < 1e-5


def test_a_wrapped_model_is_merged_without_being_changed(tmp_path: Path) -> None:
    model = adapted(llama(tied=True), modules_to_save=["norm"])
    before = snapshot(model)
    merge_into(None, model, tmp_path / "merged")
    assert error(logits(reopened(tmp_path / "merged")), logits(model)) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (tmp_path / "merged" / "config.json").read_text().count('"tie_word_embeddings": true') == 1


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning")
def test_an_edited_output_layer_parts_from_the_embeddings(tmp_path: Path) -> None:
    model = adapted(llama(tied=True), target_modules=["lm_head", "q_proj"])
    merge_into(None, model, tmp_path / "merged")
    merged = reopened(tmp_path / "merged")
    assert error(logits(merged), logits(model)) < 1e-5
    assert torch.equal(merged.get_input_embeddings().weight, llama(tied=True).get_input_embeddings().weight)
    assert '"tie_word_embeddings": true' not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 4e-3), ("float16", 5e-4), ("float32", 1e-7)])
def test_rounding_is_reported_as_what_it_took_of_the_change_and_of_the_weight(tmp_path: Path, dtype: Any, limit: float) -> None:
    model = adapted(llama(), std=0.02)
    report = merge_into(None, model, tmp_path / "merged", dtype=dtype)
    merged, exact, base = (m.state_dict() for m in (reopened(tmp_path / "merged"), dense_reference(llama(), [model]), llama()))
    assert {str(tensor.dtype) for tensor in merged.values()} == {f"torch.{dtype}"}
    assert report.dtype == dtype
    for name, value in report.errors.items():
        key = f"{name}.weight"
        rounding = (merged[key].double() - exact[key]).norm()
        assert value == pytest.approx(float(rounding / (exact[key] - base[key].double()).norm()), rel=1e-6)
        assert report.weight_errors[name] == pytest.approx(float(rounding / exact[key].norm()), rel=1e-6)
    assert 0 < max(report.weight_errors.values()) < limit
    # A change much smaller than the weight loses much more of itself than the weight does.
    assert report.largest_error > 100 * max(report.weight_errors.values())


def test_a_half_precision_base_keeps_its_type(tmp_path: Path) -> None:
    model = adapted(llama(dtype=torch.bfloat16))
    report = merge_into(None, model, tmp_path / "merged")
    merged = reopened(tmp_path / "merged")
    assert report.dtype == "bfloat16"
    assert {tensor.dtype for tensor in merged.state_dict().values()} == {torch.bfloat16}
    assert error(logits(merged), logits(dense_reference(llama(dtype=torch.bfloat16), [model]))) < 0.05


def test_weights_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTensors, match="cannot hold these weights"):
        merge_into(None, adapted(llama(), wegeft_alpha=1e8), tmp_path / "merged", dtype="float16")
    base = llama()
    with torch.no_grad():
        base.model.norm.weight.fill_(1e6)
    with pytest.raises(InvalidTensors, match=r"model\.norm\.weight"):
        merge_into(None, adapted(base), tmp_path / "merged", dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_gguf_base_becomes_a_plain_model(tmp_path: Path) -> None:
    gguf = write_llama(llama(), tmp_path / "base.gguf")
    model = named(adapted(open_base(gguf)), "elsewhere/base.gguf")
    model.save_pretrained(tmp_path / "adapter")
    report = merge_into(gguf, tmp_path / "adapter", tmp_path / "merged")
    merged = reopened(tmp_path / "merged")
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    assert error(logits(merged), logits(dense_reference(llama(), [model]))) < 1e-5
    assert report.dtype == "float32"
    assert report.largest_error < 1e-6
    merge_into(gguf, named(model, str(tmp_path)), tmp_path / "again")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged", local_files_only=True)) == 64


def test_a_stored_base_brings_its_tokenizer(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "secret.bin").write_bytes(b"not asked for")
    named(adapted(llama()), str(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    merge_into(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged", local_files_only=True).encode("a") == make_tokenizer().encode("a")
    assert not (tmp_path / "merged" / "secret.bin").exists()


@pytest.mark.parametrize(
    ("trained_on", "revision", "given", "is_same"),
    [
        ("org/base", None, "org/base", True),
        ("org/base", None, "", True),
        ("", None, "org/base", True),
        ("org/base", None, "org/other", False),
        (f"org/base@{COMMIT}", None, "org/base", True),
        ("org/base", COMMIT, f"/cache/models--org--base/snapshots/{COMMIT}", True),
        ("org/base", OTHER_COMMIT, f"/cache/models--org--base/snapshots/{COMMIT}", False),
        ("org/base", "main", f"/cache/models--org--base/snapshots/{COMMIT}", True),
        ("gpt2", None, f"/cache/models--gpt2/snapshots/{COMMIT}", True),
        ("/there/base.Q4_1.gguf", None, "/here/base.Q4_1.gguf", True),
        (f"base.Q4_1.gguf@sha256:{'0' * 64}", None, "/here/base.Q4_1.gguf", True),
        ("base.Q4_1.gguf", None, "base.Q8_0.gguf", False),
    ],
)
def test_another_base_is_refused_unless_told(tmp_path: Path, trained_on: str, revision: str | None, given: str, is_same: bool) -> None:
    model = named(adapted(llama()), trained_on, revision)
    base = llama()
    base.name_or_path = given
    if is_same:
        merge_into(base, model, tmp_path / "merged")
    else:
        with pytest.raises(InvalidAdapterConfig, match="another base model"):
            merge_into(base, model, tmp_path / "merged")
        assert not list(tmp_path.iterdir())
        merge_into(base, model, tmp_path / "merged", allow_other_base=True)
    assert error(logits(reopened(tmp_path / "merged")), logits(model)) < 1e-5


def test_a_path_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert canonical_name("./base") == canonical_name(str(tmp_path / "base"))


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
def test_a_filed_output_layer_must_be_the_base_models(tmp_path: Path) -> None:
    adapted(llama(), target_modules=["lm_head"]).save_pretrained(tmp_path / "adapter")
    base = llama()
    with torch.no_grad():
        base.lm_head.weight.mul_(2)
    with pytest.raises(InvalidAdapterConfig, match="another weight"):
        merge_into(base, tmp_path / "adapter", tmp_path / "merged")


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = adapted(llama())
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"architectures": ["os.system"], "model_type": "llama"}')
    left = sorted(tmp_path.rglob("*"))
    with pytest.raises(BaseModelNotFound):
        merge_into(tmp_path / "nowhere", model, tmp_path / "merged")
    for folder in ("empty", "strange"):
        with pytest.raises(BaseModelUnusable):
            merge_into(tmp_path / folder, model, tmp_path / "merged")
    with pytest.raises(InvalidAdapterConfig, match="not a storage type"):
        merge_into(None, model, tmp_path / "merged", dtype="q8_0")  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(InvalidAdapterConfig, match="only models of transformers"):
        merge_into(nn.ModuleDict({"model": llama().model}), model, tmp_path / "merged")
    model.merge_adapter()
    with pytest.raises(InvalidAdapterConfig, match="merged model"):
        merge_into(None, model, tmp_path / "merged")
    assert sorted(tmp_path.rglob("*")) == left


def test_an_existing_folder_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError):
        merge_into(None, adapted(llama()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
