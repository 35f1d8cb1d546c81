"""The application that every service is: one error shape, limits, ids, headers, metrics."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import structlog
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry, Gauge
from pydantic import BaseModel, ConfigDict
from starlette.testclient import TestClient

from infra.bodies import BodyReader, streams_body
from infra.envelope import template_of
from infra.http import API_PREFIX, create_app
from infra.telemetry import configure_logging
from wegeft.contracts.errors import (
    ERROR_KINDS,
    DigestMismatch,
    ErrorBody,
    InvalidData,
    StorageUnavailable,
    WegeftError,
    error_from_body,
)

LIMIT = 20 << 20
HOLDER = {"Authorization": f"Bearer wgt_{'0' * 12}_{'a' * 64}"}
"""Whoever sends a body has a token; these endpoints ask for no more than its form."""


class Note(BaseModel):
    """A body with a few rules."""

    model_config = ConfigDict(extra="forbid")

    count: int
    token: str = ""


def make_router() -> APIRouter:
    """Endpoints that go wrong in every way."""
    router = APIRouter(prefix=API_PREFIX)

    @router.get("/raise/{code}")
    def raise_it(code: str) -> None:
        raise ERROR_KINDS[code]("what happened", path="where", value="got", hint="do this")

    @router.get("/crash")
    def crash() -> None:
        raise RuntimeError("a secret of the code: wgt_" + "0" * 12 + "_" + "a" * 64)

    @router.post("/notes")
    def post_note(note: Note, page: Annotated[int, Query(ge=1)] = 1) -> dict[str, int]:
        return {"count": note.count, "page": page}

    @router.get("/numbers/{number}")
    def get_number(number: Annotated[int, Path(le=10)]) -> int:
        return number

    @router.put("/stream")
    @streams_body
    def put_stream(request: Request) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        with BodyReader(request, LIMIT) as body:
            while chunk := body.read(1 << 16):
                digest.update(chunk)
                size += len(chunk)
        return {"size": size, "digest": digest.hexdigest(), "announced": body.length}

    @router.get("/cut")
    def cut() -> StreamingResponse:
        def chunks() -> Iterator[bytes]:
            yield b"x" * 100_000
            raise DigestMismatch("rotten")

        return StreamingResponse(chunks())

    @router.get("/page")
    def page() -> Response:
        return Response("<p>", media_type="text/html", headers={"Content-Security-Policy": "default-src 'self'"})

    return router


def make_app(**options: Any) -> FastAPI:
    """The application around those endpoints."""
    return create_app([make_router()], title="test", version="9.9", **options)


@pytest.fixture
def http() -> Iterator[TestClient]:
    """A caller in this process."""
    with TestClient(make_app(), headers=HOLDER) as client:
        yield client


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a service of ours would log; the logging of the tests themselves is put back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", "INFO", stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def body_of(answer: Any, status: int) -> ErrorBody:
    """The error that an answer tells; every error has this one shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = ErrorBody.model_validate_json(answer.content)
    assert answer.json()["type"] == f"urn:wegeft:error:{body.code}"
    assert body.status == status
    assert body.request_id == answer.headers["X-Request-Id"]
    assert body.title
    assert "Traceback" not in answer.text
    return body


@pytest.mark.parametrize("code", sorted(ERROR_KINDS))
def test_every_error_of_ours_arrives_as_itself(http: TestClient, code: str) -> None:
    """With its status, and its problems to the letter."""
    kind = ERROR_KINDS[code]
    body = body_of(http.get(f"/api/v1/raise/{code}"), kind.http_status)
    again = error_from_body(body)
    assert type(again) is kind
    assert (again.message, str(again)) == ("what happened", str(kind("what happened", path="where", value="got", hint="do this")))


