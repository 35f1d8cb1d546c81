"""Classifiers: their base model's files hold no head, or another one, and the adapter brings what it trained in full."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tests.method.models import IDS, bert, error, llama, randomise
from wegeft.contracts.errors import BaseModelUnusable
from wegeft.method import WeGeFTConfig, merge_into, to_lora
from wegeft.method.stored_head import open_base_of, read_head

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def encoder(folder: Path) -> tuple[nn.Module, list[str], torch.Tensor]:
    """A BERT that was stored as a language model, without the pooler that a classifier reads through."""
    BertForMaskedLM(bert().config).save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5), ["classifier", "pooler"], IDS


def decoder(folder: Path) -> tuple[nn.Module, list[str], torch.Tensor]:
    model = llama()
    model.config.pad_token_id = 0
    model.save_pretrained(folder)
    return LlamaForSequenceClassification.from_pretrained(folder, num_labels=3), ["score"], IDS


def vision(folder: Path) -> tuple[nn.Module, list[str], torch.Tensor]:
    """A Vision Transformer that was stored with a head for other labels."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 8,
    }
    ViTForImageClassification(ViTConfig(**shape, num_labels=7)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    model = AutoModelForImageClassification.from_pretrained(folder, num_labels=4, ignore_mismatched_sizes=True)
    return model, ["classifier"], PIXELS


def trained(base: nn.Module, modules: list[str], folder: Path, task: str | None) -> PeftModel:
    """Store an adapter with a head, as training leaves it, and the labels of its job."""
    config = WeGeFTConfig(r=4, wegeft_alpha=6, target_modules="all-linear", modules_to_save=modules, task_type=task)
    model = get_peft_model(base, config)
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    model.save_pretrained(folder)
    outputs = int(base.config.num_labels)
    (folder / "job.json").write_text(json.dumps({"label_names": [f"kind {index}" for index in range(outputs)]}))
    return model.eval()


def answers(model: Any, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(given).logits
    return result


@pytest.mark.parametrize(
    ("kind", "task"), [(encoder, "SEQ_CLS"), (decoder, "SEQ_CLS"), (vision, None)], ids=["encoder", "decoder", "vision"]
)
def test_a_classifier_is_exported_with_the_head_that_it_trained(tmp_path: Path, kind: Any, task: str | None) -> None:
    torch.manual_seed(3)
    base, modules, given = kind(tmp_path / "base")
    expected = answers(trained(base, modules, tmp_path / "adapter", task), given)

    merge_into(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", allow_other_base=True)
    loader = AutoModelForImageClassification if task is None else AutoModelForSequenceClassification
    merged = loader.from_pretrained(tmp_path / "merged")
    assert error(answers(merged, given), expected) < 1e-4
    assert merged.config.id2label[1] == "kind 1"
    assert (tmp_path / "merged" / "preprocessor_config.json").exists() == (task is None)

    opened = open_base_of(tmp_path / "base", tmp_path / "adapter")
    to_lora(tmp_path / "adapter", opened, tmp_path / "lora")
    assert error(answers(PeftModel.from_pretrained(opened, tmp_path / "lora"), given), expected) < 1e-4


def test_a_base_that_lacks_more_than_the_head_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(3)
    base, _, _ = encoder(tmp_path / "base")
    trained(base, ["classifier"], tmp_path / "adapter", "SEQ_CLS")
    with pytest.raises(BaseModelUnusable, match=r"bert\.pooler\.dense"):
        open_base_of(tmp_path / "base", tmp_path / "adapter")


def test_an_adapter_without_a_head_opens_its_base_as_it_is(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    get_peft_model(llama(), WeGeFTConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert read_head(tmp_path / "adapter") is None
    assert type(open_base_of(tmp_path / "base", tmp_path / "adapter")).__name__ == "LlamaForCausalLM"
