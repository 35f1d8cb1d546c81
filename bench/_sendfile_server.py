"""The plainest server of one file: each GET is answered by the kernel's sendfile; a yardstick where nginx is not installed.

python -m bench._sendfile_server FILE PORT
"""

import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path


def serve(path: Path, port: int) -> None:
    """Answer every request on every connection with the whole file."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            threading.Thread(target=_answer, args=(listener.accept()[0], path), daemon=True).start()


def _answer(connection: socket.socket, path: Path) -> None:
    with connection, suppress(OSError):
        while b"\r\n\r\n" in connection.recv(65_536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % path.stat().st_size)
            with path.open("rb") as file:
                connection.sendfile(file)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
