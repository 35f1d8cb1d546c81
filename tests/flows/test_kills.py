"""What is killed, and what happens: a worker, the orchestrator, a worker that sleeps past its lease, a cancelled job.

Each on the real Ray, SQLite and a folder, with SIGKILL or SIGSTOP to exactly one process.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.flows.service import Service, running_service, signal_worker, wait_for_step, wait_until, worker_pid, write_job
from wegeft.contracts.training import EventRecord, JobState

pytestmark = pytest.mark.slow

LONG_JOB = {"max_steps": 120, "save_steps": 10, "micro_batch_size": 16, "gradient_accumulation_steps": 4}
"""Some ten seconds of training: long enough to be killed in the middle."""
QUICK = {"lease_seconds": "6", "heartbeat_seconds": "1", "pool": "ray"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the module: Ray starts once."""
    return tmp_path_factory.mktemp("kills") / "home"


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    """The service on a real local Ray."""
    with running_service(home, **QUICK) as running:
        yield running


def submit(service: Service, folder: Path, **fields: object) -> str:
    """Submit the long job from the command line and return its id."""
    adapter = f"kills/{folder.name.replace('_', '-').rstrip('-0123456789')}"
    job_file = write_job(folder, **{**LONG_JOB, "output": {"adapter": adapter}, **fields})
    return str(service.wgctl_json("submit", str(job_file))["id"])


def steps_of(records: list[EventRecord], attempt: int) -> list[int]:
    """Return the steps that an attempt reported, in order."""
    return [record.event.step for record in records if record.event.type == "progress" and record.attempt == attempt]


def all_events(service: Service, job_id: str) -> list[EventRecord]:
    with service.client() as client:
        return list(client.follow(job_id))


def check_one_version(service: Service, job_id: str) -> None:
    """The job has succeeded, and exactly one version came from it."""
    with service.client() as client:
        job = client.job(job_id)
        assert job.state is JobState.SUCCEEDED, job.error
        assert job.result is not None
        versions = client.versions(job.result.adapter)
    assert [version.source for version in versions] == [f"job:{job_id}"]


def test_killed_worker_is_replaced_and_goes_on_from_its_checkpoint(service: Service, tmp_path: Path) -> None:
    """SIGKILL of the Ray worker in the middle: the job succeeds, with one version, and little is done twice."""
    job_id = submit(service, tmp_path)
    with service.client() as client:
        wait_for_step(client, job_id, 25)
        signal_worker(worker_pid(client, job_id, 1), signal.SIGKILL)
        job = client.wait(job_id, 120)
    assert job.attempt == 2
    check_one_version(service, job_id)
    second = steps_of(all_events(service, job_id), 2)
    assert second[0] > 10, "the second attempt began at a checkpoint, not at the start"
    assert second[-1] == 120


def test_worker_that_slept_past_its_lease_changes_nothing(service: Service, tmp_path: Path) -> None:
    """SIGSTOP past the lease, then SIGCONT: the old worker's writes are refused, and it ends itself."""
    job_id = submit(service, tmp_path)
    with service.client() as client:
        wait_for_step(client, job_id, 15)
        old = worker_pid(client, job_id, 1)
        signal_worker(old, signal.SIGSTOP)
        try:
            wait_until(lambda: client.job(job_id).attempt == 2, "a second attempt begins", 60)
        finally:
            if psutil.pid_exists(old):
                signal_worker(old, signal.SIGCONT)
        client.wait(job_id, 120)
    check_one_version(service, job_id)
    records = all_events(service, job_id)
    began = next(index for index, record in enumerate(records) if record.attempt == 2)
    assert all(record.attempt == 2 for record in records[began:]), "nothing of the first attempt is written after the second began"
    wait_until(lambda: not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE, "the stale worker ends", 30)


def test_cancelled_job_stops_its_worker_within_five_seconds(service: Service, tmp_path: Path) -> None:
    """`wgctl jobs cancel` in the middle: the worker process is gone in time, and nothing is published."""
    job_id = submit(service, tmp_path, max_steps=5000)
    with service.client() as client:
        wait_for_step(client, job_id, 5)
        pid = worker_pid(client, job_id, 1)
        service.wgctl("jobs", "cancel", job_id)
        began = time.monotonic()
        wait_until(lambda: client.job(job_id).state is JobState.CANCELLED, "the job is cancelled", 5)
        wait_until(lambda: not is_training(pid, job_id), "the worker has stopped", max(0.5, 5 - (time.monotonic() - began)))
    service.wgctl("jobs", "wait", job_id, expected=3)
    assert "adapter_not_found" in service.wgctl("adapters", "show", "kills/test-cancelled-job-stops-its-w", "--json", expected=None)


def is_training(pid: int, job_id: str) -> bool:
    """Whether the process still is the worker of a job: it lives and uses the processor."""
    del job_id
    try:
        return psutil.Process(pid).cpu_percent(interval=0.3) > 50
    except psutil.NoSuchProcess:
        return False


def test_killed_orchestrator_is_started_again_and_the_job_succeeds(home: Path, tmp_path: Path, service: Service) -> None:
    """SIGKILL of the orchestrator in the middle, started again on the same home: one version, from the checkpoint."""
    job_id = submit(service, tmp_path)
    with service.client() as client:
        wait_for_step(client, job_id, 25)
        old = worker_pid(client, job_id, 1)
    service.kill()
    wait_until(lambda: not psutil.pid_exists(old), "the worker ends when nobody answers it", 30)
    with running_service(home, **QUICK) as restarted:
        with restarted.client() as client:
            job = client.wait(job_id, 120)
        assert job.attempt >= 2
        check_one_version(restarted, job_id)
        assert steps_of(all_events(restarted, job_id), job.attempt)[0] > 10
