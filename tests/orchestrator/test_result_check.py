"""What a worker delivers is held against the job, field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, select
from starlette.testclient import TestClient

from hub import catalog
from hub.validate import AdapterFacts
from infra.database import reading
from orchestrator.result_check import check_result
from tests.orchestrator.samples import make_spec
from tests.orchestrator.serving import Site, adapter_files, result_of
from tests.orchestrator.working import claim, queue, state
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.errors import ResultMismatch

COMMIT = "a" * 40
FACTS = AdapterFacts(method="wegeft", rank=2, base_model="org/model", parameters=32)
RESULT = result_of(adapter_files())


@pytest.mark.parametrize(
    ("spec", "told", "configured"),
    [
        ({}, "org/model@abc", "org/model"),
        ({"base_model_revision": "main"}, f"org/model@{COMMIT}", "org/model"),
        ({"base_model_revision": COMMIT}, f"org/model@{COMMIT}", "org/model"),
        ({"base_model": "/models/tiny"}, "/models/tiny@sha256:0", "/models/tiny"),
        ({"base_model": "/models/tiny/"}, "/models/tiny@sha256:0", "/models/tiny/"),
        ({"base_model": "/models/a@b/tiny.GGUF"}, "tiny.GGUF@sha256:0", "/models/a@b/tiny.GGUF"),
    ],
)
def test_a_right_result_is_let_through(spec: dict[str, Any], told: str, configured: str) -> None:
    """However the base model is named."""
    check_result(make_spec(**spec), RESULT.model_copy(update={"base_model": told}), replace(FACTS, base_model=configured))


@pytest.mark.parametrize(
    ("spec", "told", "facts", "path"),
    [
        ({}, {"base_model": "org/other@abc"}, {}, "base_model"),
        ({}, {"base_model": "org/model"}, {}, "base_model"),
        ({}, {"base_model": "/models/org/model@abc"}, {}, "base_model"),
        ({"base_model_revision": COMMIT}, {"base_model": "org/model@abc"}, {}, "base_model"),
        ({}, {}, {"base_model": "org/other"}, "adapter_config.json: base_model_name_or_path"),
        ({}, {}, {"base_model": None}, "adapter_config.json: base_model_name_or_path"),
        ({}, {}, {"method": "lora"}, "adapter_config.json: peft_type"),
        ({"rank": 3}, {}, {}, "adapter_config.json: r"),
        ({}, {"trainable_parameters": 31}, {}, "trainable_parameters"),
    ],
)
def test_each_difference_is_told(spec: dict[str, Any], told: dict[str, Any], facts: dict[str, Any], path: str) -> None:
    """By its path, with what was expected."""
    with pytest.raises(ResultMismatch) as refused:
        check_result(make_spec(**spec), RESULT.model_copy(update=told), replace(FACTS, **facts))
    assert [problem.path for problem in refused.value.problems] == [path]
    assert refused.value.problems[0].hint


def test_another_adapter_is_not_published(engine: Engine) -> None:
    """Everything that differs is told at once, nothing changes, and the right one can be delivered after it."""
    site = Site(engine)
    with TestClient(site.app()) as http:
        job_id = queue(site)
        worker = claim(site, http)
        answer = worker.deliver(adapter_files(rank=3))
        assert (answer.status_code, answer.json()["code"]) == (422, "result_mismatch")
        assert [problem["path"] for problem in answer.json()["problems"]] == ["adapter_config.json: r"]
        assert state(site, job_id) == "running"
        with reading(engine) as connection:
            assert connection.execute(select(catalog.VERSIONS.c.id)).all() == []
        assert worker.deliver(adapter_files()).status_code == 200


def test_results_of_tests_tell_their_own_numbers() -> None:
    """So that the other tests can fail."""
    assert WEIGHTS_FILE in adapter_files()
    assert result_of(adapter_files(rank=3)).trainable_parameters == 48
