"""Trainable parameters equal the published counts, on the published architectures (built without memory)."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    LlamaConfig,
    Qwen2Config,
    RobertaConfig,
    ViTConfig,
)

from tests.method.models import llama
from wegeft.method import WeGeFTConfig, count_parameters, lora_equivalent_size

QV = ["q_proj", "v_proj"]
QKVUD = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
ALL7 = [*QKVUD, "o_proj", "gate_proj"]


def shape(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=128,
    )


LLAMA2_7B = shape(4096, 11008, 32, 32, 32)
LLAMA3_8B = shape(4096, 14336, 32, 32, 8)
LLAMA32_3B = shape(3072, 8192, 28, 24, 8)
LLAMA32_1B = shape(2048, 8192, 16, 32, 8)
SMOLLM2 = shape(576, 1536, 30, 9, 3)
QWEN25 = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=128
)


@pytest.mark.parametrize(
    ("architecture", "targets", "rank", "expected"),
    [
        (LLAMA2_7B, QV, 64, 1_048_576),
        (LLAMA2_7B, ["o_proj"], 128, 1_048_576),
        (LLAMA2_7B, QKVUD, 64, 3_506_176),
        (LLAMA2_7B, ALL7, 64, 4_554_752),
        (LLAMA2_7B, QV, 16, 262_144),
        (LLAMA2_7B, QV, 128, 2_097_152),
        (LLAMA3_8B, QV, 64, 1_048_576),
        (LLAMA3_8B, QKVUD, 64, 3_932_160),
        (LLAMA32_3B, QV, 64, 786_432),
        (LLAMA32_3B, ALL7, 64, 3_407_872),
        (LLAMA32_1B, ALL7, 64, 2_621_440),
        (QWEN25, ALL7, 64, 1_310_720),
        (SMOLLM2, ALL7, 64, 638_976),
        (SMOLLM2, ALL7, 16, 159_744),
    ],
)
def test_published_counts(architecture: LlamaConfig, targets: list[str], rank: int, expected: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    assert count_parameters(WeGeFTConfig(r=rank, target_modules=targets), model) == expected


ROBERTA_BASE = RobertaConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=128)
ROBERTA_LARGE = RobertaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, vocab_size=128)


@pytest.mark.parametrize(
    ("kind", "architecture", "targets", "rank", "expected"),
    [
        (AutoModelForSequenceClassification, ROBERTA_BASE, ["query", "value"], 32, 98_304),
        (AutoModelForSequenceClassification, ROBERTA_LARGE, ["query", "value"], 32, 131_072),
        (AutoModelForImageClassification, ViTConfig(), ["attention.o_proj"], 16, 24_576),
    ],
)
def test_published_counts_of_encoders(kind: Any, architecture: Any, targets: list[str], rank: int, expected: int) -> None:
    """GLUE and the vision tables; the head that is trained in full is not counted, as in the papers."""
    with torch.device("meta"):
        model = kind.from_config(architecture)
    assert count_parameters(WeGeFTConfig(r=rank, target_modules=targets, modules_to_save=["classifier"]), model) == expected


@pytest.mark.parametrize(
    ("targets", "tied", "rank", "expected"),
    [
        (QKVUD, "width", 64, 1_933_312),
        (ALL7, "width", 64, 1_933_312),
        (QKVUD, "layer", 16, 28_049_408),
        (QKVUD, "layer", 64, 112_197_632),
    ],
)
def test_sharing_counts(targets: list[str], tied: Any, rank: int, expected: int) -> None:
    """Tied across types by width, and not tied at all, of a model of 7B."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LLAMA2_7B)
    assert count_parameters(WeGeFTConfig(r=rank, target_modules=targets, tied_modules=tied), model) == expected


def test_print_trainable_parameters_counts_each_generator_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = WeGeFTConfig(r=4, target_modules="all-linear")
    expected = count_parameters(config, llama())
    model = get_peft_model(llama(), config)
    assert model.get_nb_trainable_parameters()[0] == expected == 2 * 4 * (6 * 32 + 48)
    model.print_trainable_parameters()
    assert f"trainable params: {expected:,}" in capsys.readouterr().out


def test_lora_equivalent_is_what_lora_trains() -> None:
    lora = get_peft_model(llama(), LoraConfig(r=4, target_modules="all-linear"))
    expected = lora.get_nb_trainable_parameters()[0]
    assert lora_equivalent_size(WeGeFTConfig(r=4, target_modules="all-linear"), llama()) == (expected, 4 * expected)
