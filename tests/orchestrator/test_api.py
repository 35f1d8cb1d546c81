"""The HTTP API of jobs, through the real application."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from infra.auth import create_token
from infra.database import writing
from orchestrator.admission import Policy
from tests.orchestrator.samples import DATASET, batch, claim, new_sqlite
from tests.orchestrator.serving import Site, now, plain_spec
from wegeft.contracts.adapter import digest_of


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """SQLite is enough here: the ledger itself is tested on both."""
    engine = new_sqlite(tmp_path_factory.mktemp("api") / "a.db")
    yield engine
    engine.dispose()


@pytest.fixture
def site(engine: Engine) -> Site:
    """A server that allows nothing special."""
    return Site(engine)


@pytest.fixture
def http(site: Site) -> Iterator[TestClient]:
    """A caller who may write."""
    with TestClient(site.app(), headers=site.bearer()) as client:
        yield client


def submit(http: TestClient, **fields: Any) -> str:
    """Queue a job; return its id."""
    answer = http.post("/api/v1/jobs", json={"spec": plain_spec(**fields)})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def problems(answer: Any, code: str) -> dict[str, str]:
    """The problems of an error by path; it must have this code."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (body["code"], body["type"]) == (code, f"urn:wegeft:error:{code}"), body
    assert body["request_id"] == answer.headers["X-Request-Id"]
    return {problem["path"]: problem["message"] for problem in body["problems"]}


def test_submit_answers_the_job_and_where_it_is(http: TestClient) -> None:
    """The same that a later look finds."""
    answer = http.post("/api/v1/jobs", json={"spec": plain_spec(labels={"a": "b"})})
    assert answer.status_code == 201
    assert http.get(answer.headers["Location"]).json() == answer.json()
    assert answer.json()["state"] == "queued"
    assert answer.json()["spec"]["learning_rate"] == 4e-4, "defaults are filled in"


def test_submitting_again_under_one_key(http: TestClient) -> None:
    """The same job, with 200; another spec is a conflict."""
    body = {"spec": plain_spec()}
    first = http.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "k1"})
    again = http.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/api/v1/jobs", json={"spec": plain_spec(rank=3)}, headers={"Idempotency-Key": "k1"})
    assert other.status_code == 409
    assert problems(other, "idempotency_conflict")["Idempotency-Key"].startswith("the key was used")
    assert len(http.get("/api/v1/jobs").json()["jobs"]) == 1


def test_two_tokens_of_one_name_share_no_keys(site: Site, http: TestClient) -> None:
    """Names are for people: another caller's key neither finds this one's job nor stands in its way."""
    with writing(site.engine) as connection:
        twin = create_token(connection, "the writeer", "write", now())[1]
    first = http.post("/api/v1/jobs", json={"spec": plain_spec()}, headers={"Idempotency-Key": "k"})
    theirs = {"Idempotency-Key": "k", "Authorization": f"Bearer {twin}"}
    assert http.post("/api/v1/jobs", json={"spec": plain_spec()}, headers=theirs).json()["code"] == "invalid_job"
    assert http.put(f"/api/v1/blobs/{digest_of(DATASET)}", content=DATASET, headers=theirs).status_code == 201
    same = http.post("/api/v1/jobs", json={"spec": plain_spec()}, headers=theirs)
    assert (first.status_code, same.status_code) == (201, 201)
    assert first.json()["id"] != same.json()["id"]
    again = http.post("/api/v1/jobs", json={"spec": plain_spec()}, headers=theirs)
    assert (again.status_code, again.json()["id"]) == (200, same.json()["id"])


