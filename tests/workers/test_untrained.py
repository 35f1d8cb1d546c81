"""The adapter that a federation begins with: taken by the hub's and the orchestrator's gates, the same each time, and able to learn."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from hub.objects import MemoryStore
from orchestrator.federation_start import read_start
from tests.tiny_models import make_model_folder
from wegeft.algebra import norm
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import BaseModelNotFound, TargetsNotFound
from wegeft.contracts.federation_spec import StartSpec
from wegeft.contracts.job import JobSpec, parse_spec
from wegeft.contracts.tensors import read_tensors
from workers.untrained import make_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return make_model_folder(tmp_path_factory.mktemp("model"))


def spec_of(folder: Path, rule: str = "generator_exact", **fields: Any) -> JobSpec:
    return parse_spec({"name": "x", "base_model": str(folder), "rank": 4, "federation": {"rule": rule}, **fields})


@pytest.mark.parametrize("rule", ["generator_exact", "freeze_psi", "freeze_phi", "core", "stack"])
def test_a_federation_can_begin_with_it(folder: Path, rule: str) -> None:
    spec, store = spec_of(folder, rule), MemoryStore()
    made = make_untrained(spec)
    for content in (made.config, made.weights):
        store.put(digest_of(content), io.BytesIO(content))
    assert spec.federation is not None
    start = StartSpec(config=digest_of(made.config), weights=digest_of(made.weights))
    begun = read_start(spec.model_copy(update={"federation": spec.federation.model_copy(update={"start": start})}), store)
    assert {group: edit.pair.width for group, edit in begun.state.edits.items()}["down_proj"] == 128
    assert all(norm(edit.trained) == 0 for edit in begun.state.edits.values())
    assert begun.config["target_modules"] == sorted(begun.state.edits)


def test_the_seed_decides_it(folder: Path) -> None:
    first, again, other = (make_untrained(spec_of(folder, target_modules=["q_proj"], seed=seed)) for seed in (1, 1, 2))
    assert (first.weights, first.config) == (again.weights, again.config)
    assert other.weights != first.weights
    assert set(read_tensors(first.weights)) == {f"base_model.wegeft_generators.q_proj.{part}" for part in ("phi", "psi")}
    assert json.loads(first.config)["base_model_name_or_path"] == str(folder)


def test_a_model_or_target_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(BaseModelNotFound):
        make_untrained(spec_of(folder / "gone"))
    with pytest.raises(TargetsNotFound):
        make_untrained(spec_of(folder, target_modules=["nothing"]))
