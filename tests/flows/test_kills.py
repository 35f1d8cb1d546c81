"""What is killed, and what happens: a worker, the orchestrator, a worker that sleeps past its lease, a cancelled job.

Each on the real Ray, SQLite and a folder, with SIGKILL or SIGSTOP to exactly one process.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.flows.service import Service, running_service, signal_worker, wait_for_step, wait_until, worker_pid, write_job
from wegeft.client import Client
from wegeft.contracts.training import EventRecord, JobState

pytestmark = pytest.mark.slow

LONG_JOB = {"max_steps": 60, "save_steps": 10, "micro_batch_size": 16, "gradient_accumulation_steps": 4}
"""Some five seconds of training: long enough to be killed in the middle."""
QUICK = {"lease_seconds": "6", "heartbeat_seconds": "1", "pool": "ray"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on a real local Ray, which starts once."""
    with running_service(tmp_path_factory.mktemp("kills") / "home", **QUICK) as running:
        yield running


def submit(service: Service, folder: Path, **fields: object) -> str:
    """Submit the long job from the command line and return its id."""
    adapter = f"kills/{folder.name.replace('_', '-').strip('-')}"
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
        wait_for_checkpoint(client, job_id, 20)
        signal_worker(worker_pid(client, job_id, 1), signal.SIGKILL)
        job = client.wait(job_id, 120)
    assert job.attempt == 2
    check_one_version(service, job_id)
    second = steps_of(all_events(service, job_id), 2)
    assert second[0] > 20, "the second attempt began at a checkpoint, not at the start"
    assert second[-1] == LONG_JOB["max_steps"]


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
    wait_until(lambda: is_gone(old), "the stale worker ends", 30)


def test_cancelled_job_stops_its_worker_within_five_seconds(service: Service, tmp_path: Path) -> None:
    """`wgctl jobs cancel` in the middle: the worker process is gone in time, and nothing is published."""
    job_id = submit(service, tmp_path, max_steps=5000)
    with service.client() as client:
        wait_for_step(client, job_id, 5)
        pid = worker_pid(client, job_id, 1)
        adapter = str(client.job(job_id).spec.adapter)
        began = time.monotonic()
        client.cancel(job_id)
        wait_until(lambda: is_gone(pid), "the worker process has ended", 30)
        assert time.monotonic() - began < 5
        wait_until(lambda: client.job(job_id).state is JobState.CANCELLED, "the job is cancelled", 5)
    service.wgctl("jobs", "wait", job_id, expected=3)
    assert "adapter_not_found" in service.wgctl("adapters", "show", adapter, "--json", expected=4)


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_checkpoint(client: Client, job_id: str, step: int) -> None:
    """Return once a checkpoint of at least ``step`` steps is safe."""
    wait_until(lambda: (saved := client.job(job_id).resume_from) is not None and saved.step >= step, f"a checkpoint of step {step}", 120)


@pytest.mark.parametrize("part", ["gateway", "raylet", "gcs_server"])
def test_killed_part_of_ray_costs_an_attempt_and_not_the_job(service: Service, tmp_path: Path, part: str) -> None:
    """SIGKILL of the child that drives Ray, of its node process or its control process: the job succeeds, on a new Ray if need be."""
    job_id = submit(service, tmp_path)
    with service.client() as client:
        wait_for_checkpoint(client, job_id, 10)
        signal_worker(find_part(service, part), signal.SIGKILL)
        job = client.wait(job_id, 200)
    # A worker speaks to the orchestrator and not to Ray, so it may end its work before it notices that its Ray is gone.
    assert job.attempt >= (2 if part == "gateway" else 1)
    check_one_version(service, job_id)


def find_part(service: Service, part: str) -> int:
    """Return the process id of a part of the Ray that a service started."""
    for process in psutil.Process(service.process.pid).children(recursive=True):
        line = process.cmdline()
        if (part == "gateway" and part in line) or (line and Path(line[0]).name == part):
            return process.pid
    raise AssertionError(f"no {part} among the service's processes")


def test_killed_orchestrator_takes_its_ray_along_and_the_job_succeeds_when_it_is_started_again(service: Service, tmp_path: Path) -> None:
    """SIGKILL of the orchestrator in the middle: all that it started ends. Started again on its home: one version, from the checkpoint.

    The last test with the module's service, which it ends.
    """
    job_id = submit(service, tmp_path)
    with service.client() as client:
        wait_for_checkpoint(client, job_id, 20)
        started = psutil.Process(service.process.pid).children(recursive=True)
        assert {"raylet", "gcs_server"} <= {process.name() for process in started}
        assert worker_pid(client, job_id, 1) in {process.pid for process in started}
    service.kill()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    with running_service(service.home, **QUICK) as restarted:
        with restarted.client() as client:
            job = client.wait(job_id, 120)
        assert job.attempt >= 2
        check_one_version(restarted, job_id)
        assert steps_of(all_events(restarted, job_id), job.attempt)[0] > 20


@pytest.mark.soak
def test_any_kill_at_any_moment_costs_no_job_and_makes_no_second_version(tmp_path: Path) -> None:
    """Seeded: job after job, each with a SIGKILL of its worker or of the service at a random step, until the time is over."""
    seed, seconds = int(os.environ.get("SOAK_SEED", "1")), float(os.environ.get("SOAK_SECONDS", "600"))
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < end:
        kills += 1
        folder, at_step, is_service = tmp_path / f"job-{kills}", chance.randrange(1, LONG_JOB["max_steps"] - 10), chance.random() < 0.3
        with running_service(tmp_path / "home", **QUICK) as service:
            job_id = submit(service, folder)
            with service.client() as client:
                wait_for_step(client, job_id, at_step)
                pid = worker_pid(client, job_id, 1)
                if is_service:
                    service.kill()
                else:
                    signal_worker(pid, signal.SIGKILL)
                    client.wait(job_id, 200)
                    check_one_version(service, job_id)
        if is_service:
            with running_service(tmp_path / "home", **QUICK) as service:
                with service.client() as client:
                    client.wait(job_id, 200)
                check_one_version(service, job_id)
    print(f"seed {seed}: {kills} kills, no job lost, no version twice")
    assert kills > 0
