"""The client of workers against the real service: one attempt, from its task to its version, and all that can come in between."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from infra.database import writing
from orchestrator import ledger
from tests.client.test_service import claim
from tests.orchestrator.samples import DATASET, batch, make_spec, progress
from tests.orchestrator.serving import Site, adapter_files, listening, now, result_of
from wegeft.client import AttemptClient, Client
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import (
    InvalidData,
    ServiceUnreachable,
    StaleLease,
    TooLarge,
    TrainingCrashed,
    WorkerLost,
)
from wegeft.contracts.training import Checkpoint, EventBatch, Message


def test_an_attempt_from_its_task_to_its_version(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """Everything that a worker says."""
    job = client.submit(make_spec())
    order = claim(site, url)
    with AttemptClient(order) as worker:
        task = worker.task()
        assert (task.job_id, task.attempt, task.spec) == (job.id, 1, make_spec())
        assert worker.get_blob(task.spec.datasets[0].path, tmp_path / "data") == len(DATASET)
        assert (tmp_path / "data").read_bytes() == DATASET
        assert worker.heartbeat(3).should_stop is False
        worker.report(EventBatch(first_number=0, events=(Message(text="hi"), progress(4))))
        worker.report(EventBatch(first_number=0, events=(Message(text="hi"), progress(4))))
        entries = result_of({"state": b"s"}).files
        worker.put_blob(b"s")
        worker.checkpoint(Checkpoint(step=4, files=entries))
        assert client.job(job.id).resume_from == Checkpoint(step=4, files=entries)
        for content in adapter_files().values():
            worker.put_blob(content)
        published = worker.finish(result_of(adapter_files()))
        assert worker.finish(result_of(adapter_files())) == published
    done = client.wait(job.id, 5)
    assert (done.state, done.result, done.step) == ("succeeded", published, 4)
    assert [(point.step, point.value) for point in client.metric(job.id, "loss")] == [(4, 1.0)]
    assert client.metric(job.id, "eval_loss") == ()
    texts = [record.event.text for record in client.follow(job.id) if isinstance(record.event, Message)]
    assert texts == ["hi"]


def test_a_stale_worker_hears_so_at_every_call(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """By the one error that means: stop."""
    client.submit(make_spec())
    order = claim(site, url)
    with writing(site.engine) as connection:
        lease = ledger.find_lease(connection, order.job_id, order.attempt)
        assert lease is not None
        ledger.give_back(connection, lease, WorkerLost().body(), now(), 0)
    claim(site, url)
    with AttemptClient(order) as worker:
        calls = [
            worker.task,
            worker.heartbeat,
            lambda: worker.report(batch(0, 1)),
            lambda: worker.get_blob(digest_of(DATASET), tmp_path / "x"),
            lambda: worker.put_blob(b"stale"),
            lambda: worker.checkpoint(Checkpoint(step=1, files=())),
            lambda: worker.finish(result_of({})),
            lambda: worker.fail(TrainingCrashed().body()),
        ]
        for call in calls:
            with pytest.raises(StaleLease):
                call()
    assert list(tmp_path.glob("x*")) == []
    assert site.store.has(digest_of(b"stale")) is None


def test_a_failure_is_reported(site: Site, url: str, client: Client) -> None:
    """And is harmless to repeat."""
    job = client.submit(make_spec())
    with AttemptClient(claim(site, url)) as worker:
        for _ in range(2):
            worker.fail(InvalidData("no rows").body())
    assert client.wait(job.id).error == InvalidData("no rows").body()


def test_cancel_reaches_the_worker(site: Site, url: str, client: Client) -> None:
    """With its next heartbeat."""
    job = client.submit(make_spec())
    with AttemptClient(claim(site, url)) as worker:
        assert not worker.heartbeat().should_stop
        assert client.cancel(job.id).state == "cancelling"
        assert worker.heartbeat().should_stop
        worker.fail(TrainingCrashed().body())
    assert client.cancel(job.id).state == "cancelled"


def test_a_worker_rides_out_a_restart(site: Site) -> None:
    """What it says meanwhile is said when the service is back; the heartbeat alone is given up at once."""
    with listening(site.app()) as url:
        port = int(url.rpartition(":")[2])
        with Client(url, site.tokens["write"]) as client:
            job = client.submit(make_spec())
        order = claim(site, url)
        worker = AttemptClient(order)
        worker.task()
    with pytest.raises(ServiceUnreachable):
        worker.heartbeat()
    reporter = threading.Thread(target=lambda: worker.report(batch(0, 1, 2)))
    reporter.start()
    time.sleep(0.5)
    with listening(site.app(), port) as url, Client(url, site.tokens["write"]) as client:
        reporter.join(20)
        assert not reporter.is_alive()
        assert client.job(job.id).step == 2
    worker.close()


def test_a_worker_that_stores_too_much(site: Site, url: str, client: Client) -> None:
    """Is told so."""
    site.services = type(site.services)(
        engine=site.engine, store=site.store, clock=now, policy=type(site.policy)(max_blob_bytes=10), limits=site.limits
    )
    client.submit(make_spec())
    with listening(site.app()) as small, AttemptClient(claim(site, small)) as worker, pytest.raises(TooLarge):
        worker.put_blob(bytes(5 << 20))
