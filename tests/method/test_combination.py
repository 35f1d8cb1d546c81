"""Sums of adapters are sums of products, computed by the model as by dense float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.method.models import adapted, dense_reference, error, llama, logits, randomise
from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig


def two_adapters(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> PeftModel:
    model = adapted(llama(), std=0.1, **(first or {}))
    options = {"r": 3, "wegeft_alpha": 2, "target_modules": "all-linear", **(second or {})}
    model.add_adapter("other", WeGeFTConfig(**options))
    randomise(model, seed=4, name="other", std=0.1)
    return model


def weighted_reference(model: PeftModel, weights: dict[str, float]) -> torch.Tensor:
    """Scale each adapter's s by its weight and let the dense reference add them."""
    for name, weight in weights.items():
        for generator in model.base_model.generators_of(name).values():
            generator.scaling *= weight
    expected = logits(dense_reference(llama(), [(model, name) for name in weights]))
    for name, weight in weights.items():
        for generator in model.base_model.generators_of(name).values():
            generator.scaling /= weight
    return expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"tied_modules": "width"}, {"tied_modules": "width"}),
        ({"transform": "output"}, {"transform": "output"}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["q_proj", "up_proj"]}),
        ({"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"v_proj": 7}}),
        ({"tied_modules": [["q_proj", "k_proj"]]}, {"tied_modules": [["q_proj", "k_proj"]]}),
    ],
)
def test_concatenation_is_exact(first: dict[str, Any], second: dict[str, Any], tmp_path: Path) -> None:
    model = two_adapters(first, second)
    before = logits(model)
    expected = weighted_reference(model, {"default": 0.75, "other": -1.5})
    model.base_model.add_weighted_adapter(["default", "other"], [0.75, -1.5], "sum")
    assert torch.equal(logits(model), before)
    model.set_adapter("sum")
    assert error(logits(model), expected) < 1e-5
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    assert error(logits(PeftModel.from_pretrained(llama(), tmp_path / "sum")), expected) < 1e-5


def test_truncation_to_the_full_rank_is_exact_and_to_less_is_near() -> None:
    model = two_adapters()
    expected = weighted_reference(model, {"default": 0.5, "other": 0.5})
    distances = []
    for rank in (1, 3, 5, 7):
        model.base_model.add_weighted_adapter(["default", "other"], [0.5, 0.5], f"cut{rank}", "svd", svd_rank=rank)
        model.set_adapter(f"cut{rank}")
        assert model.peft_config[f"cut{rank}"].r == rank
        distances.append(error(logits(model), expected))
    assert distances[-1] < 1e-5 < distances[-2] < distances[0]


def test_sum_of_one_is_itself() -> None:
    model = adapted(llama())
    expected = logits(model)
    model.base_model.add_weighted_adapter(["default"], [1.0], "same", "svd")
    model.set_adapter("same")
    assert error(logits(model), expected) < 1e-5


@pytest.mark.parametrize(
    ("second", "arguments", "message"),
    [
        ({"transform": "output"}, {}, "input and output forms"),
        ({"tied_modules": "layer"}, {}, "share generators differently"),
        ({"modules_to_save": ["lm_head"]}, {}, "train whole modules"),
        ({"layers_to_transform": [0]}, {}, "among different layers"),
        ({}, {"adapters": ["default", "nobody"]}, "no such adapter: nobody"),
        ({}, {"weights": [1.0]}, "a weight for each"),
        ({}, {"adapter_name": "other"}, "needs a new name"),
        ({}, {"combination_type": "linear"}, "must be cat or svd"),
        ({}, {"svd_rank": 2}, "has no effect"),
    ],
)
def test_what_cannot_be_summed_is_refused_and_changes_nothing(second: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    model = two_adapters({}, second)
    names = [name for name, _ in model.named_parameters()]
    given = {"adapters": ["default", "other"], "weights": [1.0, 1.0], "adapter_name": "sum", **arguments}
    with pytest.raises(InvalidAdapterConfig, match=message):
        model.base_model.add_weighted_adapter(**given)
    assert sorted(model.peft_config) == ["default", "other"]
    assert [name for name, _ in model.named_parameters()] == names
