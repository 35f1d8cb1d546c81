"""Digests are no secrets: an attempt gets at bytes by having them, or because its task names them, and in no other way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, select
from starlette.testclient import TestClient

from hub import catalog
from infra.database import reading
from tests.orchestrator.samples import DATASET
from tests.orchestrator.serving import Site, adapter_files, result_of
from tests.orchestrator.working import claim, queue, state, take_over
from wegeft.contracts.adapter import CARD_FILE, digest_of
from wegeft.contracts.training import Checkpoint, TrainingTask

SECRET = b"somebody else's data"


@pytest.fixture
def site(engine: Engine) -> Site:
    """A server that holds somebody else's bytes."""
    site = Site(engine)
    site.put(SECRET)
    return site


@pytest.fixture
def http(site: Site) -> Iterator[TestClient]:
    """A client without a token."""
    with TestClient(site.app()) as client:
        yield client


def test_a_known_digest_gives_no_bytes(site: Site, http: TestClient) -> None:
    """An empty upload under it, a checkpoint that names it, and a look: each is refused, and tells not even that it exists."""
    queue(site)
    worker = claim(site, http)
    secret = digest_of(SECRET)
    assert worker.call("HEAD", f"blobs/{secret}").status_code == 404
    uploaded = worker.call("PUT", f"blobs/{secret}", content=b"")
    assert (uploaded.status_code, uploaded.json()["code"]) == (422, "invalid_request")
    assert worker.call("HEAD", f"blobs/{secret}").status_code == 404
    answers = [worker.post("checkpoints", Checkpoint(step=1, files=result_of({"state": content}).files)) for content in (SECRET, b"none's")]
    assert {(answer.status_code, answer.json()["code"], answer.json()["problems"][0]["message"]) for answer in answers} == {
        (422, "invalid_request", "its bytes were not uploaded for this job")
    }
    assert TrainingTask.model_validate_json(worker.call("GET", "task").content).resume_from is None
    looked = worker.call("GET", f"blobs/{secret}")
    assert (looked.status_code, looked.json()["code"]) == (404, "blob_not_found")


@pytest.mark.parametrize("content", [SECRET, DATASET], ids=["another's", "its own data set"])
def test_a_known_digest_is_not_published(site: Site, http: TestClient, content: bytes) -> None:
    """Neither somebody's bytes nor the job's data become a card that everybody reads."""
    job_id = queue(site)
    worker = claim(site, http)
    for own in adapter_files().values():
        assert worker.put(own).status_code == 201
    assert worker.call("PUT", f"blobs/{digest_of(content)}", content=b"").status_code == 422
    answer = worker.post("result", result_of({**adapter_files(), CARD_FILE: content}))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [problem["path"] for problem in answer.json()["problems"]] == [CARD_FILE]
    assert state(site, job_id) == "running"
    with reading(site.engine) as connection:
        assert connection.execute(select(catalog.VERSIONS.c.id)).all() == []


def test_what_another_job_delivered_is_not_this_jobs(site: Site, http: TestClient) -> None:
    """Who has the bytes too may say so by sending them, though the store keeps them once."""
    queue(site)
    queue(site)
    first, second = claim(site, http), claim(site, http)
    checkpoint = Checkpoint(step=1, files=result_of({"state": b"state"}).files)
    assert first.put(b"state").status_code == 201
    assert second.post("checkpoints", checkpoint).status_code == 422
    assert second.put(b"state").status_code == 201
    assert second.post("checkpoints", checkpoint).status_code == 204
    assert second.call("GET", f"blobs/{digest_of(b'state')}").content == b"state"


def test_a_later_attempt_goes_on_with_what_the_job_has(site: Site, http: TestClient) -> None:
    """It need not upload again what a former attempt has delivered, whether a checkpoint names it or not."""
    job_id = queue(site)
    first = claim(site, http)
    for content in (b"state", *adapter_files().values()):
        assert first.put(content).status_code == 201
    checkpoint = Checkpoint(step=1, files=result_of({"state": b"state"}).files)
    assert first.post("checkpoints", checkpoint).status_code == 204
    second = take_over(site, http, first)
    assert second.call("HEAD", f"blobs/{digest_of(b'state')}").headers["Content-Length"] == "5"
    assert second.put(b"state").status_code == 200
    assert second.post("checkpoints", checkpoint).status_code == 204
    assert second.post("result", result_of(adapter_files())).status_code == 200
    assert state(site, job_id) == "succeeded"


def test_bytes_that_come_too_late_are_not_the_jobs(site: Site, http: TestClient) -> None:
    """A stale attempt delivers nothing to the one that took over."""
    queue(site)
    stale = claim(site, http)
    current = take_over(site, http, stale)
    assert stale.put(b"state").status_code == 409
    assert current.call("HEAD", f"blobs/{digest_of(b'state')}").status_code == 404


def test_more_files_than_there_can_be(site: Site, http: TestClient) -> None:
    """Are refused before any is looked for."""
    queue(site)
    worker = claim(site, http)
    files = [{"path": f"f{number}", "digest": digest_of(b"x"), "size": 1} for number in range(1001)]
    answer = worker.call("POST", "checkpoints", json={"step": 1, "files": files})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
