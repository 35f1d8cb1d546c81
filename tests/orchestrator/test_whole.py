"""The orchestrator as a whole: real HTTP, a real child process, a ticking scheduler; what dies is replaced, and nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.jobs import Limits
from orchestrator.ray_gateway import GatewayPool
from orchestrator.scheduler import Scheduler, SchedulerThread
from tests.orchestrator.samples import make_spec, new_sqlite
from tests.orchestrator.serving import Site, listening, now
from tests.orchestrator.worker_process import STEPS
from wegeft.client import Client
from wegeft.contracts.training import JobView, StateChanged

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.orchestrator.worker_process"]
LIMITS = Limits(max_concurrent_jobs=3, lease_seconds=4, heartbeat_seconds=0.5, stop_grace_seconds=1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A service's parts, with short leases."""
    monkeypatch.chdir(ROOT)
    engine = new_sqlite(tmp_path / "a.db")
    yield Site(engine, limits=LIMITS)
    engine.dispose()


@contextmanager
def running(site: Site, log: Path, port: int = 0) -> Iterator[tuple[Client, GatewayPool]]:
    """An orchestrator: its API, its scheduler and its gateway."""
    with listening(site.app(), port) as url, Client(url, site.tokens["write"]) as client:
        gateway = GatewayPool(COMMAND, log)
        thread = SchedulerThread(Scheduler(site.engine, gateway, LIMITS, url), now, tick_seconds=0.1)
        thread.start()
        try:
            yield client, gateway
        finally:
            thread.close()


def check_done(client: Client, job_id: str, seconds: float = 90) -> JobView:
    """Wait for a job; it must have succeeded, once, with every step in its log's metrics."""
    job = client.wait(job_id, seconds)
    assert job.state == "succeeded", job.error
    ends = [r.event for r in client.events(job_id, limit=1000).records if isinstance(r.event, StateChanged) and r.event.state.is_final]
    assert len(ends) == 1
    assert (job.step, job.total_steps) == (STEPS, 100)
    return job


def test_jobs_run_to_their_versions(site: Site, tmp_path: Path) -> None:
    """Several, side by side and after each other; versions of one adapter are numbered without a gap."""
    with running(site, tmp_path / "log") as (client, _):
        ids = [client.submit(make_spec(seed=seed)).id for seed in range(6)]
        refs = {check_done(client, job_id).result.ref for job_id in ids}  # type: ignore[union-attr]
    assert refs == {f"local/sums@{number}" for number in range(1, 7)}


def test_cancelled_jobs_stop_long_before_they_would_end(site: Site, tmp_path: Path) -> None:
    """Whether they wait or run; the others go on."""
    with running(site, tmp_path / "log") as (client, _):
        ids = [client.submit(make_spec(seed=seed)).id for seed in range(5)]
        while client.job(ids[0]).state != "running":
            time.sleep(0.02)
        for job_id in (ids[0], ids[4]):
            client.cancel(job_id)
        assert {client.wait(job_id, 60).state for job_id in (ids[0], ids[4])} == {"cancelled"}
        for job_id in ids[1:4]:
            check_done(client, job_id)
        assert len(client.versions("local/sums")) == 3


@pytest.mark.soak
def test_the_gateway_is_killed_again_and_again(site: Site, tmp_path: Path) -> None:
    """SIGKILL at random moments: every job succeeds, each with one version, going on from its checkpoint."""
    chance = random.Random(20261121)
    with running(site, tmp_path / "log") as (client, gateway):
        ids = [client.submit(make_spec(seed=seed)).id for seed in range(6)]
        kills = 0
        while kills < 4:
            time.sleep(chance.uniform(0.3, 1.2))
            if gateway.pid is not None and any(job.state == "running" for job in client.jobs().jobs):
                os.kill(gateway.pid, signal.SIGKILL)
                kills += 1
            if all(job.state.is_final for job in client.jobs().jobs):
                break
        jobs = [check_done(client, job_id) for job_id in ids]
        assert kills > 0
        assert sum(job.attempt for job in jobs) > len(jobs), "some were lost and tried again"
        versions = client.versions("local/sums")
    assert sorted(version.version for version in versions) == list(range(1, 7))
    assert {version.source for version in versions} == {f"job:{job_id}" for job_id in ids}
    assert len({version.manifest_digest for version in versions}) == 6


def test_the_orchestrator_goes_and_another_takes_over(site: Site, tmp_path: Path) -> None:
    """Closed in the middle, started again on the same database: the job goes on from its checkpoint at once."""
    with running(site, tmp_path / "log") as (client, _):
        port = int(client._transport.server.rpartition(":")[2])
        job_id = client.submit(make_spec()).id
        while client.job(job_id).resume_from is None:
            time.sleep(0.02)
    with running(site, tmp_path / "log", port) as (client, _):
        job = check_done(client, job_id)
        assert job.attempt == 2
        assert [version.version for version in client.versions("local/sums")] == [1]


@pytest.mark.slow
def test_a_gateway_that_stops_breathing(site: Site, tmp_path: Path) -> None:
    """SIGSTOP past the lease: another attempt makes the version; the sleeper wakes up, is stale, and changes nothing."""
    with running(site, tmp_path / "log") as (client, gateway):
        job_id = client.submit(make_spec()).id
        while client.job(job_id).state != "running":
            time.sleep(0.02)
        sleeper = gateway.pid
        assert sleeper is not None
        os.kill(sleeper, signal.SIGSTOP)
        while client.job(job_id).state == "running":
            time.sleep(0.05)
        os.kill(sleeper, signal.SIGCONT)
        job = check_done(client, job_id)
        assert job.attempt > 1
        time.sleep(0.5)
        assert client.job(job_id) == job
        assert [version.version for version in client.versions("local/sums")] == [1]
