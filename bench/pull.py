"""A verified pull of 1 MB takes at most three round trips and at most twice as long as a bare presigned S3 GET, and 1 GiB streams at 0.8
of the speed of sendfile or more, or from the store itself, in constant memory.

    python -m bench.pull                       # both; the stream needs 7 GiB of disk, seven times --large-mib
    python -m bench.pull --large-mib 0         # only the pulls of 1 MB

The hub runs in a process of its own, as `wgctl serve` starts it, on SQLite, with SeaweedFS as its S3 server. A pull is the client
library's ``Client.download``, which is what `wgctl adapters download` calls: signature, manifest and every byte verified, files synced to
the disk, the folder renamed into its place. Round trips are counted by a proxy in front of the hub; those of TCP are not. The bare GET is
one request on an open connection, its bytes held in memory or written to a synced file, and nothing verified. Kinds take each other's
place turn by turn, so that whatever else the machine does falls on all alike.

Streams are drained and thrown away, so that servers are compared and not disks; the verified pull is told beside them. The yardstick is
nginx with sendfile where it is installed, or else a socket and the kernel's sendfile, which does less than nginx does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

import httpx2

from bench._adapter_files import write_adapter
from bench._counting_proxy import counting
from bench._hub_process import HubProcess, answering, running_hub, s3_settings
from bench._memory import peak_mebibytes
from hub.s3 import S3Access, open_store
from tests.servers import S3Server, free_ports, running_s3
from wegeft.client import Client
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.pulling import MAX_FOLLOWING_BYTES

NAME, MEGABYTE = "bench/one", 10**6
_CHUNK = 1 << 20


def tell(kind: str, seconds: list[float]) -> None:
    taken = [1000 * one for one in seconds]
    print(f"  {kind:<44} ms: p50 {median(taken):7.2f}  p95 {quantiles(taken, n=20)[18]:7.2f}  least {min(taken):7.2f}", flush=True)


@dataclass(frozen=True)
class Bare:
    """One presigned address, asked again and again."""

    url: str
    http: httpx2.Client
    target: Path

    def to_memory(self) -> None:
        assert self.http.get(self.url).raise_for_status().content

    def to_disk(self) -> None:
        with self.http.stream("GET", self.url) as response, self.target.open("wb") as file:
            for chunk in response.iter_bytes(_CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())


def presigned(server: S3Server, settings: Mapping[str, str], folder: Path) -> str:
    """Return an address of the adapter's weights."""
    access = S3Access(endpoint=server.endpoint, access_key=server.access_key, secret_key=server.secret_key)
    digest = "sha256:" + hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    url = open_store(settings["WEGEFT_STORE"], access).presign(digest, 3600)
    assert url
    return url


def pulling(client: Client, folder: Path) -> Callable[[], None]:
    """Return what pulls the adapter into a new folder each time."""
    numbers = iter(range(10**9))
    return lambda: client.download(NAME, folder / str(next(numbers))) and None


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def count_round_trips(hub: HubProcess, folder: Path) -> None:
    """Print how often a pull asks and waits, when the hub is met for the first time and afterwards."""
    with counting(urlsplit(hub.url).port or 0) as front, Client(front.url, hub.token) as client:
        seen = 0
        for turn, kind in enumerate(("first pull, keys not known", "later pull")):
            client.download(NAME, folder / f"counted-{turn}")
            print(f"  round trips to the hub, {kind}: {front.round_trips - seen}", flush=True)
            seen = front.round_trips


def run_small(server: S3Server, folder: Path, turns: int) -> None:
    adapter = write_adapter(folder / "adapter", MEGABYTE)
    with ExitStack() as stack:
        through = s3_settings(server)
        led = s3_settings(server, server.endpoint) | {"WEGEFT_DIRECT_FROM_BYTES": str(MAX_FOLLOWING_BYTES // 4)}
        hubs = {
            "pulled, S3 store": running_hub(folder / "through", **through),
            "pulled, S3 store, read each time": running_hub(folder / "again", **s3_settings(server), WEGEFT_RECENT_BYTES="0"),
            "pulled, led to the S3 store": running_hub(folder / "led", **led),
            "pulled, folder": running_hub(folder / "plain"),
        }
        kinds: dict[str, Callable[[], None]] = {}
        for kind, made in hubs.items():
            hub = stack.enter_context(made)
            client = stack.enter_context(Client(hub.url, hub.token))
            client.push(adapter, NAME)
            print(f"{kind}:")
            count_round_trips(hub, folder / kind)
            kinds[kind] = pulling(client, folder / kind)
        bare = Bare(presigned(server, through, adapter), stack.enter_context(httpx2.Client(trust_env=False)), folder / "bare")
        kinds |= {"bare presigned GET, to memory": bare.to_memory, "bare presigned GET, to a synced file": bare.to_disk}
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(turns + 3):
            for kind, work in kinds.items():
                seconds = timed(work)
                if turn >= 3:
                    taken[kind].append(seconds)
    for kind, seconds in taken.items():
        tell(kind, seconds)
    for bare_kind in list(kinds)[-2:]:
        for kind in hubs:
            print(f"  {kind}, against {bare_kind}: {median(taken[kind]) / median(taken[bare_kind]):.2f} ×", flush=True)


# 1 GiB


def drain(url: str, token: str | None = None) -> float:
    """Read an address to its end, wherever it leads, and return the seconds; the token stays with the first server."""
    began, buffer = time.perf_counter(), bytearray(_CHUNK)
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=600, blocksize=_CHUNK)
    try:
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        if response.status == 302:
            drain(response.headers["Location"])
        elif response.status != 200:
            raise SystemExit(f"{url}: {response.status}")
        while response.readinto(buffer):
            pass
    finally:
        connection.close()
    return time.perf_counter() - began


@contextmanager
def sendfile(path: Path, folder: Path, nginx: str | None) -> Iterator[tuple[str, str]]:
    """Serve one file as fast as can be; give what serves it, and its address."""
    [port] = free_ports(1)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user root; events {{}}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {folder}; proxy_temp_path {folder};"
        f" fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};"
        f" server {{ listen 127.0.0.1:{port}; location = /ready {{ return 200; }} root {path.parent}; }} }}\n"
    )
    plain = [sys.executable, "-m", "bench._sendfile_server", str(path), str(port)]
    command = [nginx, "-c", str(configuration)] if nginx else plain
    with (folder / "sendfile.log").open("wb") as log, answering(command, f"http://127.0.0.1:{port}/ready", log, dict(os.environ)):
        yield ("nginx, sendfile" if nginx else "a socket and sendfile"), f"http://127.0.0.1:{port}/{path.name}"


