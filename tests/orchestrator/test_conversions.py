"""Conversions: who may ask for one, what it is told where there is one already, and what its worker may do, which is little."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog import quotas
from infra.database import reading, writing
from orchestrator.admission import Policy
from tests.hub import format_files
from tests.hub.test_web import check_page
from tests.orchestrator.hidden_world import publish
from tests.orchestrator.paged import Pages
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, adapter_files, now, result_of
from tests.orchestrator.working import Worker, claim, queue, state, take_over
from wegeft.contracts.adapter import AdapterName, AdapterRef, digest_of
from wegeft.contracts.conversion import AttemptTask, ConversionTask
from wegeft.contracts.quotas import QuotaLimits
from wegeft.contracts.training import Checkpoint

DOOR = "/api/v1/adapters/demo/x/versions/1/conversions"
MADE = format_files.generators()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server with one version, of generators whose derived formats are known."""
    engine = new_sqlite(tmp_path / "a.db")
    yield with_version(Site(engine))
    engine.dispose()


def with_version(site: Site) -> Site:
    publish(site, "demo/x", "job:1", format_files.native(MADE), base_model=format_files.BASE)
    return site


@pytest.fixture
def http(site: Site) -> Iterator[TestClient]:
    with TestClient(site.app()) as client:
        yield client


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, TestClient]]:
    """The same, for what changes nothing."""
    engine = new_sqlite(tmp_path_factory.mktemp("refusing") / "a.db")
    site = with_version(Site(engine))
    with TestClient(site.app()) as client:
        yield site, client
    engine.dispose()


def ask(site: Site, http: Any, *formats: str, role: str = "write", door: str = DOOR, **fields: Any) -> Any:
    return http.post(door, json={"formats": list(formats), **fields}, headers=site.bearer(role))


def lora() -> dict[str, bytes]:
    return format_files.lora(format_files.factors(MADE))


def mlx() -> dict[str, bytes]:
    return format_files.mlx(format_files.factors(MADE))


def deliver(worker: Worker, **formats: dict[str, bytes]) -> Any:
    """Send the files of formats and report them as what the attempt has made."""
    for files in formats.values():
        for content in files.values():
            assert worker.put(content).status_code in (200, 201)
    return report(worker, **formats)


def report(worker: Worker, **formats: dict[str, bytes]) -> Any:
    made = [{"format": name, "attachment": format_files.attachment(files)} for name, files in formats.items()]
    return worker.call("POST", "conversion", json={"formats": made})


def attached(site: Site) -> list[str]:
    with reading(site.engine) as connection:
        version = catalog.resolve(connection, AdapterRef.parse("demo/x@1"))
        return [one.format for one in catalog.list_formats(connection, version)]


def test_a_conversion_is_a_job_whose_worker_attaches_what_it_made(site: Site, http: TestClient) -> None:
    answer = ask(site, http, "lora", "mlx")
    job = answer.json()["job"]
    assert (answer.status_code, answer.headers["location"]) == (201, f"/api/v1/jobs/{job['id']}")
    assert (job["state"], job["name"], job["spec"]["kind"]) == ("queued", "convert-x", "conversion")
    worker = claim(site, http)
    task = AttemptTask.model_validate_json(worker.call("GET", "task").content).root
    assert isinstance(task, ConversionTask)
    assert (task.spec.base_model, task.spec.base_model_revision) == ("org/base", "a" * 40)
    for entry in task.spec.files:
        assert digest_of(worker.call("GET", f"blobs/{entry.digest}").content) == entry.digest
    done = deliver(worker, lora=lora(), mlx=mlx())
    assert (done.status_code, done.json()) == (200, {"adapter": "demo/x", "version": 1})
    assert report(worker, lora=lora(), mlx=mlx()).json() == done.json(), "the answer was lost, and it asks again"
    assert attached(site) == ["lora", "mlx"]
    shown = http.get(f"/api/v1/jobs/{job['id']}", headers=site.bearer("read")).json()
    assert (shown["state"], shown["result"]) == ("succeeded", {"adapter": "demo/x", "version": 1})


def test_what_is_attached_is_said_and_not_made_again(site: Site, http: TestClient) -> None:
    ask(site, http, "lora")
    deliver(claim(site, http), lora=lora())
    again = ask(site, http, "lora")
    assert (again.status_code, again.json()["job"]) == (200, None)
    assert [one["format"] for one in again.json()["attached"]] == ["lora"]
    both = ask(site, http, "lora", "mlx").json()
    assert (both["job"]["spec"]["formats"], len(both["attached"])) == (["mlx"], 1)


