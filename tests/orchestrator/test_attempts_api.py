"""The HTTP API of workers: fetching, reporting, delivering, and being stale."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, select
from starlette.testclient import TestClient

from hub import catalog, objects
from hub.objects import VERIFIED_FIRST_BYTES
from infra.database import reading
from orchestrator import ledger
from tests.http_clients import patient_client
from tests.orchestrator.samples import batch, new_sqlite
from tests.orchestrator.serving import Site, adapter_files, listening, now, result_of
from tests.orchestrator.working import claim, every_write, queue, snapshot, state, take_over
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, digest_of
from wegeft.contracts.errors import ErrorBody, InvalidData, TrainingCrashed
from wegeft.contracts.training import Checkpoint, Heartbeat, TrainingTask


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """SQLite is enough here; what depends on the database is in ``test_publishing``."""
    engine = new_sqlite(tmp_path / "a.db")
    yield engine
    engine.dispose()


@pytest.fixture
def site(engine: Engine) -> Site:
    """A server with one data set."""
    return Site(engine)


@pytest.fixture
def http(site: Site) -> Iterator[TestClient]:
    """A client without a token."""
    with TestClient(site.app()) as client:
        yield client


@pytest.mark.parametrize("name", ["task", "heartbeat", "events", "put", "get", "checkpoint", "result", "failure"])
@pytest.mark.parametrize("wrong", ["none", "other", "user", "malformed"])
def test_a_wrong_token_is_no_attempt(site: Site, http: TestClient, name: str, wrong: str) -> None:
    """Another attempt's, a person's, or none at all."""
    queue(site)
    queue(site)
    worker, other = claim(site, http), claim(site, http)
    before = snapshot(site)
    worker.token = {"none": "", "other": other.token, "user": site.tokens["admin"], "malformed": "wga_%C3"}[wrong]
    answer = every_write(worker)[name]()
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert snapshot(site) == before


def test_a_cancelled_worker_hears_so_with_its_next_heartbeat(site: Site, http: TestClient) -> None:
    """Its failure report then makes the job cancelled, whatever it says."""
    job_id = queue(site)
    worker = claim(site, http)
    assert worker.post("heartbeat", Heartbeat()).json() == {"should_stop": False}
    assert http.post(f"/api/v1/jobs/{job_id}/cancel", headers=site.bearer()).json()["state"] == "cancelling"
    assert worker.post("heartbeat", Heartbeat()).json() == {"should_stop": True}
    late = worker.deliver(adapter_files())
    assert (late.status_code, late.json()["code"]) == (409, "illegal_transition")
    assert worker.post("failure", TrainingCrashed().body()).status_code == 204
    assert state(site, job_id) == "cancelled"
    with reading(site.engine) as connection:
        assert connection.execute(select(catalog.VERSIONS.c.id)).all() == []


def test_a_failure_is_reported_once(site: Site, http: TestClient) -> None:
    """And again, where the answer was lost."""
    job_id = queue(site)
    worker = claim(site, http)
    for _ in range(3):
        assert worker.post("failure", InvalidData("no rows", path="rows").body()).status_code == 204
    with reading(site.engine) as connection:
        view = ledger.find(connection, job_id, now())
    assert (view.state, view.error) == ("failed", InvalidData("no rows", path="rows").body())


def test_only_what_the_task_names_can_be_fetched(site: Site, http: TestClient) -> None:
    """A worker is no reader of other people's blobs; the checkpoint of an earlier attempt is named, though."""
    queue(site)
    first = claim(site, http)
    secret = site.put(b"somebody else's data")
    assert first.call("GET", f"blobs/{secret}").status_code == 404
    assert first.call("GET", "blobs/sha256:abc").status_code == 404
    assert first.put(b"state").status_code == 201
    entry = {"path": "state", "digest": digest_of(b"state"), "size": 5}
    assert first.call("POST", "checkpoints", json={"step": 3, "files": [entry]}).status_code == 204
    second = take_over(site, http, first)
    task = TrainingTask.model_validate_json(second.call("GET", "task").content)
    assert task.resume_from == Checkpoint.model_validate({"step": 3, "files": [entry]})
    assert second.call("GET", f"blobs/{digest_of(b'state')}").content == b"state"


