"""The gate before publishing, for adapters of PEFT's own methods: a sound LoRA passes, and what is wrong in any way is told."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from hub.hf_views import tags_of
from hub.published_baselines import BASELINES
from hub.tensor_layout import is_saved
from tests.hub.test_validate import check, files, refuse
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterView
from wegeft.contracts.errors import InvalidTensors

LORA: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "org/base",
    "bias": "none", "init_lora_weights": True, "megatron_core": "megatron.core", "qalora_group_size": 16, "layer_replication": None,
    "loftq_config": {}, "use_rslora": False, "use_dora": False, "inference_mode": True, "exclude_modules": None, "rank_pattern": {},
}  # fmt: skip
AT = "base_model.model.model.layers.0.self_attn"


def lora(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("q_proj", "v_proj"):
        found[f"{AT}.{name}.lora_A.weight"] = np.full((4, 16), 0.5, np.float32)
        found[f"{AT}.{name}.lora_B.weight"] = np.full((8, 4), 0.5, np.float32)
    return {name: tensor for name, tensor in (found | changes).items() if tensor is not None}


def adapter(config: dict[str, Any], tensors: dict[str, Any]) -> dict[str, bytes]:
    return files(**{CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: save(tensors)})


def test_a_sound_lora_passes_and_says_what_it_is() -> None:
    facts = check(adapter(LORA, lora()))
    assert (facts.method, facts.rank, facts.base_model, facts.parameters) == ("lora", 4, "org/base", 2 * (4 * 16 + 8 * 4))
    assert check(adapter(LORA | {"use_rslora": True}, lora())).method == "rslora"
    assert check(adapter(LORA | {"init_lora_weights": "pissa"}, lora())).method == "pissa"
    magnitudes = {f"{AT}.{name}.lora_magnitude_vector": np.ones(8, np.float32) for name in ("q_proj", "v_proj")}
    assert check(adapter(LORA | {"use_dora": True}, lora(**magnitudes))).method == "dora"


def test_modules_that_are_stored_in_full_pass_where_the_configuration_names_them() -> None:
    head = {"base_model.model.lm_head.weight": np.ones((3, 2), np.float32)}
    check(adapter(LORA | {"modules_to_save": ["lm_head"]}, lora(**head)))
    assert "lm_head.weight: a tensor that belongs to no target module" in refuse(adapter(LORA, lora(**head)), InvalidTensors)


def test_a_rank_may_differ_where_the_configuration_says_so() -> None:
    other = {f"{AT}.q_proj.lora_A.weight": np.ones((2, 16), np.float32), f"{AT}.q_proj.lora_B.weight": np.ones((8, 2), np.float32)}
    check(adapter(LORA | {"rank_pattern": {"q_proj": 2}}, lora(**other)))
    assert "rank is 4" in refuse(adapter(LORA, lora(**other)), InvalidTensors)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"megatron_config": {"x": 1}}, "megatron_config"),
        ({"megatron_core": "os.path"}, "megatron_core"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"auto_mapping": {"base_model_class": "X"}}, "auto_mapping"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules"),
        ({"rank_pattern": {".*": 4}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"task_type": "CAUSAL-LM"}, "task_type"),
        ({"a\nb": None}, "is not the name of a field"),
        ({"": None}, "is not the name of a field"),
        ({"init_lora_weights": "eva"}, "init_lora_weights"),
        ({"r": 0}, "r:"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"something_new": 1}, "something_new"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"peft_type": "LOHA2"}, "one of: WEGEFT, LORA"),
    ],
)
def test_a_configuration_that_asks_for_more_is_refused(change: dict[str, Any], part: str) -> None:
    assert part in refuse(adapter(LORA | change, lora()))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({f"{AT}.q_proj.lora_B.weight": None}, "some of its tensors are missing"),
        ({f"{AT}.q_proj.lora_A.weight": np.ones((4, 16, 1), np.float32)}, "shape does not fit"),
        ({f"{AT}.q_proj.lora_A.weight": np.ones((5, 16), np.float32)}, "rank×in"),
        ({f"{AT}.k_proj.lora_A.weight": np.ones((4, 16), np.float32)}, "belongs to no target module"),
        ({f"{AT}.q_proj.hada_w1_a": np.ones((4, 16), np.float32)}, "belongs to no target module"),
        ({f"{AT}.q_proj.lora_magnitude_vector": np.ones(8, np.float32)}, "belongs to no target module"),
        ({"q_proj.lora_A.weight": np.ones((4, 16), np.float32)}, "belongs to no target module"),
        ({f"{AT}.v_proj.lora_A.weight": None, f"{AT}.v_proj.lora_B.weight": None}, "no tensor belongs to this target module"),
        ({f"{AT}.q_proj.lora_A.weight": np.full((4, 16), np.nan, np.float32)}, "q_proj.lora_A.weight"),
        ({f"{AT}.q_proj.lora_A.weight": np.ones((4, 16), np.int32)}, "I32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Any], part: str) -> None:
    assert part in refuse(adapter(LORA, lora(**change)), InvalidTensors)


def test_shared_tensors_must_be_there_and_fit() -> None:
    config = {
        "peft_type": "VERA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": None, "projection_prng_key": 0,
        "save_projection": True, "d_initial": 0.1, "init_weights": True,
    }  # fmt: skip
    own = {f"{AT}.q_proj.vera_lambda_b": np.ones(8, np.float32), f"{AT}.q_proj.vera_lambda_d": np.ones(4, np.float32)}
    shared = {"base_model.vera_A": np.ones((4, 16), np.float32), "base_model.vera_B": np.ones((8, 4), np.float32)}
    assert check(adapter(config, own | shared)).method == "vera"
    assert "vera_A: the tensor is missing" in refuse(
        adapter(config, own | {"base_model.vera_B": shared["base_model.vera_B"]}), InvalidTensors
    )
    wrong = {"base_model.vera_A": np.ones((5, 16), np.float32)}
    assert "rank is 4" in refuse(adapter(config, own | shared | wrong), InvalidTensors)
    assert "save_projection" in refuse(adapter(config | {"save_projection": False}, own | shared))


def test_one_factor_of_a_kronecker_product_may_be_whole() -> None:
    config = {
        "peft_type": "LOKR",
        "r": 2,
        "alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": None,
        "decompose_factor": -1,
    }
    whole, first, second = (
        {f"{AT}.q_proj.{name}": np.ones(shape, np.float32)}
        for name, shape in (("lokr_w1", (4, 4)), ("lokr_w2_a", (4, 2)), ("lokr_w2_b", (2, 4)))
    )
    assert check(adapter(config, whole | first | second)).rank == 2
    assert "some of its tensors are missing" in refuse(adapter(config, whole | first), InvalidTensors)


def test_every_problem_of_configuration_and_card_is_told_at_once() -> None:
    shown = refuse(adapter(LORA | {"bias": "all", "r": 0}, lora()) | {"model.pt": b"x"})
    assert all(part in shown for part in ("bias", "r:", "model.pt"))


def test_a_method_without_a_rank_has_no_tag_for_it() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    view = AdapterView(
        adapter="a/b", latest_version=1, aliases={}, base_model="org/base@abc", method="ia3", rank=0, created_at=moment, updated_at=moment,
        size=1,
    )  # fmt: skip
    assert tags_of(view) == ["peft", "ia3", "base_model:org/base", "base_model:adapter:org/base"]


def test_each_kind_has_a_name_of_its_own() -> None:
    assert len(BASELINES) == 18
    assert all(kind.model_fields["peft_type"].annotation is not None for kind in BASELINES.values())


def test_many_targets_and_tensors_are_compared_in_bounded_time() -> None:
    """A megabyte of each kept a core busy for minutes when every name was compared with every other."""
    tensors = {
        f"base_model.model.{'a.' * 5}{number}.lora_{end}.weight": np.ones((1, 1), np.float32) for number in range(4000) for end in "AB"
    }
    targets = [f"zz{number}" for number in range(19_000)]
    patterns = {f"q{number}": number % 60_000 + 1 for number in range(19_000)}
    config = LORA | {"target_modules": targets, "rank_pattern": patterns}
    began = time.process_time()
    told = refuse(adapter(config, tensors), InvalidTensors)
    assert time.process_time() - began < 30
    assert "belongs to no target module" in told
    assert len(told) < 200_000


@pytest.mark.parametrize(
    ("name", "is_it"),
    [
        ("lm_head.weight", True), ("a.lm_head.weight", True), ("a.other_lm_head.weight", True), ("lm_head.b.weight", True),
        ("a.b.weight", True), ("b.weight", False), ("lm_headed.weight", False), ("lm_head", False), ("x.ab.weight", False),
    ],
)  # fmt: skip
def test_which_tensors_belong_to_a_module_that_is_stored_in_full(name: str, is_it: bool) -> None:
    assert is_saved(f"base_model.model.{name}", ["lm_head", "a.b"]) is is_it
    assert not is_saved(name, ["lm_head", "a.b"])
