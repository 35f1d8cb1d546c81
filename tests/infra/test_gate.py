"""What is refused before a body is read, and what slow and long bodies may cost the others."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from hub import catalog
from infra.auth import create_token, revoke_token
from infra.bodies import MAX_BODY_BYTES, MAX_REPORT_BYTES, MAX_STREAMS, STREAMS_A_SENDER
from infra.database import reading, writing
from infra.gate import Gate, loopback_hosts
from infra.http import create_app
from infra.known_tokens import REMEMBERED_SECONDS, KnownTokens
from orchestrator.attempts_api import check_attempt
from tests.infra.test_http import HOLDER, body_of, make_app
from tests.orchestrator.samples import NOW, new_sqlite
from tests.orchestrator.serving import Site, listening
from tests.orchestrator.working import claim, queue
from wegeft.contracts.adapter import digest_of

SHORT_SECONDS = 1.0
IDLE_UPLOADS = 60
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The real application's parts."""
    engine = new_sqlite(tmp_path / "a.db")
    yield Site(engine)
    engine.dispose()


def send(url: str, head: str, headers: dict[str, str], body: bytes = b"") -> socket.socket:
    """Begin a request by hand: what comes after is up to the caller."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    lines = [head, *(f"{name}: {value}" for name, value in ({"Host": "127.0.0.1"} | headers).items()), "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def answer_of(connection: socket.socket) -> bytes:
    """A whole answer, which ends with a JSON object."""
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(1 << 16)
        assert part, answer
        answer += part
    return answer


def status_of(connection: socket.socket) -> int:
    """The status that was answered."""
    return int(answer_of(connection).split(b" ")[1])


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def count_blobs(site: Site) -> int:
    """How many blobs are stored or on their way; one is the site's own."""
    with reading(site.engine) as connection:
        return catalog.take_stock(connection, NOW).blobs


