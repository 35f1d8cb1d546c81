"""A conversion's attempt against the real service: what it attaches, what it says, and what SIGKILL in the middle leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hub import catalog
from infra.auth import hash_secret, make_attempt_token
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.admission import Policy
from tests.flows.service import wait_until
from tests.http_clients import patient_request
from tests.method.models import adapted, llama
from tests.orchestrator.hidden_world import publish
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, listening, now
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterRef
from wegeft.contracts.errors import WorkerLost
from wegeft.contracts.placement import AttemptOrder
from wegeft.contracts.training import Advanced, JobView, Message
from workers.attempt import run_attempt
from workers.model_source import find_model


@dataclass
class Place:
    """A service that listens, with versions of one base model."""

    site: Site
    url: str
    work: Path

    def publish(self, name: str, base_model: str) -> None:
        files = {path: (self.work / "adapter" / path).read_bytes() for path in (CONFIG_FILE, WEIGHTS_FILE)}
        publish(self.site, name, f"job:{name}", files, base_model=base_model, rank=4)

    def ask(self, name: str, *formats: str) -> str:
        """Return the id of a new conversion."""
        door = f"{self.url}/api/v1/adapters/{name}/versions/1/conversions"
        answer = patient_request("POST", door, json={"formats": list(formats)}, headers=self.site.bearer())
        assert answer.status_code == 201, answer.text
        return str(answer.json()["job"]["id"])

    def claim(self) -> tuple[ledger.Lease, AttemptOrder]:
        """Claim the next job as a scheduler does."""
        token = make_attempt_token()
        with writing(self.site.engine) as connection:
            claimed = ledger.claim(connection, hash_secret(token), now(), self.site.limits.lease_seconds)
        assert claimed is not None
        lease = claimed.lease
        return lease, AttemptOrder(server=self.url, job_id=lease.job_id, attempt=lease.attempt, token=token, cpus=1)

    def job(self, job_id: str) -> JobView:
        with reading(self.site.engine) as connection:
            return ledger.find(connection, job_id, now())

    def told(self, job_id: str, attempt: int) -> list[Any]:
        with reading(self.site.engine) as connection:
            records = ledger.read_events(connection, job_id, 0, 500).records
        return [record.event for record in records if record.attempt == attempt]

    def attached(self, name: str) -> list[tuple[str, str]]:
        with reading(self.site.engine) as connection:
            version = catalog.resolve(connection, AdapterRef.parse(f"{name}@1"))
            return [(one.format, one.dtype) for one in catalog.list_formats(connection, version)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    work = tmp_path_factory.mktemp("work")
    model = llama()
    model.save_pretrained(work / "model")
    model.name_or_path = str(work / "model")
    peft_model = adapted(model)
    peft_model.peft_config["default"].base_model_name_or_path = str(work / "model")
    peft_model.save_pretrained(work / "adapter")
    engine = new_sqlite(work / "a.db")
    site = Site(engine, policy=Policy(allow_local_models=True))
    with listening(site.app()) as url:
        yield Place(site, url, work)
    engine.dispose()


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give the number of threads back that an attempt sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_format_is_made_and_attached_with_its_error(place: Place) -> None:
    place.publish("demo/all", find_model(str(place.work / "model")).identity)
    job_id = place.ask("demo/all", "lora", "gguf", "mlx")
    run_attempt(place.claim()[1])
    job = place.job(job_id)
    assert (str(job.state), job.step, job.total_steps) == ("succeeded", 4, 4), job.error
    assert place.attached("demo/all") == [("gguf", "float32"), ("lora", "float32"), ("mlx", "float32")]
    told = [event.text for event in place.told(job_id, 1) if isinstance(event, Advanced)]
    assert [text.split()[1] for text in told[1:]] == ["lora", "gguf", "mlx"]
    assert "error of ΔW" in told[-1]


def test_another_base_model_than_the_versions_is_refused(place: Place) -> None:
    place.publish("demo/other", f"{place.work / 'model'}@sha256:{'0' * 64}")
    job_id = place.ask("demo/other", "lora")
    run_attempt(place.claim()[1])
    job = place.job(job_id)
    assert job.error is not None
    assert (str(job.state), job.error.code, job.error.problems[0].path) == ("failed", "base_model_unusable", "base_model")
    assert place.attached("demo/other") == []


def test_a_base_model_that_is_not_there_is_said(place: Place) -> None:
    files = {path: (place.work / "adapter" / path).read_bytes() for path in (CONFIG_FILE, WEIGHTS_FILE)}
    files[CONFIG_FILE] = files[CONFIG_FILE].replace(str(place.work / "model").encode(), b"/no/such/model")
    publish(place.site, "demo/absent", "job:absent", files, base_model=f"/no/such/model@sha256:{'0' * 64}")
    job_id = place.ask("demo/absent", "lora")
    run_attempt(place.claim()[1])
    error = place.job(job_id).error
    assert error is not None
    assert (error.code, error.problems[0].value) == ("base_model_not_found", "/no/such/model")


def test_a_killed_worker_leaves_nothing_and_the_next_one_attaches_once(place: Place) -> None:
    """SIGKILL to a process of its own, once it has begun; its lease is given to another attempt, as the scheduler does."""
    place.publish("demo/killed", find_model(str(place.work / "model")).identity)
    job_id = place.ask("demo/killed", "lora", "gguf")
    lease, order = place.claim()
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        process.stdin.write(order.model_dump_json())
        process.stdin.close()
        wait_until(lambda: any(isinstance(event, Message) for event in place.told(job_id, 1)), "the worker begins")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(10)
    assert place.attached("demo/killed") == []
    with writing(place.site.engine) as connection:
        ledger.give_back(connection, lease, WorkerLost().body(), now(), 0)
    run_attempt(place.claim()[1])
    assert (str(place.job(job_id).state), place.job(job_id).attempt) == ("succeeded", 2)
    assert place.attached("demo/killed") == [("gguf", "float32"), ("lora", "float32")]


WORKER = """
import sys
from wegeft.contracts.placement import AttemptOrder
from workers.attempt import run_attempt

run_attempt(AttemptOrder.model_validate_json(sys.stdin.read()), owns_process=True)
"""
