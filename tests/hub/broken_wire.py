"""A TCP relay that misbehaves on demand: it cuts connections, is silent, or answers nonsense, in front of a real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Wire:
    """What the relay does with the connections to come."""

    port: int = 0
    cuts: list[int] = field(default_factory=list)
    """For each of the next connections that answers so much: after how many bytes of answer it is cut."""
    answer: bytes | None = None
    """What every request is answered instead before the connection is closed; b"" is silence."""
    requests: list[bytes] = field(default_factory=list)
    """The first packet of each connection's requests."""


@contextmanager
def broken_wire(server_port: int) -> Iterator[Wire]:
    """Relay a free port of 127.0.0.1 to ``server_port``."""
    wire = Wire()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire.port = listener.getsockname()[1]
        opened: list[socket.socket] = [listener]
        thread = threading.Thread(target=_accept, args=(listener, server_port, wire, opened), daemon=True)
        thread.start()
        try:
            yield wire
        finally:
            for each in opened:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            thread.join(timeout=10)


def _accept(listener: socket.socket, server_port: int, wire: Wire, opened: list[socket.socket]) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", server_port))
            opened += [client, server]
            threading.Thread(target=_forward, args=(client, server, wire), daemon=True).start()
            threading.Thread(target=_answer, args=(server, client, wire), daemon=True).start()


def _forward(client: socket.socket, server: socket.socket, wire: Wire) -> None:
    with suppress(OSError):
        while packet := client.recv(65_536):
            wire.requests.append(packet)
            if wire.answer is None:
                server.sendall(packet)
            elif wire.answer:
                client.sendall(wire.answer)
                client.shutdown(socket.SHUT_WR)
        server.shutdown(socket.SHUT_WR)


def _answer(server: socket.socket, client: socket.socket, wire: Wire) -> None:
    sent = 0
    with suppress(OSError):
        while packet := server.recv(65_536):
            sent += len(packet)
            if wire.cuts and sent >= wire.cuts[0]:
                client.sendall(packet[: len(packet) - (sent - wire.cuts.pop(0))])
                break
            client.sendall(packet)
    with suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    client.close()
    server.close()