def test_equal_requests_at_once_get_one_job(engine: Engine) -> None:
    site = with_version(Site(engine))
    with TestClient(site.app()) as http, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(site, http, "gguf", "lora"), range(6)))
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
        assert len({answer.json()["job"]["id"] for answer in answers}) == 1
        part = ask(site, http, "lora")
        assert (part.status_code, part.json()["job"]["id"]) == (200, answers[0].json()["job"]["id"]), "it makes that too"
        assert ask(site, http, "lora", dtype="float16").status_code == 201
        http.post(f"/api/v1/jobs/{part.json()['job']['id']}/cancel", headers=site.bearer())
        assert ask(site, http, "gguf", "lora").status_code == 201, "a cancelled job makes nothing"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"formats": []}, "formats"),
        ({"formats": ["merged"]}, "formats.0"),
        ({"formats": ["lora", "lora"]}, ""),
        ({"formats": ["lora"], "dtype": "q8_0"}, ""),
        ({"formats": ["lora"], "dtype": "float8"}, "dtype"),
        ({"formats": ["lora"], "priority": 101}, "priority"),
        ({"formats": ["lora"], "base_model": "/etc"}, "base_model"),
        ({}, "formats"),
    ],
)
def test_a_wrong_request_is_refused(refusing: tuple[Site, TestClient], body: dict[str, Any], path: str) -> None:
    site, http = refusing
    answer = http.post(DOOR, json=body, headers=site.bearer())
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert path in (answer.json()["problems"][0]["path"] or "")


def test_who_may_not_write_may_not_ask(refusing: tuple[Site, TestClient]) -> None:
    """A conversion costs what a job costs."""
    site, http = refusing
    assert ask(site, http, "lora", role="read").json()["code"] == "forbidden"
    assert http.post(DOOR, json={"formats": ["lora"]}).status_code == 401
    assert ask(site, http, "lora", door=DOOR.replace("/x/", "/absent/")).json()["code"] == "adapter_not_found"
    assert ask(site, http, "lora", door=DOOR.replace("/1/", "/7/")).json()["code"] == "version_not_found"


def test_what_can_never_be_made_is_told_at_once(site: Site, http: TestClient) -> None:
    publish(site, "demo/lora", "job:2", lora(), method="lora")
    answer = ask(site, http, "lora", "gguf", door=DOOR.replace("/x/", "/lora/")).json()
    assert {problem["value"] for problem in answer["problems"]} == {"lora", "gguf"}
    path = publish_on(site, "/models/tiny@sha256:" + "b" * 64, "/models/tiny")
    assert ask(site, http, "lora", door=path).json()["code"] == "policy_refused"
    site.services = type(site.services)(engine=site.engine, store=site.store, clock=now, policy=Policy(allow_local_models=True))
    with TestClient(site.app()) as allowed:
        assert ask(site, allowed, "lora", door=path).json()["job"]["spec"]["base_model"] == "/models/tiny"
        relative = publish_on(site, "./tiny@sha256:" + "b" * 64, "./tiny", "demo/relative")
        assert ask(site, allowed, "lora", door=relative).json()["code"] == "invalid_job"


def publish_on(site: Site, identity: str, named: str, name: str = "demo/local") -> str:
    files = {path: content.replace(b'"org/base"', f'"{named}"'.encode()) for path, content in format_files.native(MADE).items()}
    publish(site, name, f"job:{name}", files, base_model=identity)
    return DOOR.replace("demo/x", name)


def test_a_conversions_worker_publishes_nothing_and_a_training_worker_attaches_nothing(site: Site, http: TestClient) -> None:
    ask(site, http, "lora")
    converting = claim(site, http)
    for content in adapter_files().values():
        converting.put(content)
    refused = converting.post("result", result_of(adapter_files()))
    assert (refused.status_code, refused.json()["code"]) == (422, "result_mismatch")
    queue(site)
    assert deliver(claim(site, http), lora=lora()).json()["code"] == "result_mismatch"
    assert attached(site) == []


def test_a_conversions_worker_saves_no_checkpoint(site: Site, http: TestClient) -> None:
    ask(site, http, "lora")
    worker = claim(site, http)
    worker.put(b"state")
    checkpoint = Checkpoint(step=1, files=result_of({"state": b"state"}).files)
    assert worker.post("checkpoints", checkpoint).json()["code"] == "result_mismatch"