def test_a_bug_is_told_without_its_insides(http: TestClient, log: io.StringIO) -> None:
    """The answer has the request's id; the log has the rest, but for the secrets in it."""
    answer = http.get("/api/v1/crash")
    body = body_of(answer, 500)
    assert body.code == "error"
    assert "secret" not in answer.text
    logged = log.getvalue()
    assert "a" * 64 not in logged
    assert "RuntimeError" in logged
    assert str(body.request_id) in logged


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b'{"count": "x", "other": 1}', {"body.count", "body.other"}),
        (b'{"count": 1.5}', {"body.count"}),
        (b"{}", {"body.count"}),
        (b"", {"body"}),
        (b"nonsense", {"body.0"}),
        (b"\xff", {"path"}),
        (b"[" * 100_000, {"path"}),
    ],
)
def test_every_problem_of_a_body_at_once(http: TestClient, content: bytes, paths: set[str]) -> None:
    """Each with its path."""
    answer = http.post("/api/v1/notes", content=content, headers={"Content-Type": "application/json"})
    body = ErrorBody.model_validate_json(answer.content)
    assert body.code == "invalid_request"
    assert 400 <= answer.status_code < 500
    assert {problem.path for problem in body.problems} >= paths


def test_values_of_secrets_are_not_repeated(http: TestClient) -> None:
    """Not even wrong ones."""
    answer = http.post("/api/v1/notes", json={"count": "visible", "token": {"s": "hidden"}})
    assert {problem.path: problem.value for problem in body_of(answer, 422).problems} == {"body.count": "visible", "body.token": None}
    assert "hidden" not in answer.text


def test_wrong_places(http: TestClient) -> None:
    """A path, a method, a parameter: the same shape."""
    assert body_of(http.get("/api/v1/nothing"), 404).code == "not_found"
    assert body_of(http.get("/api/v1/numbers/1/", follow_redirects=False), 404).code == "not_found"
    answer = http.delete("/api/v1/notes")
    assert (body_of(answer, 405).code, answer.headers["Allow"]) == ("invalid_request", "POST")
    assert body_of(http.get("/api/v1/numbers/11"), 422).problems[0].path == "path.number"
    assert body_of(http.post("/api/v1/notes?page=0", json={"count": 1}), 422).problems[0].path == "query.page"
    assert body_of(http.get("/api/v1/numbers/%00"), 422).problems[0].message == "a NUL cannot be part of an address"
    assert body_of(http.get("/api/v1/numbers/1?a=%00"), 422).code == "invalid_request"


def test_request_ids_are_taken_or_made(http: TestClient) -> None:
    """A good one is passed on; any other is replaced."""
    assert http.get("/healthz", headers={"X-Request-Id": "my.id-1_"}).headers["X-Request-Id"] == "my.id-1_"
    for bad in ("", "a b", "x" * 65, "<script>", "é".encode()):
        made = http.get("/healthz", headers={"X-Request-Id": bad}).headers["X-Request-Id"]  # type: ignore[dict-item]
        assert len(made) == 16
    assert http.get("/healthz").headers["X-Request-Id"] != http.get("/healthz").headers["X-Request-Id"]


def logged_traces(log: io.StringIO) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [(line["trace_id"], line["span_id"]) for line in lines if line["event"] == "request"]