def test_idle_uploads_leave_the_others_their_threads(site: Site) -> None:
    """Many are begun and none goes on; everybody else is answered as ever."""
    with writing(site.engine) as connection:
        tokens = [create_token(connection, f"idle {number}", "write", NOW)[1] for number in range(MAX_STREAMS // STREAMS_A_SENDER)]
    with listening(site.app()) as url, ExitStack() as opened, httpx2.Client(base_url=url, trust_env=False, timeout=20) as http:
        for number in range(IDLE_UPLOADS):
            head = f"PUT /api/v1/blobs/{digest_of(bytes([number]))} HTTP/1.1"
            headers = {"Authorization": f"Bearer {tokens[number % len(tokens)]}", "Content-Length": "10"}
            opened.enter_context(send(url, head, headers))
        wait_until(lambda: count_blobs(site) > MAX_STREAMS)
        # Were their threads taken, no answer would come before the idle ones are given up, which the client does not wait for.
        for _ in range(3):
            assert http.get("/healthz").status_code == 200
            assert http.get("/api/v1/whoami", headers=site.bearer()).status_code == 200


def test_more_uploads_than_slots_all_end(site: Site) -> None:
    """Those that find no slot wait for one."""
    head = f"PUT /api/v1/blobs/{DIGEST} HTTP/1.1"
    with listening(site.app()) as url, ExitStack() as opened:
        connections = [opened.enter_context(send(url, head, {**site.bearer(), "Content-Length": "10"})) for _ in range(MAX_STREAMS + 4)]
        for connection in connections:
            connection.sendall(b"0123456789")
        assert {status_of(connection) for connection in connections} == {422}


def test_one_account_does_not_hold_every_slot(site: Site) -> None:
    """However many uploads one begins and lets stand, and with however many tokens, another's goes on."""
    content = b"another's"
    with writing(site.engine) as connection:
        tokens = [create_token(connection, "the writer" if number else "The Writer", "write", NOW)[1] for number in range(MAX_STREAMS)]
    with listening(site.app()) as url, ExitStack() as opened, httpx2.Client(base_url=url, trust_env=False, timeout=20) as http:
        for number in range(2 * MAX_STREAMS):
            head = f"PUT /api/v1/blobs/{digest_of(bytes([number]))} HTTP/1.1"
            headers = {"Authorization": f"Bearer {tokens[number % len(tokens)]}", "Content-Length": "10"}
            opened.enter_context(send(url, head, headers, b"0"))
        wait_until(lambda: count_blobs(site) > STREAMS_A_SENDER)
        answer = http.put(f"/api/v1/blobs/{digest_of(content)}", content=content, headers=site.bearer("admin"))
    assert answer.status_code == 201


def test_a_share_lasts_as_long_as_it_is_needed(site: Site) -> None:
    """The uploads of one token that find no slot of their share wait for one, and all end."""
    head = f"PUT /api/v1/blobs/{DIGEST} HTTP/1.1"
    with listening(site.app()) as url, ExitStack() as opened:
        for _ in range(2):
            connections = [
                opened.enter_context(send(url, head, {**site.bearer(), "Content-Length": "10"})) for _ in range(2 * STREAMS_A_SENDER)
            ]
            for connection in reversed(connections):
                connection.sendall(b"0123456789")
            assert {status_of(connection) for connection in connections} == {422}


@pytest.mark.parametrize(("method", "path"), [("PUT", "/api/v1/stream"), ("POST", "/api/v1/notes")])
def test_a_body_that_does_not_come_is_not_waited_for(method: str, path: str) -> None:
    """Whether it is streamed or read whole: after a while the peer is told so, and the connection is free."""
    headers = {**HOLDER, "Content-Length": "100", "Content-Type": "application/json"}
    with listening(make_app(gate=Gate(body_seconds=SHORT_SECONDS))) as url:
        started = time.monotonic()
        with send(url, f"{method} {path} HTTP/1.1", headers, b"{") as connection:
            answer = answer_of(connection)
        assert time.monotonic() - started >= SHORT_SECONDS
    assert answer.startswith(b"HTTP/1.1 504")
    assert b'"service_timeout"' in answer


@pytest.mark.parametrize(("method", "path", "is_let_through"), [("PUT", "/api/v1/stream", True), ("POST", "/api/v1/notes", False)])
def test_a_body_that_trickles(method: str, path: str, is_let_through: bool) -> None:
    """May take its time where it is streamed, and only so long where it is read whole."""
    body = b'{"count":      1}'
    headers = {**HOLDER, "Content-Length": str(len(body)), "Content-Type": "application/json"}
    with listening(make_app(gate=Gate(body_seconds=SHORT_SECONDS))) as url, send(url, f"{method} {path} HTTP/1.1", headers) as connection:
        try:
            for number in range(len(body)):
                connection.sendall(body[number : number + 1])
                time.sleep(SHORT_SECONDS / 8)
        except OSError:
            assert not is_let_through
        assert status_of(connection) == (200 if is_let_through else 504)


BAD_HEADERS: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer x"},
    {"Authorization": f"Basic {HOLDER['Authorization'].split()[1]}"},
    {"Authorization": HOLDER["Authorization"][:-1]},
]


@pytest.mark.parametrize("headers", BAD_HEADERS)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/v1/notes"), ("PUT", "/api/v1/notes"), ("PATCH", "/api/v1/notes"), ("POST", "/api/models/a/b/paths-info/main")],
)
def test_a_body_without_a_token_is_not_read(method: str, path: str, headers: dict[str, str]) -> None:
    """The refusal comes while the body is yet to come, in every dialect."""
    sent = {**headers, "Content-Length": "1000000", "Content-Type": "application/json"}
    with listening(make_app()) as url, send(url, f"{method} {path} HTTP/1.1", sent) as connection:
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b'"unauthenticated"' in answer
    assert b"www-authenticate: Bearer" in answer


def test_a_body_in_chunks_without_a_token_is_not_read() -> None:
    """The same where the peer does not say how long it is."""
    with TestClient(make_app()) as http:
        body = body_of(http.post("/api/v1/notes", content=iter([b"{", b"}"])), 401)
    assert body.code == "unauthenticated"


@pytest.mark.parametrize("token", [f"wgt_{'0' * 12}_{'a' * 64}", f"wga_{'a' * 64}"])
def test_tokens_of_both_kinds_pass_the_gate(token: str) -> None:
    """Whether they are good is asked later, unless the gate knows."""
    with TestClient(make_app(), headers={"Authorization": f"bearer {token}"}) as http:
        assert http.post("/api/v1/notes", json={"count": 1}).status_code == 200


