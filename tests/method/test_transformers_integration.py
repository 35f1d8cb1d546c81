"""The ways by which transformers itself meets an adapter: those that work, and those that say what to do instead."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, inject_adapter_in_model
from transformers import AutoModelForCausalLM

from tests.method.gguf_base import write_llama
from tests.method.models import adapted, dense_reference, error, gradients, llama, logits
from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter that names a base model beside it."""
    root = tmp_path_factory.mktemp("stored")
    llama().save_pretrained(root / "base")
    adapted(AutoModelForCausalLM.from_pretrained(root / "base")).save_pretrained(root / "adapter")
    return root


def test_peft_opens_base_and_adapter_from_the_adapters_folder(folder: Path) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    assert error(logits(model), logits(dense_reference(llama(), [adapted(llama())]))) < 1e-5


def test_direct_injection_is_refused_and_says_what_to_do(folder: Path) -> None:
    """The generators would be dropped with the tuner, so transformers' own loading cannot be served."""
    for attempt in (
        lambda: AutoModelForCausalLM.from_pretrained(folder / "adapter"),
        lambda: llama().load_adapter(str(folder / "adapter")),
        lambda: llama().add_adapter(WeGeFTConfig(target_modules="all-linear")),
        lambda: inject_adapter_in_model(WeGeFTConfig(target_modules="all-linear"), llama()),
    ):
        with pytest.raises(InvalidAdapterConfig, match=r"PeftModel\.from_pretrained"):
            attempt()


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_base_loaded_from_gguf_is_edited_as_any_other(tmp_path: Path) -> None:
    write_llama(llama(), tmp_path / "base.gguf")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="base.gguf", dtype=torch.float32).eval()
    model = adapted(base)
    assert error(logits(model), logits(dense_reference(llama(), [adapted(llama())]))) < 1e-5
    assert all(gradient.abs().max() > 0 for gradient in gradients(model).values())
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(model.unload(), tmp_path / "adapter").eval()), logits(adapted(llama())))
