"""The client against the real service: jobs, blobs, adapters; and a service that goes away and comes back."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from infra.auth import hash_secret, make_attempt_token
from infra.database import writing
from orchestrator import ledger
from tests.orchestrator.samples import batch, make_spec
from tests.orchestrator.serving import Site, adapter_files, listening, now, result_of
from wegeft.client import AttemptClient, Client
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import (
    AdapterNotFound,
    AliasMoved,
    Forbidden,
    IdempotencyConflict,
    InvalidData,
    InvalidJob,
    InvalidReference,
    InvalidRequest,
    InvalidSetting,
    JobNotFound,
    JobPending,
    NotFound,
    ServiceUnreachable,
    Unauthenticated,
    VersionNotFound,
)
from wegeft.contracts.placement import AttemptOrder
from wegeft.contracts.training import EventRecord, JobState, StateChanged


def claim(site: Site, url: str) -> AttemptOrder:
    """Claim the next job as a scheduler does; return its order."""
    token = make_attempt_token()
    with writing(site.engine) as connection:
        claimed = ledger.claim(connection, hash_secret(token), now(), site.limits.lease_seconds)
    assert claimed is not None
    return AttemptOrder(server=url, job_id=claimed.lease.job_id, attempt=claimed.lease.attempt, token=token)


def publish(site: Site, url: str, client: Client, files: dict[str, bytes], **fields: Any) -> str:
    """Take a job from its submission to its version; return the reference."""
    client.submit(make_spec(**fields))
    with AttemptClient(claim(site, url)) as worker:
        worker.task()
        for content in files.values():
            worker.put_blob(content)
        return worker.finish(result_of(files)).ref


def test_submit_and_look(client: Client) -> None:
    """What is submitted is found, in lists too."""
    job = client.submit(make_spec(labels={"team": "a"}))
    other = client.submit(make_spec())
    assert client.job(job.id).spec == make_spec(labels={"team": "a"})
    assert [found.id for found in client.jobs().jobs] == [other.id, job.id]
    assert [found.id for found in client.jobs(label="team=a", state=JobState.QUEUED).jobs] == [job.id]
    page = client.jobs(limit=1)
    assert [found.id for found in client.jobs(limit=1, after=page.next_cursor).jobs] == [job.id]


def test_a_key_makes_submitting_repeatable(client: Client) -> None:
    """And another job under it is refused."""
    first = client.submit(make_spec(), idempotency_key="k")
    assert client.submit(make_spec(), idempotency_key="k").id == first.id
    assert client.submit(make_spec()).id != first.id
    with pytest.raises(IdempotencyConflict):
        client.submit(make_spec(rank=9), idempotency_key="k")


def test_errors_arrive_as_what_they_are(site: Site, url: str, client: Client) -> None:
    """With their problems."""
    with pytest.raises(InvalidJob) as caught:
        client.submit(make_spec(datasets=[{"path": digest_of(b"nowhere"), "file_format": "csv"}]))
    assert [problem.path for problem in caught.value.problems] == ["datasets[0].path"]
    with pytest.raises(JobNotFound):
        client.job("nonsense")
    with pytest.raises(NotFound):
        client.job("../tokens")
    with pytest.raises(AdapterNotFound):
        client.adapter("no/body")
    with pytest.raises(InvalidReference):
        client.resolve("no body")
    with pytest.raises(InvalidRequest):
        client.jobs(label="nonsense")
    with Client(url, site.tokens["read"]) as reader, pytest.raises(Forbidden):
        reader.submit(make_spec())
    with Client(url, "wgt_" + "0" * 12 + "_" + "0" * 64) as nobody, pytest.raises(Unauthenticated):
        nobody.jobs()


def test_who_and_how(site: Site, client: Client) -> None:
    """The service about itself and about us."""
    assert client.health() == {"status": "ok", "version": "1"}
    assert (client.whoami().name, client.whoami().role) == ("the writeer", "write")


def test_bytes_are_sent_once(site: Site, client: Client, tmp_path: Path) -> None:
    """A file or bytes, with progress; what is there already is not sent again."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(bytes(3 << 20))
    seen: list[tuple[int, int]] = []
    blob = client.upload(path, lambda sent, total: seen.append((sent, total)))
    assert (blob.digest, blob.size) == (digest_of(bytes(3 << 20)), 3 << 20)
    assert seen == [(n << 20, 3 << 20) for n in (1, 2, 3)]
    assert client.upload(path, lambda *_: seen.clear()) == blob
    assert len(seen) == 3
    assert client.upload(b"").size == 0
    assert site.store.has(digest_of(b"")) == 0


