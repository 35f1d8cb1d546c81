"""The end of an attempt, on SQLite and on PostgreSQL: one version whatever happens, and none by a stale worker."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from starlette.testclient import TestClient

from hub import catalog
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.publishing import publish_result
from tests.http_clients import patient_client
from tests.orchestrator.samples import DATASET, batch, make_spec
from tests.orchestrator.serving import Site, adapter_files, listening, now, plain_spec, result_of
from tests.orchestrator.working import claim, every_write, queue, snapshot, state, take_over
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, AdapterRef, digest_of
from wegeft.contracts.training import Heartbeat, TrainingTask


@pytest.fixture
def site(engine: Engine) -> Site:
    """A server with one data set."""
    return Site(engine)


@pytest.fixture
def http(site: Site) -> Iterator[TestClient]:
    """A client without a token."""
    with TestClient(site.app()) as client:
        yield client


def test_an_attempts_life(site: Site, http: TestClient) -> None:
    """From the task to the version, as a worker goes through it."""
    job_id = queue(site, output={"adapter": "demo/sums", "aliases": ["stable"]})
    worker = claim(site, http)
    task = TrainingTask.model_validate_json(worker.call("GET", "task").content)
    assert (task.job_id, task.attempt, task.spec) == (job_id, 1, make_spec(output={"adapter": "demo/sums", "aliases": ["stable"]}))
    assert (task.heartbeat_seconds, task.lease_seconds, task.resume_from) == (2, 15, None)
    assert state(site, job_id) == "running"
    data = worker.call("GET", f"blobs/{digest_of(DATASET)}")
    assert (data.content, data.headers["Content-Length"]) == (DATASET, str(len(DATASET)))
    assert worker.post("heartbeat", Heartbeat(step=1)).json() == {"should_stop": False}
    assert worker.post("events", batch(0, 1, 2)).status_code == 204
    answer = worker.deliver(adapter_files(), eval_loss=0.25)
    assert answer.json() == {"adapter": "demo/sums", "version": 1}
    with reading(site.engine) as connection:
        published = catalog.resolve(connection, AdapterRef.parse("demo/sums@stable"))
        view = ledger.find(connection, job_id, now())
    assert (published.version, published.source, published.base_model) == (1, f"job:{job_id}", "org/model@abc")
    assert (published.metrics, published.rank, published.method) == ({"eval_loss": 0.25}, 2, "wegeft")
    assert {entry.path for entry in published.manifest.files} == {CONFIG_FILE, WEIGHTS_FILE}
    assert (view.state, view.result and view.result.ref, view.step) == ("succeeded", "demo/sums@1", 2)


def test_the_same_result_again_is_the_same_version(site: Site, http: TestClient) -> None:
    """The answer may have been lost on its way."""
    queue(site)
    worker = claim(site, http)
    first = worker.deliver(adapter_files())
    again = [worker.post("result", result_of(adapter_files())) for _ in range(3)]
    assert {(answer.status_code, answer.text) for answer in (first, *again)} == {(200, first.text)}
    with reading(site.engine) as connection:
        assert len(connection.execute(select(catalog.VERSIONS.c.id)).all()) == 1


def test_a_stale_worker_changes_nothing(site: Site, http: TestClient) -> None:
    """After another attempt has taken over, whatever the first one does is refused, and no row differs."""
    queue(site)
    stale = claim(site, http)
    for content in adapter_files(seed=7).values():
        site.put(content)
    current = take_over(site, http, stale)
    assert current.post("heartbeat", Heartbeat()).status_code == 200
    before = snapshot(site)
    for name, write in every_write(stale).items():
        answer = write()
        assert (name, answer.status_code) == (name, 409)
        assert name == "has" or answer.json()["code"] == "stale_lease"
        assert snapshot(site) == before
    assert site.store.has(digest_of(b"of a stale worker")) is None
    assert current.post("heartbeat", Heartbeat()).json() == {"should_stop": False}


def test_publishing_is_one_version_however_many_report_at_once(site: Site) -> None:
    """Eight copies of one result, over real connections: one version, one answer."""
    job_id = queue(site)
    with listening(site.app()) as url, patient_client(base_url=url) as http:
        worker = claim(site, http)
        for content in adapter_files().values():
            assert worker.put(content).status_code == 201
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: worker.post("result", result_of(adapter_files())), range(8)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, '{"adapter":"local/sums","version":1}')}
    assert state(site, job_id) == "succeeded"


def test_a_job_publishes_beside_an_alias_that_was_protected_meanwhile_and_says_so(site: Site, http: TestClient) -> None:
    """And a job that comes later is not even queued."""
    queue(site, output={"adapter": "demo/sums", "aliases": ["stable"]})
    claim(site, http).deliver(adapter_files())
    job_id = queue(site, output={"adapter": "demo/sums", "aliases": ["stable", "newest"]})
    with writing(site.engine) as connection:
        catalog.protect_alias(connection, AdapterName.parse("demo/sums"), "stable", now(), is_protected=True)
    assert claim(site, http).deliver(adapter_files(seed=2)).json() == {"adapter": "demo/sums", "version": 2}
    with reading(site.engine) as connection:
        assert catalog.find_adapter(connection, AdapterName.parse("demo/sums")).aliases == {"stable": 1, "newest": 2, "latest": 2}
        said = ledger.read_events(connection, job_id, 0, 100).records
    assert any("stable is protected" in record.model_dump_json() for record in said)
    spec = plain_spec(output={"adapter": "demo/sums", "aliases": ["stable"]})
    refused = http.post("/api/v1/jobs", json={"spec": spec}, headers=site.bearer("admin"))
    assert (refused.status_code, refused.json()["code"], refused.json()["problems"][0]["value"]) == (403, "forbidden", "stable")


def test_a_crash_before_the_commit_leaves_only_blobs(site: Site, http: TestClient) -> None:
    """No version, no alias, the job still runs, and the report works when it is made again."""
    job_id = queue(site, output={"aliases": ["stable"]})
    files = adapter_files()
    worker = claim(site, http)
    for content in files.values():
        assert worker.put(content).status_code == 201
    commits = iter(range(10))

    def cut_the_power(_connection: Any) -> None:
        if next(commits) == 1:
            raise RuntimeError("power cut")

    event.listen(site.engine, "commit", cut_the_power)
    with pytest.raises(RuntimeError, match="power cut"):
        publish_result(site.services, worker.lease, result_of(files))
    assert state(site, job_id) == "running"
    with reading(site.engine) as connection:
        assert connection.execute(select(catalog.VERSIONS.c.id)).all() == []
    assert all(site.store.has(digest_of(content)) is not None for content in files.values())
    assert publish_result(site.services, worker.lease, result_of(files)).version == 1
