"""The adapter that a federation begins with: another method's is refused, and nobody names what somebody else has uploaded."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx2
import pytest

from hub.objects import MemoryStore
from orchestrator.federation_start import start_problems
from tests.hub.test_baseline_gate import LORA
from tests.orchestrator.federating import RANK, start_files
from tests.orchestrator.federation_world import World, problems
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.job import JobSpec, parse_spec


def spec_of(config: bytes, weights: bytes, **fields: Any) -> JobSpec:
    start = {"config": digest_of(config), "weights": digest_of(weights)}
    return parse_spec({"name": "sums", "base_model": "org/model", "rank": RANK, "federation": {"start": start}, **fields})


def told(config: bytes, weights: bytes) -> dict[str, tuple[str, str | None]]:
    """What is wrong with these files, which the caller has uploaded."""
    store, had = MemoryStore(), [digest_of(config), digest_of(weights)]
    for content in (config, weights):
        store.put(digest_of(content), io.BytesIO(content))
    return {problem.path: (problem.message, problem.value) for problem in start_problems(spec_of(config, weights), store, had)}


def test_a_right_start_has_no_problems() -> None:
    assert told(*start_files()) == {}


def test_the_adapter_of_another_method_is_no_start() -> None:
    _, weights = start_files()
    lora = json.dumps({**LORA, "r": RANK}).encode()
    assert told(lora, weights) == {"federation.start.config: peft_type": ("the adapter of a federation is a WeGeFT one", "lora")}


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (b"{", "federation.start.config"),
        (b'{"peft_type": "NONE"}', "federation.start.config: peft_type"),
        (b"[]", "federation.start.config"),
    ],
)
def test_what_is_no_configuration_is_told(config: bytes, path: str) -> None:
    assert set(told(config, start_files()[1])) == {path}


def put(person: httpx2.Client, content: bytes) -> None:
    assert person.put(f"/blobs/{digest_of(content)}", content=content).status_code == 201


def test_a_strangers_token_cannot_name_what_another_has_uploaded(world: World) -> None:
    owner, stranger = world.person("write"), world.person("write")
    config, weights = start_files(seed=5)
    for content in (config, weights):
        put(owner, content)
    body = {"spec": spec_of(config, weights).model_dump(mode="json", exclude_unset=True)}
    refused = stranger.post("/jobs", json=body)
    assert (refused.status_code, problems(refused)) == (
        422,
        {f"federation.start.{name}": "no such file was uploaded" for name in ("config", "weights")},
    )
    put(stranger, config)
    assert set(problems(stranger.post("/jobs", json=body))) == {"federation.start.weights"}
    assert owner.post("/jobs", json=body).status_code == 201