def run_large(server: S3Server, folder: Path, given: argparse.Namespace) -> None:
    adapter = write_adapter(folder / "large", given.large_mib << 20)
    size = (adapter / WEIGHTS_FILE).stat().st_size / 2**20
    file = f"/api/v1/adapters/{NAME}/versions/1/files/{WEIGHTS_FILE}"
    with ExitStack() as stack:
        kind, plain = stack.enter_context(sendfile(adapter / WEIGHTS_FILE, folder, given.nginx))
        hubs = {
            "hub, folder": stack.enter_context(running_hub(folder / "large-folder")),
            "hub, led to the S3 store": stack.enter_context(running_hub(folder / "large-s3", **s3_settings(server, server.endpoint))),
        }
        for name, hub in hubs.items():
            before, seconds = hub.peak_mebibytes(), child("push", hub, adapter)
            print(f"  {name}: pushed in {seconds:.1f} s; hub's peak of memory {before:.0f} MiB before, {hub.peak_mebibytes():.0f} after")
        taken: dict[str, list[float]] = {kind: [], **{name: [] for name in hubs}}
        for _ in range(given.large_turns):
            taken[kind].append(drain(plain))
            for name, hub in hubs.items():
                taken[name].append(drain(hub.url + file, hub.token))
        for name, seconds in taken.items():
            ratio = median(taken[kind]) / median(seconds)
            print(f"  {name:<28} {size / median(seconds):7.0f} MiB/s, {ratio:.2f} × {kind}", flush=True)
        for name, hub in hubs.items():
            seconds = child("pull", hub, folder / "pulled")
            shutil.rmtree(folder / "pulled")
            print(f"  {name}, pulled and verified: {size / seconds:.0f} MiB/s; hub's peak of memory {hub.peak_mebibytes():.0f} MiB")


def child(act: str, hub: HubProcess, folder: Path) -> float:
    """Push or pull in a process of its own, print the most memory that it took, and return the seconds."""
    command = [sys.executable, "-m", "bench.pull", "--child", act, "--folder", str(folder), "--url", hub.url]
    done = subprocess.run(command, env=os.environ | {"BENCH_TOKEN": hub.token}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout)
    print(f"  {act}: the client's peak of memory is {told['mebibytes']:.0f} MiB, {told['idle_mebibytes']:.0f} before it began")
    return float(told["seconds"])


def be_child(act: str, url: str, folder: Path) -> None:
    with Client(url, os.environ["BENCH_TOKEN"], timeout_seconds=600) as client:
        client.health()
        idle = peak_mebibytes()
        seconds = timed(lambda: (client.push(folder, NAME) if act == "push" else client.download(NAME, folder)) and None)
    print(json.dumps({"seconds": seconds, "idle_mebibytes": idle, "mebibytes": peak_mebibytes()}))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100, help="pulls of 1 MB of each kind")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the stream; 0 leaves it out")
    parser.add_argument("--large-turns", type=int, default=5)
    parser.add_argument("--nginx", default=shutil.which("nginx"), help="its program, where it is not found by itself")
    parser.add_argument("--child", choices=("push", "pull"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        be_child(given.child, given.url, given.folder)
        return
    with tempfile.TemporaryDirectory(prefix="wgbench-") as name, running_s3() as server:
        run_small(server, Path(name), given.turns)
        if given.large_mib:
            print(f"{given.large_mib} MiB:", flush=True)
            run_large(server, Path(name), given)


if __name__ == "__main__":
    main()
