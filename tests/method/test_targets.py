"""Which layers are chosen, what they are called, and what is said when there are none."""

import pytest
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification, ViTConfig, ViTForImageClassification

from tests.method.models import LINEARS, adapted, bert, gpt2, llama
from wegeft.contracts.errors import InvalidAdapterConfig, TargetsNotFound
from wegeft.method import WeGeFTConfig, resolve_targets
from wegeft.method.sharing import target_names
from wegeft.method.targets import type_names


def test_all_linear_leaves_out_the_output_embeddings() -> None:
    names = resolve_targets(llama(), "all-linear")
    assert len(names) == 2 * len(LINEARS)
    assert names == sorted(names)
    assert "lm_head" not in names


def test_all_linear_leaves_out_a_classification_head() -> None:
    names = resolve_targets(bert(), "all-linear")
    assert "classifier" not in names
    assert "bert.pooler.dense" in names


def test_all_linear_leaves_out_a_head_of_several_layers() -> None:
    """RoBERTa's is a dense layer and a projection."""
    config = RobertaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    names = resolve_targets(RobertaForSequenceClassification(config), "all-linear")
    assert [name.removeprefix("roberta.encoder.layer.0.") for name in names] == [
        "attention.output.dense",
        "attention.self.key",
        "attention.self.query",
        "attention.self.value",
        "intermediate.dense",
        "output.dense",
    ]


def test_names_of_vision_models_are_targets_as_the_papers_write_them() -> None:
    """``attn.proj`` of timm, and what transformers calls it."""
    block = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})})
    timm = nn.ModuleDict({"blocks": nn.ModuleList([block]), "head": nn.Linear(4, 2)})
    assert resolve_targets(timm, ["attn.proj"]) == ["blocks.0.attn.proj"]
    vit = ViTForImageClassification(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    )
    assert resolve_targets(vit, ["o_proj"]) == ["vit.layers.0.attention.o_proj"]
    assert "classifier" not in resolve_targets(vit, "all-linear")


def test_all_linear_takes_conv1d() -> None:
    assert "transformer.h.1.mlp.c_proj" in resolve_targets(gpt2(), "all-linear")


def test_names_are_suffixes_at_a_dot() -> None:
    assert resolve_targets(llama(), ["q_proj"]) == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    with pytest.raises(TargetsNotFound):
        resolve_targets(llama(), ["_proj"])


def test_string_is_a_whole_expression() -> None:
    assert resolve_targets(llama(), r"model\.layers\.1\..*\.(q|v)_proj") == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]


def test_unmatched_target_is_named_with_the_nearest_and_the_available() -> None:
    with pytest.raises(TargetsNotFound) as caught:
        resolve_targets(llama(), ["q_proj", "gate_porj", "zzz"])
    problems = {problem.value: problem.hint for problem in caught.value.problems}
    assert set(problems) == {"gate_porj", "zzz"}
    assert problems["gate_porj"] == "did you mean 'gate_proj'? available: " + ", ".join(sorted([*LINEARS, "lm_head"]))
    assert problems["zzz"] == "available: " + ", ".join(sorted([*LINEARS, "lm_head"]))


def test_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(InvalidAdapterConfig, match="LlamaRMSNorm cannot be edited"):
        resolve_targets(llama(), ["norm", "q_proj"])


def test_projection_that_torch_reads_without_calling_is_refused() -> None:
    model = nn.TransformerEncoderLayer(16, 2)
    with pytest.raises(InvalidAdapterConfig, match="without calling the layer"):
        resolve_targets(model, ["out_proj"])
    assert resolve_targets(model, "all-linear") == ["linear1", "linear2"]


def test_types_are_the_shortest_ends_that_tell_apart() -> None:
    assert set(type_names(llama()).values()) == {*LINEARS, "lm_head"}
    assert set(type_names(bert()).values()) == {
        "query",
        "key",
        "value",
        "attention.output.dense",
        "intermediate.dense",
        "layer.*.output.dense",
        "pooler.dense",
        "classifier",
    }
    assert set(type_names(gpt2()).values()) == {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj", "lm_head"}


def test_types_do_not_change_when_the_model_is_wrapped() -> None:
    before = type_names(llama())
    assert type_names(adapted(llama()).get_base_model()) == before


def test_layer_indices_exclusions_and_saved_modules_leave_layers_out() -> None:
    model = llama(layers=3)

    def chosen(**options: object) -> list[str]:
        return target_names(model, WeGeFTConfig(**options))

    second = ["model.layers.1.self_attn.q_proj"]
    assert chosen(target_modules=["q_proj"], layers_to_transform=[1]) == second
    assert chosen(target_modules=["q_proj"], layers_to_transform=1, layers_pattern="layers") == second
    assert chosen(target_modules=["q_proj"], exclude_modules=["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj"]) == second
    assert len(chosen(target_modules="all-linear", layers_to_transform=[1])) == len(LINEARS)
    assert len(chosen(target_modules="all-linear", modules_to_save=["q_proj"])) == 3 * (len(LINEARS) - 1)
    with pytest.raises(TargetsNotFound, match="leave no layer"):
        chosen(target_modules=["q_proj"], exclude_modules=["q_proj"])