def test_formats_are_attached_together_or_not_at_all(site: Site, http: TestClient) -> None:
    job_id = ask(site, http, "lora", "mlx").json()["job"]["id"]
    worker = claim(site, http)
    strangers = format_files.mlx(format_files.factors(format_files.generators(seed=5)))
    for wrong, code in (
        ({"lora": lora()}, "result_mismatch"),
        ({"lora": lora(), "mlx": strangers}, "invalid_input"),
    ):
        assert deliver(worker, **wrong).json()["code"] == code
        assert (attached(site), state(site, job_id)) == ([], "running")
    assert deliver(worker, lora=lora(), mlx=mlx()).status_code == 200


def test_bytes_of_others_are_not_a_workers(site: Site, http: TestClient) -> None:
    ask(site, http, "lora")
    worker = claim(site, http)
    for content in lora().values():
        site.upload(content)
    assert report(worker, lora=lora()).json()["code"] == "invalid_request"
    secret = site.put(b"somebody else's data")
    assert worker.call("GET", f"blobs/{secret}").status_code == 404
    assert attached(site) == []


def test_a_full_namespace_gets_no_conversion_and_one_full_of_versions_does(site: Site, http: TestClient) -> None:
    with writing(site.engine) as connection:
        quotas.set_quota(connection, "demo", QuotaLimits(bytes=10))
    assert ask(site, http, "lora").json()["code"] == "quota_exceeded"
    with writing(site.engine) as connection:
        quotas.set_quota(connection, "demo", QuotaLimits(versions=1))
    assert ask(site, http, "lora").status_code == 201
    worker = claim(site, http)
    assert deliver(worker, lora=lora()).status_code == 200


def test_a_stale_worker_attaches_nothing(site: Site, http: TestClient) -> None:
    ask(site, http, "lora")
    stale = claim(site, http)
    second = take_over(site, http, stale)
    assert deliver_blobs(stale) == {409}
    assert report(stale, lora=lora()).json()["code"] == "stale_lease"
    assert deliver(second, lora=lora()).status_code == 200
    assert report(stale, lora=lora()).json()["code"] == "stale_lease"
    assert attached(site) == ["lora"]


def deliver_blobs(worker: Worker) -> set[int]:
    return {worker.put(content).status_code for content in lora().values()}


def test_a_version_that_is_deleted_meanwhile_gets_nothing(site: Site, http: TestClient) -> None:
    """Nor does another one that has its name by then."""
    ask(site, http, "lora")
    worker = claim(site, http)
    with writing(site.engine) as connection:
        catalog.delete_adapter(connection, AdapterName.parse("demo/x"), now())
    assert deliver(worker, lora=lora()).status_code == 404


def test_a_cancelled_conversion_attaches_nothing(site: Site, http: TestClient) -> None:
    job_id = ask(site, http, "lora").json()["job"]["id"]
    worker = claim(site, http)
    http.post(f"/api/v1/jobs/{job_id}/cancel", headers=site.bearer())
    worker.call("GET", "task")
    assert deliver(worker, lora=lora()).json()["code"] == "illegal_transition"
    assert attached(site) == []


def test_a_conversion_holds_what_it_reads(site: Site, http: TestClient) -> None:
    """Though its version goes meanwhile, the worker is not left in the middle of a file."""
    ask(site, http, "lora")
    worker = claim(site, http)
    task = AttemptTask.model_validate_json(worker.call("GET", "task").content).root
    assert isinstance(task, ConversionTask)
    with writing(site.engine) as connection:
        catalog.delete_adapter(connection, AdapterName.parse("demo/x"), now())
    with writing(site.engine) as connection:
        leaving = catalog.choose_leaving(connection, now() + timedelta(days=365), 100)
    assert not {entry.digest for entry in task.spec.files}.intersection(leaving)


def test_the_pages_show_a_conversion_as_what_it_is(site: Site) -> None:
    pages = Pages(site)
    with pages.visitor("read") as visitor:
        assert "wgctl adapters convert demo/x@1 --format mlx" in visitor.get("/demo/x/versions/1").text
        job_id = ask(site, visitor, "mlx").json()["job"]["id"]
        assert "convert-x" in visitor.get("/-/jobs").text
        page = visitor.get(f"/-/jobs/{job_id}")
        check_page(page)
        for text in ("Conversion of demo/x@1", "mlx, float32", "It will be attached to"):
            assert text in page.text
        assert "loss curve" not in page.text
        deliver(claim(site, visitor), mlx=mlx())
        assert "wgctl adapters download demo/x@1 --format mlx -o mlx" in visitor.get(f"/-/jobs/{job_id}").text
