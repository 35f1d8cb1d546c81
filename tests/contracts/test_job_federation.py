"""What a federated job may not say: each of it named with what would be right, and all of it at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wegeft.contracts.errors import InvalidJob, Problem
from wegeft.contracts.job import parse_spec

ROWS = [{"path": "rows.jsonl"}]
OPTIONS: dict[str, Any] = {
    "exclude_modules": ["lm_head"],
    "layers_to_transform": [0],
    "modules_to_save": ["lm_head"],
    "tied_modules": [["q_proj", "k_proj"]],
    "transform": "input",
    "init_weights": "orthogonal",
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2.0},
}


def problems_of(fields: dict[str, Any]) -> dict[str, Problem]:
    with pytest.raises(InvalidJob) as told:
        parse_spec({"name": "x", "base_model": "org/model", "federation": {}, **fields})
    return {problem.path: problem for problem in told.value.problems}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_makes_other_generators_is_refused(name: str) -> None:
    found = problems_of({name: OPTIONS[name]})
    assert set(found) == {name}, found
    assert found[name].message == "a federated job has one generator for each of target_modules, all of the job's rank"
    assert found[name].hint == "leave it out"


@pytest.mark.parametrize("name", ["datasets", "test_datasets"])
def test_data_stays_at_the_sites(name: str) -> None:
    found = problems_of({name: ROWS})
    assert set(found) == {name}
    assert "wgctl site run --data" in str(found[name].hint)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_another_method_has_no_generators_to_aggregate(method: str) -> None:
    found = problems_of({"method": method})
    assert (set(found), found["method"].hint) == ({"method"}, "method: wegeft")


@pytest.mark.parametrize("task", ["sequence_classification", "image_classification"])
def test_another_task_has_a_head_that_is_not_sent(task: str) -> None:
    found = problems_of({"task": task})
    assert found["task"].hint == "task: causal_lm"


def test_everything_is_told_at_once() -> None:
    wrong = {**OPTIONS, "datasets": ROWS, "test_datasets": ROWS, "task": "sequence_classification"}
    assert set(problems_of(wrong)) >= {*OPTIONS, "datasets", "test_datasets", "task"}


def test_a_job_without_a_federation_needs_data() -> None:
    with pytest.raises(InvalidJob) as told:
        parse_spec({"name": "x", "base_model": "org/model"})
    assert [problem.path for problem in told.value.problems] == ["datasets"]
    spec = parse_spec({"name": "x", "base_model": "org/model", "datasets": ROWS})
    assert json.loads(spec.model_dump_json())["federation"] is None
