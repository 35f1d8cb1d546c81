"""A reader that takes hardly anything is cut off; one that is only slow has its whole answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import APIRouter, Response

from cli.connections import ImpatientProtocol
from cli.listening import run_http
from infra.http import create_app

SIZE = 6 << 20
SECONDS = 0.4
LEAST = 20_000


def make_app() -> object:
    router = APIRouter()

    @router.get("/file")
    async def get_file() -> Response:
        return Response(bytes(SIZE))

    return create_app([router], title="t", version="1")


@pytest.fixture(scope="module", params=[LEAST, 0])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A port, and the least rate there."""

    class Watching(ImpatientProtocol):
        reader_seconds = SECONDS
        least_bytes_a_second = request.param

    config = uvicorn.Config(make_app(), log_config=None, lifespan="off", http=Watching)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield int(listener.getsockname()[1]), request.param
        server.should_exit = True
        thread.join(20)


def begun(port: int) -> socket.socket:
    """A reader with little room of its own that has asked."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", port))
    connection.sendall(b"GET /file HTTP/1.1\r\nHost: here\r\n\r\n")
    return connection


def read_all(connection: socket.socket, pause_seconds: float) -> int:
    """Return how many bytes come, up to the whole body."""
    seen = 0
    try:
        while seen < SIZE and (part := connection.recv(1 << 18)):
            seen += len(part)
            time.sleep(pause_seconds)
    except ConnectionResetError:
        pass
    return seen


def test_whoever_reads_nothing_is_cut_off(served: tuple[int, int]) -> None:
    port, least = served
    with begun(port) as connection:
        time.sleep(4 * SECONDS)
        seen = read_all(connection, 0)
    assert (seen < SIZE) if least else (seen >= SIZE)


def test_whoever_reads_steadily_is_not(served: tuple[int, int]) -> None:
    """For longer than it is looked at, and with pauses."""
    port, _ = served
    with begun(port) as connection:
        assert read_all(connection, 0.002) >= SIZE


@pytest.mark.parametrize("rate", [0, 777])
def test_the_service_cuts_off_whom_its_operator_says(monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    """What serves its connections is what is watched above, at the rate that the settings name."""
    served: list[object] = []

    def note(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        served.extend((server.config.http, sockets))
        server.started = True

    monkeypatch.setattr(uvicorn.Server, "run", note)
    with socket.socket() as listener:
        run_http(create_app([], title="t", version="1"), listener, lambda: None, rate)
        assert served[1] == [listener]
    protocol = served[0]
    assert isinstance(protocol, type)
    assert issubclass(protocol, ImpatientProtocol)
    assert protocol.least_bytes_a_second == rate
