"""The gateway with a real child process, which is killed, stopped and fed with nonsense."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest

from orchestrator.jobs import Limits
from orchestrator.ray_gateway import GatewayPool
from orchestrator.scheduler import Scheduler
from tests.orchestrator.samples import add_job, at, new_sqlite, view
from tests.orchestrator.samples import log as log_of
from wegeft.contracts.errors import ServiceUnreachable
from wegeft.contracts.placement import AttemptEnd, AttemptOrder
from wegeft.contracts.training import StateChanged

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.orchestrator.gateway_process"]
PLANTED = "a-secret-of-the-service"
SECRET = "wga_" + "5ec2e7" * 10


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the child's standard error goes."""
    return tmp_path / "gateway.log"


@pytest.fixture
def gateway(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayPool]:
    """A gateway whose child is up."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WEGEFT_S3_SECRET_KEY", PLANTED)
    pool = GatewayPool(COMMAND, log, hang_seconds=20)
    start_one(pool, "done-first.1")
    assert [end.handle for end in ends_of(pool, 1)] == ["done-first.1"]
    yield pool
    pool.close()


def order_of(handle: str) -> AttemptOrder:
    """An order for the attempt of this name."""
    job_id, _, attempt = handle.rpartition(".")
    return AttemptOrder(server="http://127.0.0.1:1", job_id=job_id, attempt=int(attempt), token=SECRET)


def until(is_so: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def start_one(pool: GatewayPool, handle: str) -> None:
    """Start an attempt as soon as there is a child."""

    def has_started() -> bool:
        try:
            pool.start(order_of(handle))
        except ServiceUnreachable:
            return False
        return True

    until(has_started)


def ends_of(pool: GatewayPool, count: int) -> list[AttemptEnd]:
    """The next ends, exactly so many."""
    ends: list[AttemptEnd] = []

    def are_there() -> bool:
        ends.extend(pool.poll())
        return len(ends) >= count

    until(are_there)
    assert len(ends) == count
    return ends


def code_of(end: AttemptEnd) -> str | None:
    """Why an attempt ended."""
    return end.error.code if end.error else None


def worker_pid(log: Path) -> int:
    """The process that the child runs for its last attempt."""
    until(lambda: "pid" in log.read_text())
    return int(re.findall(r"pid (\d+)", log.read_text())[-1])


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ends_come_back_as_the_child_tells_them(gateway: GatewayPool) -> None:
    """Good ones, bad ones, refusals and bugs, each once."""
    for handle in ("done-a.1", "oom-b.2", "huge-c.3", "bug-d.4", "noise-e.5", "foreign-f.6", "away-g.7"):
        gateway.start(order_of(handle))
    ends = {end.handle: (code_of(end), end.is_refused) for end in ends_of(gateway, 7)}
    assert ends == {
        "done-a.1": (None, False),
        "oom-b.2": ("out_of_memory", False),
        "huge-c.3": ("no_capacity", True),
        "bug-d.4": ("start_failed", True),
        "noise-e.5": (None, False),
        "foreign-f.6": (None, False),
        "away-g.7": ("start_failed", True),
    }
    time.sleep(0.3)
    assert gateway.poll() == ()


@pytest.mark.parametrize("trouble", ["away", "bug"])
def test_a_job_outlives_its_pools_trouble(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Through the real child: a cluster that is away costs a job without any patience nothing; what can never fit ends it."""
    monkeypatch.chdir(ROOT)
    said = tmp_path / "trouble"
    said.write_text(trouble)
    monkeypatch.setenv("TROUBLE_FILE", str(said))
    engine = new_sqlite(tmp_path / "a.db")
    job_id = add_job(engine, job_recovery={"max_restarts_on_errors": 0, "max_preemptions": 0})
    pool = GatewayPool(COMMAND, log)
    scheduler = Scheduler(engine, pool, Limits(), "http://127.0.0.1:1")
    seconds = count(step=0.25)

    def tells_of(code: str) -> int:
        scheduler.tick(at(next(seconds)))
        return sum(record.event.text.startswith(code) for record in log_of(engine, job_id) if isinstance(record.event, StateChanged))

    try:
        until(lambda: tells_of("start_failed") >= 3)
        assert not view(engine, job_id).state.is_final
        said.write_text("huge")
        until(lambda: tells_of("no_capacity"))
        assert view(engine, job_id).state == "failed"
    finally:
        pool.close()
        engine.dispose()


def test_stop_kills_the_attempt(gateway: GatewayPool, log: Path) -> None:
    """And no other; an unknown one is harmless."""
    gateway.start(order_of("run-a.1"))
    first = worker_pid(log)
    gateway.start(order_of("run-b.1"))
    until(lambda: worker_pid(log) != first)
    gateway.stop("run-nobody.9")
    gateway.stop("run-a.1")
    (end,) = ends_of(gateway, 1)
    assert (end.handle, code_of(end)) == ("run-a.1", "worker_lost")
    assert (is_alive(first), is_alive(worker_pid(log))) == (False, True)