def test_a_repeated_submission_is_answered_whatever_has_changed(site: Site, http: TestClient) -> None:
    """The data set is gone by now; the job is there all the same."""
    digest = site.upload(b"short-lived")
    body = {"spec": plain_spec(datasets=[{"path": digest, "file_format": "jsonl"}])}
    first = http.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    site.store.delete(digest)
    again = http.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert http.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "other"}).status_code == 422


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é".encode(), b"\x7f"])
def test_a_key_that_is_none(http: TestClient, key: str | bytes) -> None:
    """A key is visible ASCII."""
    answer = http.post("/api/v1/jobs", json={"spec": plain_spec()}, headers={"Idempotency-Key": key})  # type: ignore[dict-item]
    assert "header.Idempotency-Key" in problems(answer, "invalid_request")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_request"),
        (b"{", "invalid_request"),
        (b"[]", "invalid_request"),
        (b"\xff\xfe", "invalid_request"),
        (b'{"spec": 1}', "invalid_request"),
        (b'{"spec": {}, "extra": 1}', "invalid_request"),
        (b'{"spec": {}}', "invalid_job"),
        (b'{"spec": {"name": NaN}}', "invalid_job"),
        (b'{"spec": {"name": "\\ud800"}}', "invalid_job"),
        (b'{"spec": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "invalid_request"),
        (b"[" * 200_000, "invalid_request"),
    ],
)
def test_bodies_that_are_no_submission(http: TestClient, content: bytes, code: str) -> None:
    """Each has its code; none is a 500, and no job is made."""
    answer = http.post("/api/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    problems(answer, code)
    assert http.get("/api/v1/jobs").json()["jobs"] == []


def test_every_problem_of_a_job_at_once(http: TestClient) -> None:
    """What the contract sees, all of it."""
    answer = http.post("/api/v1/jobs", json={"spec": {**plain_spec(rank=0, learning_rate=-1, nmae="x"), "name": "No"}})
    assert answer.status_code == 422
    assert {"rank", "learning_rate", "nmae", "name"} <= set(problems(answer, "invalid_job"))


def test_what_the_server_sees_is_told_at_once_too(http: TestClient, site: Site) -> None:
    """Every data set that is missing, local or empty, the policy's refusals, and the words that cannot be."""
    empty = site.upload(b"")
    missing = [digest_of(b"1"), digest_of(b"2")]
    paths = [*missing, "train.jsonl", "/etc/passwd", empty, digest_of(DATASET)]
    spec = plain_spec(
        datasets=[{"path": path, "file_format": "jsonl"} for path in paths],
        test_datasets=[{"path": missing[1], "file_format": "jsonl"}],
        base_model="./model",
        trust_remote_code=True,
        chat_template="mine.jinja",
        labels={"a": "b", "d": "e\nf"},
    )
    found = problems(http.post("/api/v1/jobs", json={"spec": spec}), "invalid_job")
    assert found == {
        "labels.d": "not printable",
        "base_model": "this server takes no models from its disks",
        "chat_template": "the server does not read the author's files",
        "datasets[0].path": "no such data set was uploaded",
        "datasets[1].path": "no such data set was uploaded",
        "datasets[2].path": "the server does not read the author's files",
        "datasets[3].path": "the server does not read the author's files",
        "datasets[4].path": "the data set is empty",
        "test_datasets[0].path": "no such data set was uploaded",
        "trust_remote_code": "this server runs no code that comes with a model",
    }


def test_the_policy_refuses_what_is_right_otherwise(http: TestClient) -> None:
    """With its own code and status, as nothing is wrong with the file."""
    answer = http.post("/api/v1/jobs", json={"spec": plain_spec(base_model="/models/m.GGUF", trust_remote_code=True)})
    assert answer.status_code == 403
    assert set(problems(answer, "policy_refused")) == {"base_model", "trust_remote_code"}


def test_the_policy_may_allow_it(engine: Engine) -> None:
    """Where the operator says so."""
    site = Site(engine, policy=Policy(allow_local_models=True, allow_remote_code=True))
    with TestClient(site.app(), headers=site.bearer()) as http:
        assert submit(http, base_model="/models/m.gguf", trust_remote_code=True)
        relative = http.post("/api/v1/jobs", json={"spec": plain_spec(base_model="models/m.gguf")})
        assert "absolute" in problems(relative, "invalid_job")["base_model"]


@pytest.mark.parametrize(
    ("method", "path", "role", "status"),
    [
        ("POST", "/api/v1/jobs", "read", 403),
        ("POST", "/api/v1/jobs", None, 401),
        ("GET", "/api/v1/jobs", None, 401),
        ("GET", "/api/v1/jobs/{id}", None, 401),
        ("GET", "/api/v1/jobs/{id}/events", None, 401),
        ("GET", "/api/v1/jobs/{id}/metrics/loss", None, 401),
        ("POST", "/api/v1/jobs/{id}/cancel", "read", 403),
        ("POST", "/api/v1/jobs/{id}/cancel", None, 401),
        ("GET", "/api/v1/jobs", "read", 200),
        ("GET", "/api/v1/jobs/{id}", "read", 200),
        ("GET", "/api/v1/jobs/{id}/events", "read", 200),
        ("POST", "/api/v1/jobs/{id}/cancel", "admin", 200),
        ("GET", "/api/v1/attempts/{id}/1/task", "admin", 401),
    ],
)
def test_who_may_do_what(http: TestClient, site: Site, method: str, path: str, role: str | None, status: int) -> None:
    """Reading needs a reader, changing a writer; an admin may both; none of them is a worker."""
    job_id = submit(http)
    headers = site.bearer(role) if role else {"Authorization": ""}
    body = {"spec": plain_spec()} if path.endswith("/jobs") and method == "POST" else None
    answer = http.request(method, path.format(id=job_id), headers=headers, json=body)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("job_id", ["job-" + "0" * 26, "nonsense", "..%2f..", "job-" + "0" * 26 + "%0a"])
def test_a_job_that_is_not_there(http: TestClient, job_id: str) -> None:
    """Well formed or not, it is not there."""
    for answer in (
        http.get(f"/api/v1/jobs/{job_id}"),
        http.get(f"/api/v1/jobs/{job_id}/events"),
        http.post(f"/api/v1/jobs/{job_id}/cancel"),
    ):
        assert answer.status_code == 404
        assert answer.json()["code"] in ("job_not_found", "not_found")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=x", "state=lost", "after=x", "label=a", "label==b", "label=a%3D", "label=a%3Db%00", "label=%00",
        "limit=99999999999999999999", "&".join(["label=a%3Db"] * 17),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_asked_for(http: TestClient, query: str) -> None:
    """Each is refused by name."""
    answer = http.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 422
    problems(answer, "invalid_request")


@pytest.mark.parametrize(
    "query", ["after=-1", "after=2147483648", "limit=0", "limit=1001", "wait_seconds=31", "wait_seconds=nan", "wait_seconds=-1"]
)
def test_logs_that_cannot_be_asked_for(http: TestClient, query: str) -> None:
    """Each is refused by name, at once."""
    problems(http.get(f"/api/v1/jobs/{submit(http)}/events?{query}"), "invalid_request")


def test_lists_are_paged(http: TestClient) -> None:
    """Newest first, every job once, by label and state."""
    ids = [submit(http, labels={"parity": str(n % 2), "kind": "k"}) for n in range(5)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = http.get("/api/v1/jobs", params=query).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            break
        query["after"] = page["next_cursor"]
    assert sorted(seen) == sorted(ids)
    assert seen == sorted(seen, reverse=True)
    odd = http.get("/api/v1/jobs", params={"label": ["parity=1", "kind=k"], "state": "queued"}).json()["jobs"]
    assert {job["id"] for job in odd} == {ids[1], ids[3]}


def test_cancel_a_queued_job(http: TestClient) -> None:
    """At once, and harmless to repeat."""
    job_id = submit(http)
    for _ in range(2):
        answer = http.post(f"/api/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    events = http.get(f"/api/v1/jobs/{job_id}/events").json()
    assert [record["event"]["state"] for record in events["records"]] == ["queued", "cancelled"]
    assert events["state"] == "cancelled"


def test_metrics_are_one_value_a_step(http: TestClient, site: Site) -> None:
    """In pages by step."""
    job_id = submit(http)
    claimed = claim(site.engine, (now() - claim_epoch()).total_seconds())
    assert claimed is not None
    worker = {"Authorization": f"Bearer {claimed[1]}"}
    body = batch(0, 1, 2, 3).model_dump(mode="json")
    assert http.post(f"/api/v1/attempts/{job_id}/1/events", json=body, headers=worker).status_code == 204
    points = http.get(f"/api/v1/jobs/{job_id}/metrics/loss", params={"after": 1}).json()["points"]
    assert points == [{"step": 2, "value": 1.0}, {"step": 3, "value": 1.0}]
    assert http.get(f"/api/v1/jobs/{job_id}/metrics/unknown").json()["points"] == []
    assert http.get(f"/api/v1/jobs/{job_id}/metrics/No-Name").status_code == 422


def claim_epoch() -> Any:
    """The tests' beginning of time, which :func:`claim` counts from."""
    from tests.orchestrator.samples import NOW

    return NOW


def test_a_store_that_fails_is_told_by_name(engine: Engine) -> None:
    """Not as a job's problem, and not as a crash."""

    site = Site(engine)
    site.services = type(site.services)(engine=engine, store=BrokenStore(), clock=now)
    with TestClient(site.app(), headers=site.bearer()) as http:
        answer = http.post("/api/v1/jobs", json={"spec": plain_spec()})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    problems(answer, "storage_unavailable")


class BrokenStore:
    """A store whose disk is gone."""

    def has(self, digest: str) -> int | None:
        from wegeft.contracts.errors import StorageUnavailable

        raise StorageUnavailable("the folder is gone", path=digest)

    def put(self, digest: str, source: io.BufferedIOBase, size: int | None = None) -> int:
        raise NotImplementedError