def test_a_body_with_a_token_that_is_no_good_is_not_read(site: Site) -> None:
    """One that looks right is not enough: unknown, wrong, expired and revoked ones are refused while the body is yet to come."""
    moments = [NOW]
    with writing(site.engine) as connection:
        expiring = create_token(connection, "expiring", "write", NOW, NOW + timedelta(seconds=60))[1]
        revoked_id, revoked = create_token(connection, "revoked", "write", NOW)
    good = site.tokens["write"]
    knows = KnownTokens(site.engine, lambda: moments[-1], check_attempt)
    tokens = [good, expiring, revoked, good[:-1] + ("0" if good[-1] != "0" else "1"), f"wgt_{'0' * 12}_{'a' * 64}", f"wga_{'a' * 64}"]
    with TestClient(make_app(gate=Gate(knows=knows))) as http:

        def is_refused(token: str) -> bool:
            answer = http.post("/api/v1/notes", json={"count": 1}, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in (200, 401)
            return answer.status_code == 401

        assert [is_refused(token) for token in tokens] == [False, False, False, True, True, True]
        with writing(site.engine) as connection:
            revoke_token(connection, revoked_id, NOW)
        moments.append(NOW + timedelta(seconds=60))
        assert [is_refused(token) for token in tokens[:3]] == [False, True, True]


def test_an_attempts_token_opens_its_own_paths_alone(site: Site) -> None:
    """Known or not, at another attempt's address or any other it is no good; a hub alone knows none."""
    queue(site)
    queue(site)
    first, second = claim(site, None), claim(site, None)
    paths = [f"/api/v1/attempts/{worker.lease.job_id}/1/events" for worker in (first, second)]
    knows = KnownTokens(site.engine, lambda: NOW, check_attempt)
    for _ in range(2):
        assert [knows(first.token, path) for path in (*paths, "/api/v1/jobs", "/api/v1/attempts/x/y/events")] == [True, False, False, False]
    assert not KnownTokens(site.engine, lambda: NOW)(first.token, paths[0])


def test_a_known_token_is_looked_up_once(site: Site) -> None:
    """For a few seconds, so that many bodies of one caller cost one look."""
    looks, moments = [], [NOW]
    event.listen(site.engine, "begin", looks.append)
    knows = KnownTokens(site.engine, lambda: moments[-1])
    assert [knows(site.tokens["write"], "/api/v1/jobs") for _ in range(5)] == [True] * 5
    assert len(looks) == 1
    moments.append(NOW + timedelta(seconds=REMEMBERED_SECONDS))
    assert knows(site.tokens["write"], "/api/v1/jobs")
    assert len(looks) == 2


@pytest.mark.parametrize(("name", "limit"), [("heartbeat", MAX_BODY_BYTES), ("events", MAX_REPORT_BYTES)])
def test_only_reports_of_workers_may_be_long(site: Site, name: str, limit: int) -> None:
    """A batch that holds the events of an outage is let through; a byte over the limit is not."""
    headers = {"Authorization": f"Bearer wga_{'a' * 64}", "Content-Type": "application/json"}
    path = f"/api/v1/attempts/01JD7Z0000000000000000000A/1/{name}"
    with TestClient(site.app(), headers=headers) as http:
        assert http.post(path, content=b" " * (limit + 1)).status_code == 413
        assert http.post(path, content=b" " * limit).status_code != 413


HOSTS = loopback_hosts("127.0.0.1", ("http://127.0.0.1:8400", "https://Hub.example.org:8443"))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8400", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8400", "hub.example.org", "hub.example.org:80"]
)
def test_the_services_own_names(host: str) -> None:
    """With any port, since a tunnel may have another."""
    with TestClient(make_app(gate=Gate(hosts=HOSTS)), headers={"Host": host}) as http:
        assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8400", "localhost.evil.example", "127.0.0.1.evil.example", "", "::1", "a:b"]
)
def test_names_that_lead_here_from_elsewhere(host: str) -> None:
    """A page whose name was made to point to this machine learns nothing, whatever it asks."""
    with TestClient(make_app(gate=Gate(hosts=HOSTS)), headers={"Host": host}) as http:
        for path in ("/healthz", "/metrics", "/api/v1/openapi.json"):
            body = body_of(http.get(path), 422)
            assert (body.code, body.problems[0].path) == ("invalid_request", "host")


@pytest.mark.parametrize(
    ("host", "is_checked"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("hub", False)],
)
def test_names_are_checked_on_loopback_alone(host: str, is_checked: bool) -> None:
    """Elsewhere a service has names that it does not know."""
    assert (loopback_hosts(host, ()) is not None) == is_checked


def test_any_name_will_do_where_none_are_given() -> None:
    """As behind a proxy."""
    options: dict[str, Any] = {"title": "t", "version": "1"}
    with TestClient(create_app([], **options), headers={"Host": "anything.example"}) as http:
        assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("federation/updates", {}, 401),
        ("federation/updates", {"Authorization": f"Bearer wgt_{'0' * 12}_{'0' * 64}"}, 401),
        ("federation/updates", {"Wegeft-Signature": f"ed25519:{'0' * 128}"}, 404),
        ("federation/enrolments", {}, 404),
        ("federation/enrolments/", {}, 401),
        ("jobs", {"Wegeft-Signature": f"ed25519:{'0' * 128}"}, 401),
    ],
)
def test_sites_sign_what_they_send_and_need_a_token_nowhere(path: str, headers: dict[str, str], status: int) -> None:
    with TestClient(create_app([], title="test", version="1", gate=Gate())) as client:
        assert client.post(f"/api/v1/{path}", content=b"{}", headers=headers).status_code == status
