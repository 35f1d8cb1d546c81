"""The API's own description, held against the real service by schemathesis: each answer is one that the description tells of."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from infra.database import make_engine, upgrade
from tests.orchestrator.hidden_world import ADAPTER, HiddenWorld, make_world
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening
from wegeft.contracts.adapter import CONFIG_FILE, digest_of

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
METHODS = ("get", "head", "put", "post", "delete", "patch")
SIGNED_BY_SITES = "/api/v1/federation/"
OF_WORKERS = "/api/v1/attempts/"
NEEDS_MORE = {
    "POST /api/v1/jobs/{job_id}/sites/{name}/approve",
    "POST /api/v1/jobs/{job_id}/sites/{name}/revoke",
    "POST /api/v1/jobs/{job_id}/sites/{name}/rotate",
    "POST /api/v1/jobs/{job_id}/invitations",
    "DELETE /api/v1/jobs/{job_id}/invitations/{name}",
    "POST /api/v1/jobs/{job_id}/rollbacks",
    "GET /api/v1/jobs/{job_id}/federation",
    "GET /api/v1/jobs/{job_id}/rounds",
    "GET /api/v1/jobs/{job_id}/rounds/{number}",
    "GET /api/v1/jobs/{job_id}/rounds/{number}/evidence",
    "GET /api/v1/jobs/{job_id}/rounds/{number}/blobs/{digest}",
    "POST /api/v1/jobs",
    "PUT /api/v1/blobs/{digest}",
    "DELETE /api/v1/tokens/{token_id}",
    "PUT /api/v1/organisations/{organisation}/members/{account}",
    "DELETE /api/v1/organisations/{organisation}/members/{account}",
    "PUT /api/v1/adapters/{namespace}/{name}/card",
    "POST /api/v1/adapters/{namespace}/{name}/versions/{selector}/evaluations",
    "GET /api/v1/adapters/{namespace}/{name}/versions/{selector}/diff",
    "PUT /api/v1/adapters/{namespace}/{name}/aliases/{alias}/protection",
    "GET /api/v1/adapters/{namespace}/{name}/uploads/{upload_id}",
    "DELETE /api/v1/adapters/{namespace}/{name}/uploads/{upload_id}",
    "PUT /api/v1/adapters/{namespace}/{name}/uploads/{upload_id}/parts/{offset}/{digest}",
    "POST /api/v1/adapters/{namespace}/{name}/uploads/{upload_id}/finish",
    "PUT /api/v1/adapters/{namespace}/{name}/versions/{selector}/formats/{format}/{dtype}",
    "GET /api/v1/adapters/{namespace}/{name}/versions/{selector}/formats/{format}/{dtype}/signature",
    "GET /api/v1/adapters/{namespace}/{name}/versions/{selector}/formats/{format}/{dtype}/files/{path}",
    "HEAD /api/v1/adapters/{namespace}/{name}/versions/{selector}/formats/{format}/{dtype}/files/{path}",
}
"""What succeeds only after more than a request made up from its description: other tests see those succeed."""
ROUNDS_THAT_TELL = 8
"""Of examples for every operation, after which one that never succeeded is one that cannot; on a slow machine there may be fewer."""


@dataclass
class Described:
    """A service over a real socket, and its description."""

    world: HiddenWorld
    url: str
    schema: Any
    session: requests.Session
    statuses: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """What each operation has answered."""

    def known(self) -> dict[str, Any]:
        """Path parameters that lead somewhere."""
        namespace, _, name = ADAPTER.partition("/")
        place = {"namespace": namespace, "selector": "1", "path": CONFIG_FILE, "alias": "best", "organisation": namespace}
        return place | {"name": name, "job_id": self.world.job_id, "digest": self.world.digest}

    def check(self, operation: Any, case: Any) -> None:
        """Send one request, as it was made up and to an address that leads somewhere, and check the answers."""
        known = {name: value for name, value in self.known().items() if name in (case.path_parameters or {})}
        if "/metrics/" in operation.path:
            known["name"] = "loss"
        for changes in ({}, known) if known else ({},):
            case.path_parameters = {**(case.path_parameters or {}), **changes}
            answer = case.call(base_url=self.url, session=self.session)
            self.statuses[f"{operation.method.upper()} {operation.path}"].add(answer.status_code)
            case.validate_response(answer, checks=CHECKS)


@contextmanager
def describing(engine: Engine) -> Iterator[Described]:
    world = make_world(engine)
    with listening(world.app) as url, requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {world.tokens['operator']}"
        schema = schemathesis.openapi.from_dict(session.get(f"{url}/api/v1/openapi.json").json())
        yield Described(world, url, schema, session)
    world.close()


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Described]:
    with describing(new_sqlite(tmp_path_factory.mktemp("described") / "a.db")) as described:
        yield described


def run_examples(described: Described, number: int, most: int, mode: GenerationMode) -> list[str]:
    """Send so many made-up requests to each operation; return what the description does not tell of."""
    bounds = settings(max_examples=most, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    problems = []
    for result in described.schema.get_all_operations():
        operation = result.ok()
        check = _checking(described, operation)
        try:
            seed(number)(bounds(given(case=operation.as_strategy(generation_mode=mode))(check)))()
        except FailureGroup as found:
            problems.append(f"{operation.label}: {found.exceptions}")
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, f"{operation.label}: nothing can be sent to it"
    return problems


def _checking(described: Described, operation: Any) -> Callable[[Any], None]:
    def check(case: Any) -> None:
        described.check(operation, case)

    return check


def test_every_answer_is_described(described: Described) -> None:
    """To what the description allows, and to what it does not."""
    assert run_examples(described, 1, 1, GenerationMode.POSITIVE) == []
    assert run_examples(described, 1, 1, GenerationMode.NEGATIVE) == []
    assert all(statuses for statuses in described.statuses.values())


def test_every_operation_says_what_it_is_and_how_it_fails(described: Described) -> None:
    """An id of its own, a summary, an answer, and errors as RFC 9457 has them."""
    document = described.session.get(f"{described.url}/api/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    operations = [(method, operation) for path in document["paths"].values() for method, operation in path.items() if method in METHODS]
    ids = [operation["operationId"] for _, operation in operations]
    assert len(set(ids)) == len(ids) > 70
    for method, operation in operations:
        assert operation["summary"], operation
        assert operation["tags"], operation
        assert any(status.startswith("2") for status in operation["responses"])
        for status, answer in operation["responses"].items():
            assert answer["description"], operation
            is_error = status == "default" or status >= "400"
            if is_error and method != "head":
                assert set(answer["content"]) == {"application/problem+json"}, operation
        assert {"default", "503"} <= set(operation["responses"])


def test_the_description_says_how_a_digest_is_written(described: Described) -> None:
    """Else whoever makes requests from it makes none that is accepted."""
    document = described.session.get(f"{described.url}/api/v1/openapi.json").json()
    told = re.compile(document["components"]["schemas"]["AdapterUploadRequest"]["properties"]["digest"]["pattern"])
    assert told.search(digest_of(b""))
    assert not told.search(digest_of(b"").upper())


def test_the_description_says_how_an_organisation_is_called(described: Described) -> None:
    document = described.session.get(f"{described.url}/api/v1/openapi.json").json()
    told = re.compile(document["components"]["schemas"]["OrganisationRequest"]["properties"]["name"]["pattern"])
    assert told.search("St.Anna-2")
    assert not told.search("-anna")


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_answers_are_described(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """On both databases: each stumbles over values of its own."""
    first = number = int(os.environ.get("SOAK_SEED", "1")) * 1000
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")) / 4
    is_sqlite = kind == "sqlite"
    engine = make_engine(f"sqlite:///{tmp_path / 'a.db'}" if is_sqlite else request.getfixturevalue("postgres_server").new_database())
    upgrade(engine)
    with describing(engine) as described:
        while time.monotonic() < end or number < first + ROUNDS_THAT_TELL:
            assert run_examples(described, number, 15, GenerationMode.POSITIVE) == []
            assert run_examples(described, number, 10, GenerationMode.NEGATIVE) == []
            number += 1
        succeeded = {name for name, statuses in described.statuses.items() if any(status < 300 for status in statuses)}
        others = {name for name in described.statuses if SIGNED_BY_SITES in name or OF_WORKERS in name}
        assert set(described.statuses) - succeeded - others <= NEEDS_MORE
