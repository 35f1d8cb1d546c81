"""Merging equals the forward pass; unmerging gives the weights back, or refuses."""

import copy

import pytest
import torch
from torch import nn

from tests.method.models import IDS, adapted, dense_reference, error, gpt2, llama, logits, randomise
from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig

FORMS = [
    {"transform": "input"},
    {"transform": "output"},
    {"transform": "input", "tied_modules": "layer"},
]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): tensor.clone() for name, tensor in model.state_dict().items() if "wegeft" not in name}


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_merged_equals_forward_and_dense(options: dict[str, str], bias: bool) -> None:
    model = adapted(llama(bias=bias), **options)
    expected = logits(dense_reference(llama(bias=bias), [model]))
    assert error(logits(model), expected) < 1e-5
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    assert error(logits(merged), expected) < 1e-5


@pytest.mark.parametrize("transform", ["input", "output"])
def test_conv1d_merges(transform: str) -> None:
    model = adapted(gpt2(), transform=transform)
    expected = logits(dense_reference(gpt2(), [model]))
    assert error(logits(model), expected) < 1e-5
    assert error(logits(model.merge_and_unload()), expected) < 1e-5


@pytest.mark.parametrize("options", FORMS)
def test_unmerging_needs_no_copy(options: dict[str, str]) -> None:
    model = adapted(llama(bias=True), std=0.1, **options)
    before, output = weights(model), logits(model)
    model.merge_adapter()
    assert error(logits(model), output) < 1e-5
    assert model.base_model.model.model.layers[0].self_attn.q_proj.unmerged_copy is None
    model.unmerge_adapter()
    after = weights(model)
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < 2e-6
    assert error(logits(model), output) < 1e-5


def test_unmerging_with_a_copy_is_exact() -> None:
    model = adapted(llama(bias=True), std=2.0, transform="output")
    before = weights(model)
    model.base_model.merge_adapter(keep_copy=True)
    model.unmerge_adapter()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_singular_edit_is_not_unmerged() -> None:
    """``I + s·φψ`` erases a direction: W cannot be told from W', and must not be guessed."""
    model = adapted(llama(), target_modules=["q_proj"], r=1, wegeft_alpha=1)
    generator = model.base_model.generators_of("default")["q_proj"]
    with torch.no_grad():
        generator.psi.div_(generator.psi.norm())
        generator.phi.copy_(-generator.psi.t() * (1 - 1e-6))
    model.merge_adapter()
    merged = weights(model)
    with pytest.raises(InvalidAdapterConfig, match="cannot be undone"):
        model.unmerge_adapter()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in weights(model).items())


def two_adapters(**second: str) -> nn.Module:
    model = adapted(llama(), std=0.1)
    model.add_adapter("second", WeGeFTConfig(r=3, wegeft_alpha=3, target_modules=["q_proj", "up_proj"], **second))
    randomise(model, seed=2, name="second", std=0.1)
    return model


@pytest.mark.parametrize("at_once", [True, False])
def test_several_adapters_merge_as_their_sum(at_once: bool) -> None:
    """Merging one after the other is not ``W (I+M₁)(I+M₂)``: the order must not matter."""
    model = two_adapters()
    before = weights(model)
    expected = logits(dense_reference(llama(), [(model, "default"), (model, "second")]))
    if at_once:
        model.merge_adapter(["default", "second"])
    else:
        model.merge_adapter(["second"])
        with pytest.warns(UserWarning, match="Already following adapters"):
            model.merge_adapter(["default"])
    assert error(logits(model), expected) < 1e-5
    model.unmerge_adapter()
    assert max(float((tensor - before[name]).abs().max()) for name, tensor in weights(model).items()) < 2e-6


def test_input_and_output_forms_together() -> None:
    model = two_adapters(transform="output")
    model.base_model.set_adapter(["default", "second"])
    expected = logits(dense_reference(llama(), [(model, "default"), (model, "second")]))
    assert error(logits(model), expected) < 1e-5
    model.base_model.merge_adapter(keep_copy=True)
    assert error(logits(model), expected) < 1e-5
    model.unmerge_adapter()
    model.merge_adapter()
    with pytest.raises(InvalidAdapterConfig, match="without a copy"):
        model.unmerge_adapter()


def test_switching_and_disabling_while_merged_unmerge() -> None:
    model = two_adapters()
    base = logits(llama())
    model.merge_adapter(["default"])
    with model.disable_adapter():
        assert error(logits(model), base) < 1e-5
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("second")
    assert error(logits(model), logits(dense_reference(llama(), [(model, "second")]))) < 1e-5


def test_safe_merge_refuses_numbers_that_are_not_finite() -> None:
    model = adapted(llama(), target_modules=["q_proj"])
    before = weights(model)
    with torch.no_grad():
        model.base_model.generators_of("default")["q_proj"].phi[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning")
def test_tied_head_is_edited_but_not_merged() -> None:
    """Writing into a head that is also the embedding would change both; the forward pass has no such trouble."""
    model = adapted(llama(tied=True), target_modules=["lm_head"])
    untied = copy.deepcopy(llama(tied=True))
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    assert error(logits(model), logits(dense_reference(untied, [model]))) < 1e-5
    with pytest.raises(InvalidAdapterConfig, match=r"would change model\.embed_tokens too"):
        model.merge_adapter()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_merge_rounds_once(dtype: torch.dtype) -> None:
    """The merged weight is the exact one, rounded: no worse than storing it."""
    model = adapted(llama(dtype=dtype), std=0.1)
    exact = dense_reference(llama(dtype=dtype), [model]).state_dict()
    merged = model.merge_and_unload().state_dict()
    for name, tensor in merged.items():
        assert (tensor.double() - exact[name].to(dtype).double()).abs().max() <= torch.finfo(dtype).eps * exact[name].abs().max(), name


def test_weight_dropout_is_never_merged() -> None:
    model = adapted(llama(), weight_dropout=0.5)
    model.train()
    expected = logits(dense_reference(llama(), [model]))
    merged = model.merge_and_unload().eval()
    assert error(logits(merged, IDS), expected) < 1e-5
