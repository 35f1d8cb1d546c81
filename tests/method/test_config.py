"""What the configuration accepts, refuses, and writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig


def test_defaults_are_the_published_language_settings() -> None:
    config = WeGeFTConfig()
    assert (config.r, config.wegeft_alpha, config.tied_modules, config.transform, config.init_weights) == (
        64,
        128.0,
        "type",
        "input",
        "phi_zero",
    )


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"r": 0}, "r"),
        ({"r": True}, "r"),
        ({"r": 1.5}, "r"),
        ({"wegeft_alpha": 0}, "wegeft_alpha"),
        ({"wegeft_alpha": float("inf")}, "wegeft_alpha"),
        ({"transform": "both"}, "transform"),
        ({"init_weights": "gaussian"}, "init_weights"),
        ({"tied_modules": "all"}, "tied_modules"),
        ({"tied_modules": [[]]}, "tied_modules"),
        ({"tied_modules": [["q_proj", 3]]}, "tied_modules[0]"),
        ({"tied_modules": None}, "tied_modules"),
        ({"weight_dropout": 1.0}, "weight_dropout"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern[q_proj]"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern[q_proj]"),
        ({"rank_pattern": 3}, "rank_pattern"),
        ({"target_modules": "q_.*", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
    ],
)
def test_bad_value_is_named(options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidAdapterConfig) as caught:
        WeGeFTConfig(**options)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InvalidAdapterConfig) as caught:
        WeGeFTConfig(r=0, wegeft_alpha=-1, transform="x", weight_dropout=2)
    assert {problem.path for problem in caught.value.problems} == {"r", "wegeft_alpha", "transform", "weight_dropout"}


def test_file_is_the_same_bytes_whatever_the_order_of_targets(tmp_path: Path) -> None:
    for folder, targets in (("a", ["v_proj", "q_proj", "k_proj"]), ("b", ["k_proj", "v_proj", "q_proj"])):
        WeGeFTConfig(target_modules=targets, peft_version="x").save_pretrained(str(tmp_path / folder))
    first = (tmp_path / "a" / "adapter_config.json").read_bytes()
    assert first == (tmp_path / "b" / "adapter_config.json").read_bytes()
    assert json.loads(first)["target_modules"] == ["k_proj", "q_proj", "v_proj"]


def test_round_trip(tmp_path: Path) -> None:
    config = WeGeFTConfig(
        r=8, tied_modules=[["q_proj", "k_proj"]], rank_pattern={"v_proj": 2}, target_modules=["q_proj", "k_proj", "v_proj"]
    )
    config.save_pretrained(str(tmp_path))
    assert WeGeFTConfig.from_pretrained(str(tmp_path)).to_dict() == config.to_dict()