def test_the_log_says_which_requests_belong_together(http: TestClient, log: io.StringIO) -> None:
    """A good trace is gone on with, in a step of its own; one that is none, or two at once, are replaced."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    good = ("traceparent", f"00-{trace}-{span}-01")
    for headers in ([good], [good], [("traceparent", "00-x-y-01")], [good, good], []):
        http.get("/api/v1/numbers/1", headers=headers)
    traces = logged_traces(log)
    assert [found for found, _ in traces[:2]] == [trace, trace]
    assert len({found for found, _ in traces}) == 4
    assert len({*(step for _, step in traces), span}) == 6
    assert all(len(found) == 32 and len(step) == 16 for found, step in traces)


def test_answers_carry_safe_headers(http: TestClient) -> None:
    """Unless an endpoint knows better."""
    headers = http.get("/api/v1/numbers/1").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert http.get("/api/v1/page").headers["Content-Security-Policy"] == "default-src 'self'"


def test_health_and_readiness() -> None:
    """The process answers at any rate; it is ready when every part is."""
    broken = False

    def check() -> None:
        if broken:
            raise StorageUnavailable("the folder is gone")

    def bug() -> None:
        if broken:
            raise ZeroDivisionError("inside")

    with TestClient(make_app(checks={"store": check, "other": bug})) as http:
        assert http.get("/healthz").json() == {"status": "ok", "version": "9.9"}
        assert http.get("/readyz").json() == {"status": "ready"}
        broken = True
        body = body_of(http.get("/readyz"), 503)
        assert {problem.path: problem.message for problem in body.problems} == {"store": "the folder is gone", "other": "ZeroDivisionError"}
        assert http.get("/healthz").status_code == 200


def test_metrics_have_few_labels() -> None:
    """Whatever is asked for, series are of routes, known methods and statuses; and what the caller adds is shown, too."""
    registry = CollectorRegistry()
    Gauge("mine", "Mine.", registry=registry).set(7)
    with TestClient(make_app(registry=registry)) as http:
        for number in range(40):
            http.get(f"/api/v1/numbers/{number % 10}")
            http.get(f"/api/v1/unknown/{number}")
            http.request(f"X{number}", "/api/v1/numbers/1")
        text = http.get("/metrics").text
    counts = [line for line in text.splitlines() if line.startswith("wegeft_http_requests_total")]
    assert 'wegeft_http_requests_total{method="GET",route="/api/v1/numbers/{number}",status="200"} 40.0' in counts
    assert 'wegeft_http_requests_total{method="GET",route="unmatched",status="404"} 40.0' in counts
    assert any('method="OTHER"' in line for line in counts)
    assert len(counts) <= 4
    assert "mine 7.0" in text


def test_the_api_describes_itself(http: TestClient) -> None:
    """And nothing else serves pages from elsewhere."""
    described = http.get("/api/v1/openapi.json").json()
    assert described["info"] == {"title": "test", "version": "9.9"}
    assert "application/problem+json" in described["paths"]["/api/v1/notes"]["post"]["responses"]["default"]["content"]
    assert http.get("/docs").status_code == 404


def test_nested_routers_are_told_apart() -> None:
    """By their whole path, whatever the values of its parameters look like."""
    leaf = APIRouter(prefix="/{kind}")
    leaf.add_api_route("/items/{item}", lambda item: item, methods=["GET"])
    leaf.add_api_route("/deep/{rest:path}", lambda rest: rest, methods=["GET"])
    branches = [APIRouter(prefix=prefix) for prefix in ("/a", "/b")]
    for branch in branches:
        branch.include_router(leaf)
    with TestClient(create_app(branches, title="t", version="1")) as http:
        for path in ("/a/i/items/items", "/b/items/items/i", "/a/a/deep/a/b/a", "/a/1/deep/12/1", "/a/x/items/y"):
            assert http.get(path).status_code == 200
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("wegeft_http_requests_total")]
    routes = sorted(line.partition('route="')[2].partition('"')[0] for line in lines)
    assert routes == ["/a/{kind}/deep/{rest}", "/a/{kind}/items/{item}"]


@pytest.mark.parametrize(
    ("path", "params", "template"),
    [
        ("/a/b/c", {}, "/a/b/c"),
        ("/jobs/jobs", {"id": "jobs"}, "/jobs/{id}"),
        ("/x/e/events", {"id": "e"}, "/x/{id}/events"),
        ("/x/1/10/1", {"a": "1", "b": "10", "c": "1"}, "/x/{a}/{b}/{c}"),
        ("/x/a/b/c", {"rest": "a/b/c"}, "/x/{rest}"),
        ("/x/", {"rest": ""}, "/x/{rest}"),
        ("/x/7", {"n": 7}, "/x/{n}"),
    ],
)
def test_templates(path: str, params: dict[str, Any], template: str) -> None:
    """Values give way to names, from the right."""
    assert template_of({"path": path, "path_params": params}) == template


def test_every_reference_of_the_description_leads_somewhere(http: TestClient) -> None:
    """Tools that read it stumble otherwise."""
    document = http.get("/api/v1/openapi.json").json()

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "$ref")
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                yield from references(item)

    found = set(references(document))
    assert "#/components/schemas/Note" in found
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_errors_survive_the_wire() -> None:
    """Problems, lines and all."""
    error = InvalidData("3 problems", path="row 3", value="v", hint="h")
    again = error_from_body(ErrorBody.model_validate(json.loads(error.body("r1").model_dump_json())))
    assert isinstance(again, WegeftError)
    assert again.problems == error.problems