def test_blobs_are_checked_as_they_come(site: Site, http: TestClient) -> None:
    """Wrong bytes, wrong names, too many bytes: each is refused, and nothing is stored."""
    queue(site)
    worker = claim(site, http)
    digest = digest_of(b"right")
    wrong = worker.call("PUT", f"blobs/{digest}", content=b"wrong")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")
    assert worker.call("HEAD", f"blobs/{digest}").status_code == 404
    named = worker.call("PUT", "blobs/sha256:xyz", content=b"x")
    assert (named.status_code, named.json()["code"]) == (422, "invalid_reference")
    site.services = type(site.services)(
        engine=site.engine, store=site.store, clock=now, policy=type(site.policy)(max_blob_bytes=4), limits=site.limits
    )
    with TestClient(site.app()) as small:
        worker.http = small
        assert worker.put(b"12345").json()["code"] == "too_large"
        assert worker.put(b"1234").status_code == 201
    assert worker.call("HEAD", f"blobs/{digest_of(b'1234')}").headers["Content-Length"] == "4"
    assert worker.put(b"1234").status_code in (200, 201)
    assert site.store.has(digest_of(b"12345")) is None


def test_rows_never_point_at_missing_bytes(site: Site, http: TestClient) -> None:
    """A checkpoint or a result whose files were not uploaded is refused, with all of them named."""
    job_id = queue(site)
    worker = claim(site, http)
    files = adapter_files()
    entries = result_of(files).files
    assert worker.put(files[CONFIG_FILE]).status_code == 201
    answer = worker.post("checkpoints", Checkpoint(step=1, files=entries))
    assert [problem["path"] for problem in answer.json()["problems"]] == [WEIGHTS_FILE]
    wrong_size = tuple(entry.model_copy(update={"size": entry.size + 1}) for entry in entries)
    answer = worker.post("checkpoints", Checkpoint(step=1, files=wrong_size))
    assert [problem["path"] for problem in answer.json()["problems"]] == [CONFIG_FILE, WEIGHTS_FILE]
    answer = worker.post("result", result_of(files))
    assert answer.status_code == 422
    assert WEIGHTS_FILE in answer.text
    with reading(site.engine) as connection:
        view = ledger.find(connection, job_id, now())
        assert connection.execute(select(catalog.VERSIONS.c.id)).all() == []
    assert (view.state, view.resume_from) == ("running", None)
    assert worker.deliver(files).status_code == 200, "once they are there, it goes on"