def test_a_killed_child_loses_what_it_ran_and_is_replaced(gateway: GatewayPool, log: Path) -> None:
    """SIGKILL: what ran is reported once, its processes are gone, and the next start works."""
    for handle in ("run-a.1", "run-b.1"):
        gateway.start(order_of(handle))
    until(lambda: len(re.findall("pid", log.read_text())) == 2)
    workers = [int(pid) for pid in re.findall(r"pid (\d+)", log.read_text())]
    killed = gateway.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert {end.handle: code_of(end) for end in ends_of(gateway, 2)} == {"run-a.1": "worker_lost", "run-b.1": "worker_lost"}
    until(lambda: not any(is_alive(pid) for pid in workers), 5)
    start_one(gateway, "done-c.1")
    assert [end.handle for end in ends_of(gateway, 1)] == ["done-c.1"]
    assert gateway.pid != killed


def test_a_child_that_dies_of_an_order(gateway: GatewayPool) -> None:
    """Over and over: each order is reported as never started, and the pool goes on."""
    for number in range(3):
        start_one(gateway, f"die-{number}.1")
        (end,) = ends_of(gateway, 1)
        assert (end.handle, code_of(end), end.is_refused) == (f"die-{number}.1", "service_unreachable", True)


HANG_SECONDS = 4.0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sleeping", "stopped"])
def test_a_child_that_hangs_is_killed(log: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """After a while without a word; meanwhile nobody who calls the pool is blocked."""
    monkeypatch.chdir(ROOT)
    pool = GatewayPool(COMMAND, log, hang_seconds=HANG_SECONDS)
    try:
        start_one(pool, "run-a.1")
        worker_pid(log)
        hung = pool.pid
        assert hung is not None
        if how == "sleeping":
            pool.start(order_of("hang-b.1"))
        else:
            os.kill(hung, signal.SIGSTOP)
        started = time.monotonic()
        pool.stop("run-a.1")
        assert pool.poll() == ()
        assert time.monotonic() - started < HANG_SECONDS
        ends = {end.handle: (code_of(end), end.is_refused) for end in ends_of(pool, 2 if how == "sleeping" else 1)}
        assert ends.pop("run-a.1") == ("worker_lost", False)
        assert list(ends.values()) == ([("service_unreachable", True)] if how == "sleeping" else [])
        assert not is_alive(hung)
        start_one(pool, "done-c.1")
        assert [end.handle for end in ends_of(pool, 1)] == ["done-c.1"]
    finally:
        pool.close()


def test_orders_to_a_child_that_does_not_read_do_not_wedge_the_pool(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pipe holds, to a stopped process: it is killed all the same, and every order is lost or refused."""
    monkeypatch.chdir(ROOT)
    pool = GatewayPool(COMMAND, log, hang_seconds=4)
    try:
        start_one(pool, "done-a.1")
        ends_of(pool, 1)
        assert pool.pid is not None
        os.kill(pool.pid, signal.SIGSTOP)
        lost = 0
        for number in range(600):
            try:
                pool.start(order_of(f"done-{'x' * 200}{number}.1"))
            except ServiceUnreachable:
                break
            lost += 1
        assert 0 < lost < 600
        assert {code_of(end) for end in ends_of(pool, lost)} == {"service_unreachable"}
    finally:
        pool.close()


def test_a_command_that_does_not_exist(log: Path) -> None:
    """Is told by name whenever something is to be started."""
    pool = GatewayPool(["/nonexistent/python"], log)
    try:
        with pytest.raises(ServiceUnreachable, match="not running"):
            pool.start(order_of("done-a.1"))

        def is_told() -> bool:
            try:
                pool.start(order_of("done-a.1"))
            except ServiceUnreachable as error:
                return "cannot be started: No such file or directory" in error.message
            return False

        until(is_told)
        pool.stop("done-a.1")
        assert pool.poll() == ()
    finally:
        pool.close()


def test_closing_ends_the_child_and_its_workers(gateway: GatewayPool, log: Path) -> None:
    """In order: the child closes its pool before it ends. Closing twice is harmless."""
    gateway.start(order_of("run-a.1"))
    worker, child = worker_pid(log), gateway.pid
    assert child is not None
    gateway.close()
    gateway.close()
    assert not is_alive(child)
    assert not is_alive(worker)
    assert "closed" in log.read_text()
    with pytest.raises(ServiceUnreachable):
        gateway.start(order_of("done-a.1"))


def test_the_token_is_on_no_command_line_and_in_no_log(gateway: GatewayPool, log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only in the pipe."""
    for handle in ("run-a.1", "bug-b.1", "die-c.1"):
        gateway.start(order_of(handle))
    ends_of(gateway, 3)
    start_one(gateway, "run-d.1")
    worker_pid(log)
    assert "printed by the pool" in log.read_text(), "what a pool prints is not taken for an answer"
    child = gateway.pid
    assert child is not None
    everything = [*Path(f"/proc/{child}").glob("cmdline"), *Path(f"/proc/{child}").glob("environ"), log]
    for content in (path.read_bytes().decode(errors="replace") for path in everything):
        assert SECRET not in content
        assert PLANTED not in content, "what runs on the pool gets none of the service's own secrets"
    captured = capfd.readouterr()
    assert SECRET not in captured.out + captured.err
    assert SECRET not in repr(order_of("a.1"))
    assert log.stat().st_mode & 0o077 == 0


def test_a_long_log_is_put_aside(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One predecessor is kept, so that restarts do not fill the disk."""
    monkeypatch.chdir(ROOT)
    log.write_bytes(b"x" * (11 << 20))
    pool = GatewayPool(COMMAND, log)
    start_one(pool, "done-a.1")
    pool.close()
    assert log.stat().st_size < 1 << 20
    assert log.with_name("gateway.log.1").stat().st_size == 11 << 20
