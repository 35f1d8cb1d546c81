"""The application over a real socket: long bodies, bodies and answers that are cut, and nonsense."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import httpx2
import pytest

from infra.bodies import MAX_BODY_BYTES
from tests.infra.test_http import HOLDER, LIMIT, body_of, make_app
from tests.orchestrator.serving import listening


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The application over a real socket."""
    with listening(make_app()) as url:
        yield url


@pytest.fixture
def wire(url: str) -> Iterator[httpx2.Client]:
    """A caller over a real socket."""
    with httpx2.Client(base_url=url, headers=HOLDER, trust_env=False, timeout=30) as client:
        yield client


def in_chunks(size: int) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(size >> 20):
        yield bytes(1 << 20)


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_long_body_is_streamed(wire: httpx2.Client, is_announced: bool) -> None:
    """To an endpoint that says so, up to a limit of its own; the others have theirs."""
    content = bytes(LIMIT) if is_announced else in_chunks(LIMIT)
    answer = wire.put("/api/v1/stream", content=content)
    digest = hashlib.sha256(bytes(LIMIT)).hexdigest()
    assert answer.json() == {"size": LIMIT, "digest": digest, "announced": LIMIT if is_announced else None}
    too_long = bytes(LIMIT + 1) if is_announced else in_chunks(LIMIT + (1 << 20))
    assert body_of(wire.put("/api/v1/stream", content=too_long), 413).code == "too_large"
    long = bytes(MAX_BODY_BYTES + 1) if is_announced else in_chunks(MAX_BODY_BYTES + (1 << 20))
    assert body_of(wire.post("/api/v1/notes", content=long, headers={"Content-Type": "application/json"}), 413).code == "too_large"
    assert wire.put("/api/v1/stream", content=b"").json()["size"] == 0


def test_a_body_that_is_cut_stores_nothing_and_breaks_nothing(url: str, wire: httpx2.Client) -> None:
    """The peer announces more than it sends, and is gone."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"PUT /api/v1/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)
    assert wire.get("/healthz").status_code == 200


def test_an_answer_that_goes_wrong_half_way_is_cut(wire: httpx2.Client) -> None:
    """So that nobody takes the half for the whole."""
    with pytest.raises(httpx2.RemoteProtocolError):
        wire.get("/api/v1/cut")
    assert wire.get("/healthz").status_code == 200


@pytest.mark.parametrize("line", [b"GET / HTTP/9.9", b"\x00\x01\x02", b"GET /%zz HTTP/1.1\r\nHost: x", b"G" * 100_000])
def test_nonsense_on_the_wire_breaks_nothing(url: str, wire: httpx2.Client, line: bytes) -> None:
    """Whatever is sent, the next request is answered."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(line + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)
        except OSError:
            pass
    assert wire.get("/healthz").status_code == 200