@pytest.mark.parametrize("what", ["config", "weights", "pickle"])
def test_what_is_no_adapter_is_not_published(site: Site, http: TestClient, what: str) -> None:
    """The bytes are judged, and nothing is half done."""
    job_id = queue(site)
    worker = claim(site, http)
    files = adapter_files()
    match what:
        case "config":
            files[CONFIG_FILE] = b'{"peft_type": "LORA"}'
        case "weights":
            files[WEIGHTS_FILE] = b"\x80\x04not tensors"
        case _:
            files["pytorch_model.bin"] = b"\x80\x04K\x01."
    answer = worker.deliver(files)
    assert answer.status_code == 422, answer.text
    assert state(site, job_id) == "running"
    with reading(site.engine) as connection:
        assert connection.execute(select(catalog.ADAPTERS.c.id)).all() == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("events", {"first_number": -1, "events": []}),
        ("events", {"first_number": 2**31, "events": []}),
        ("events", {"first_number": 0, "events": [{"type": "state", "state": "succeeded"}]}),
        ("events", {"first_number": 0, "events": [{"type": "progress", "step": 2**31}]}),
        ("events", {"first_number": 0, "events": [{"type": "message", "text": 1}]}),
        ("heartbeat", {"step": -1}),
        ("heartbeat", {"step": 2**63}),
        ("checkpoints", {"step": 1, "files": [{"path": "a", "digest": "md5:1", "size": 1}]}),
        ("checkpoints", {"step": 2**31, "files": []}),
        ("result", {}),
        ("failure", {"code": 1}),
    ],
)
def test_reports_that_are_none(site: Site, http: TestClient, path: str, body: dict[str, Any]) -> None:
    """Whatever a broken worker sends is answered with what is wrong, and changes nothing."""
    queue(site)
    worker = claim(site, http)
    before = snapshot(site)
    answer = worker.call("POST", path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.text
    assert snapshot(site) == before


@pytest.mark.parametrize(
    ("told", "literal"), [('"loss":1.0', '"loss":NaN'), ('"loss":1.0', '"loss":Infinity'), ('"loss":1.0', '"loss":1e999')]
)
def test_numbers_that_json_has_not(site: Site, http: TestClient, told: str, literal: str) -> None:
    """They would make the log unreadable."""
    queue(site)
    worker = claim(site, http)
    body = batch(0, 1).model_dump_json().replace(told, literal)
    answer = worker.call("POST", "events", content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_error_bodies_of_workers_are_kept_whole(site: Site, http: TestClient) -> None:
    """What the worker says is what people read."""
    job_id = queue(site, job_recovery={"max_restarts_on_errors": 0})
    body = ErrorBody(code="training_crashed", title="t", detail="d" * 5000, status=409)
    assert claim(site, http).post("failure", body).status_code == 204
    with reading(site.engine) as connection:
        assert ledger.find(connection, job_id, now()).error == body


@pytest.mark.parametrize("size", [3 << 20, VERIFIED_FIRST_BYTES + 1], ids=["told", "cut"])
def test_a_rotten_data_set_never_completes(site: Site, size: int) -> None:
    """Bytes that no longer match their name are refused, or cut off where they are many, so that no worker trains on them."""
    content = bytes(size)
    digest = digest_of(content)
    site.store = RottenStore(content[:-1] + b"x")
    site.services = type(site.services)(engine=site.engine, store=site.store, clock=now, policy=site.policy, limits=site.limits)
    queue(site, datasets=[{"path": digest, "file_format": "jsonl"}])
    with listening(site.app()) as url, patient_client(base_url=url) as http:
        worker = claim(site, http)
        if size <= VERIFIED_FIRST_BYTES:
            answer = worker.call("GET", f"blobs/{digest}")
            assert (answer.status_code, answer.json()["code"]) == (502, "digest_mismatch")
        else:
            with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
                worker.call("GET", f"blobs/{digest}")


def test_rot_in_a_large_data_set_is_told_to_who_asks_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reader is cut off and what it read is set aside; the next must not take that for bytes that were never there."""
    monkeypatch.setattr(objects, "VERIFIED_FIRST_BYTES", 1 << 20)
    content = bytes(3 << 20)
    digest = site.upload(content)
    assert isinstance(site.store, objects.MemoryStore)
    site.store._blobs[digest] = content[:-1] + b"x"
    queue(site, datasets=[{"path": digest, "file_format": "jsonl"}])
    with listening(site.app()) as url, patient_client(base_url=url) as http:
        worker = claim(site, http)
        with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
            worker.call("GET", f"blobs/{digest}")
        for _ in range(2):
            answer = worker.call("GET", f"blobs/{digest}")
            assert (answer.status_code, answer.json()["code"]) == (502, "digest_mismatch")


class RottenStore:
    """A store whose one blob has changed."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def has(self, digest: str) -> int | None:
        return len(self.content)

    def set_aside(self, digest: str) -> None:
        """It stays, as in a store that others write too."""

    def get(self, digest: str) -> Iterator[bytes]:
        source = io.BytesIO(self.content)
        while chunk := source.read(1 << 20):
            yield chunk
