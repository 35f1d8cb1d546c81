"""Connections over which no request comes are given up; the others are not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from cli.connections import ImpatientProtocol
from infra.http import create_app

HEAD_SECONDS = 0.4
HEAD = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    class VeryImpatient(ImpatientProtocol):
        head_seconds = HEAD_SECONDS

    config = uvicorn.Config(create_app([], title="t", version="1"), log_config=None, lifespan="off", http=VeryImpatient)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join(20)


def ask(connection: socket.socket) -> bytes:
    connection.sendall(HEAD)
    answer = b""
    while not answer.endswith(b"}"):
        part = connection.recv(1 << 16)
        assert part, answer
        answer += part
    return answer


def trickle(connection: socket.socket) -> None:
    for byte in b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(HEAD_SECONDS / 10)


@pytest.mark.parametrize("sent", [b"", b"G", HEAD[:-2]])
def test_a_head_that_does_not_come_is_not_waited_for(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        assert connection.recv(1 << 16) == b""


def test_a_head_that_trickles_is_not_waited_for(port: int) -> None:
    """Neither the first of a connection nor a later one."""
    for number in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            for _ in range(number):
                assert ask(connection).startswith(b"HTTP/1.1 200")
            with pytest.raises(OSError):  # noqa: PT011 - a reset, or a broken pipe
                trickle(connection)


def test_a_connection_goes_on_as_long_as_requests_come(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(4):
            assert ask(connection).startswith(b"HTTP/1.1 200")
            time.sleep(HEAD_SECONDS / 2)
