"""A hub in a process of its own, started as `wgctl serve` starts it, for benchmarks; and what its process takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from cli.home import Home
from tests.servers import S3Server, free_ports


@dataclass(frozen=True)
class HubProcess:
    """A hub that answers."""

    url: str
    token: str
    pid: int

    def peak_mebibytes(self) -> float:
        """Return the peak resident memory of its process so far, in MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def s3_settings(server: S3Server, public: str | None = None) -> dict[str, str]:
    """Return the settings of a hub whose store is a new bucket; ``public``: the address that clients are sent to."""
    found = {
        "WEGEFT_STORE": f"s3://{server.new_bucket()}",
        "WEGEFT_S3_ENDPOINT": server.endpoint,
        "WEGEFT_S3_ACCESS_KEY": server.access_key,
        "WEGEFT_S3_SECRET_KEY": server.secret_key,
    }
    return found | ({"WEGEFT_S3_PUBLIC_ENDPOINT": public} if public else {})


@contextmanager
def running_hub(folder: Path, **settings: str) -> Iterator[HubProcess]:
    """Run a hub with SQLite and, unless the settings say otherwise, blobs in ``folder``; end it by SIGTERM."""
    [port] = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WEGEFT_")}
    own = {"WEGEFT_HOME": str(folder), "WEGEFT_PORT": str(port), "WEGEFT_LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "cli.main", "serve", "--only", "hub"]
    url = f"http://127.0.0.1:{port}"
    with (folder / "bench.log").open("wb") as log, answering(command, f"{url}/healthz", log, clean | own | settings) as process:
        yield HubProcess(url, Home(folder).read_token() or "", process.pid)


@contextmanager
def answering(command: list[str], ready: str, log: object, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers at ``ready`` and to the end of the block."""
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # type: ignore[call-overload]
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended before it answered; its log is {getattr(log, 'name', '')}")
            with suppress(httpx2.HTTPError):
                if httpx2.get(ready, timeout=5, trust_env=False).status_code == 200:
                    break
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)
