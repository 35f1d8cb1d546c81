"""``wgctl`` in processes of its own that start at once: forks of one process that has imported everything.

Each is a process like any other, with its own arguments, environment, folder, standard streams and exit status, and comes to its end as
any other does. Only the second that the interpreter takes to import what every command needs is spent once a session, not once a command.
What must hold from the very start of the real program (what it imports, how it dies, what its terminal shows) is tested with that program.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

_REQUEST_BYTES = 1 << 20


@dataclass(frozen=True)
class ForkServer:
    """A process that forks; it ends with the process that started it, however that one ends."""

    requests: socket.socket
    process: subprocess.Popen[bytes] = field(repr=False)

    def run(
        self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdin: str, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``wgctl`` to its end as :func:`subprocess.run` would; raise :class:`subprocess.TimeoutExpired`, its process killed."""
        command = ["wgctl", *arguments]
        given = json.dumps({"arguments": command, "env": dict(env), "cwd": str(cwd)}).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            source.write(stdin.encode())
            source.seek(0)
            with theirs:
                socket.send_fds(self.requests, [given], [source.fileno(), out.fileno(), err.fileno(), theirs.fileno()])
            status = _await_end(ours, command, timeout)
            texts = [file.read().decode() for file in (out, err) if file.seek(0) == 0]
        return subprocess.CompletedProcess(command, status, *texts)


@cache
def fork_server() -> ForkServer:
    """Return this process's fork server, started at the first call."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.set_inheritable(True)
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    return ForkServer(ours, process)


def _await_end(ours: socket.socket, command: list[str], timeout: float) -> int:
    ours.settimeout(timeout)
    pid = 0
    try:
        pid = int(ours.recv(64) or 0)
        return os.waitstatus_to_exitcode(int(ours.recv(64)))
    except TimeoutError:
        if pid:
            os.kill(pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired(command, timeout) from None


def _serve(requests: socket.socket) -> Callable[[], int] | None:
    """Fork for each request; return in a fork what it has to do, and in the server nothing, when nobody can ask any more."""
    while True:
        content, streams, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        if not content:
            return None
        if os.fork() == 0:
            requests.close()
            return _supervise(json.loads(content), streams)
        for stream in streams:
            os.close(stream)


def _supervise(request: dict[str, object], streams: list[int]) -> Callable[[], int]:
    """Fork once more, and tell whoever asked which process it is and how it ended: this process has nothing else to do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the server's own children are nobody's to wait for
    pid = os.fork()
    if pid == 0:
        os.close(streams.pop())
        return _become(request, streams)
    with socket.socket(fileno=streams.pop()) as asked:
        asked.send(str(pid).encode())
        asked.send(str(os.waitpid(pid, 0)[1]).encode())
    os._exit(0)


def _become(request: dict[str, object], streams: list[int]) -> Callable[[], int]:
    """Take the process's place in the world, and return what it runs."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]  # JSON of our own
    os.chdir(str(request["cwd"]))
    sys.argv = list(request["arguments"])  # type: ignore[call-overload]  # JSON of our own
    from cli.main import main

    return main


def _prepare() -> None:
    """Import what commands import sooner or later, except what starts threads or reads its settings when it is imported."""
    from cli.main import COMMANDS, load_command

    for module in ("cli.failures", "infra.settings", "wegeft.client", "wegeft.client.federation", "wegeft.client.site"):
        import_module(module)
    for name in COMMANDS:
        load_command(name)


if __name__ == "__main__":
    _prepare()
    gc.freeze()  # so that no fork copies the pages of what it shares only to look for garbage in it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    work = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(work() if work else 0)