def test_files_that_cannot_be_sent(site: Site, url: str, client: Client, tmp_path: Path) -> None:
    """Each is told by name; nothing is stored."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InvalidData, match="cannot be read"):
            client.upload(path)
    with Client(url, site.tokens["read"]) as reader, pytest.raises(Forbidden):
        reader.upload(b"x")
    with pytest.raises(InvalidData, match="changed while it was sent"):
        client.upload(ChangingFile(tmp_path / "log"))
    assert site.store.has(digest_of(b"x" * 10)) is None


class ChangingFile(type(Path())):  # type: ignore[misc]
    """A file that is longer each time it is opened."""

    def open(self, *args: Any, **options: Any) -> Any:
        with Path(self).open("ab") as file:
            file.write(b"x" * 10)
        return super().open(*args, **options)


def test_waiting_has_an_end(client: Client) -> None:
    """And says that the job goes on."""
    job = client.submit(make_spec())
    started = time.monotonic()
    with pytest.raises(JobPending, match=r"queued after 0\.5 s"):
        client.wait(job.id, 0.5)
    assert time.monotonic() - started < 3
    threading.Timer(0.5, lambda: client.cancel(job.id)).start()
    assert client.wait(job.id, 20).state == "cancelled"
    assert time.monotonic() - started < 10


def test_following_tells_everything_as_it_comes(site: Site, url: str, client: Client) -> None:
    """In order, without a gap, until the end; many readers at once; from anywhere."""
    job = client.submit(make_spec())
    order = claim(site, url)
    seen: list[list[EventRecord]] = [[] for _ in range(5)]

    def read(into: list[EventRecord]) -> None:
        into.extend(client.follow(job.id))

    readers = [threading.Thread(target=read, args=(into,)) for into in seen]
    for reader in readers:
        reader.start()
    with AttemptClient(order) as worker:
        for step in range(20):
            worker.report(batch(step, step))
            time.sleep(0.01)
        worker.fail(InvalidData().body())
    for reader in readers:
        reader.join(20)
    for records in seen:
        assert [record.sequence for record in records] == list(range(1, 25))
    assert isinstance(seen[0][-1].event, StateChanged)
    assert [record.sequence for record in client.follow(job.id, after=20)] == [21, 22, 23, 24]


def test_following_goes_on_after_the_service_was_killed(site: Site) -> None:
    """The reader sees every event once, though the server is gone in the middle and another one comes on its port."""
    with listening(site.app()) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, site.tokens["write"])
        job = client.submit(make_spec())
        order = claim(site, url)
        seen: list[int] = []
        reader = threading.Thread(target=lambda: seen.extend(record.sequence for record in client.follow(job.id)))
        reader.start()
        with AttemptClient(order) as worker:
            worker.report(batch(0, *range(5)))
        while len(seen) < 5:
            time.sleep(0.01)
    time.sleep(0.5)
    assert reader.is_alive()
    with listening(site.app(), port):
        with AttemptClient(order) as worker:
            worker.report(batch(5, *range(5, 9)))
            worker.fail(InvalidData().body())
        reader.join(30)
    client.close()
    assert seen == list(range(1, 14))


def test_versions_and_aliases(site: Site, url: str, client: Client) -> None:
    """As the hub has them."""
    for seed in range(3):
        assert publish(site, url, client, adapter_files(seed=seed), output={"adapter": "Demo/Sums"}) == f"Demo/Sums@{seed + 1}"
    assert [found.adapter for found in client.adapters().adapters] == ["Demo/Sums"]
    assert client.adapter("Demo/Sums").latest_version == 3
    assert [version.version for version in client.versions("demo/sums")] == [3, 2, 1]
    assert client.resolve("Demo/Sums").version == 3
    assert client.resolve("Demo/Sums@2").ref == "Demo/Sums@2"
    assert client.set_alias("Demo/Sums", "stable", 1, expected=0).aliases == {"stable": 1, "latest": 3}
    assert client.resolve("demo/sums@stable").version == 1
    with pytest.raises(AliasMoved):
        client.set_alias("Demo/Sums", "stable", 2, expected=3)
    with pytest.raises(VersionNotFound):
        client.resolve("Demo/Sums@9")


@pytest.mark.parametrize(
    "server",
    [
        "",
        "nonsense",
        "ftp://x",
        "http://",
        "http://me:hunter2@x",
        "http://x?a=b",
        "http://x#y",
        "http://[x",
        "file:///etc/passwd",
        "http://x:99999",
    ],
)
def test_addresses_that_are_none(server: str) -> None:
    """Each is refused before anything is sent, without repeating a password."""
    with pytest.raises(InvalidSetting) as caught:
        Client(server, "t")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "é", "\x7f", "a\r\nX-Evil: 1"])
def test_tokens_that_are_none(token: str) -> None:
    """They are not repeated either."""
    with pytest.raises(InvalidSetting) as caught:
        Client("http://127.0.0.1:1", token)
    assert caught.value.problems[0].value is None


def test_nobody_listens() -> None:
    """Told within the patience that was asked for."""
    started = time.monotonic()
    with Client("http://127.0.0.1:1", "t", patience_seconds=0.5) as client, pytest.raises(ServiceUnreachable, match="cannot be reached"):
        client.jobs()
    assert time.monotonic() - started < 5


@pytest.fixture(autouse=True)
def proxies_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on this machine goes through a proxy, whatever the environment says."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
