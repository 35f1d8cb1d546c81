"""One suite over every pool: what ``orchestrator.scheduler.Pool`` promises holds in threads and on a real Ray."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.scheduler import Pool
from tests.conformance.pool_work import act_in_actor, act_in_thread
from wegeft.contracts.errors import NoCapacity, StartFailed
from wegeft.contracts.placement import AttemptEnd, AttemptOrder
from workers.pool import InlinePool, RayPool, find_need
from workers.processor import usable_cores

SECONDS = 60.0
TOKEN = "wga_0123456789_a-secret-that-must-not-be-seen"


@pytest.fixture(scope="module")
def ray_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayPool]:
    with pytest.MonkeyPatch.context() as patch:
        # What a user's shell may hold must not lead to another cluster.
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        for name in (
            "RAY_AUTH_MODE",
            "RAY_AUTH_TOKEN",
            "RAY_AUTH_TOKEN_PATH",
            "RAY_USAGE_STATS_ENABLED",
            "RAY_worker_niceness",
            "RAY_gcs_rpc_server_reconnect_timeout_s",
            "OMP_WAIT_POLICY",
        ):
            patch.setenv(name, "")  # Remembers what it was, which the pool's own setting would not.
            patch.delenv(name)
        pool = RayPool(None, tmp_path_factory.mktemp("ray"), run=act_in_actor)
        yield pool
        pool.close()


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.slow)])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    if request.param == "ray":
        yield request.getfixturevalue("ray_pool")
        return
    inline = InlinePool(act_in_thread)
    yield inline
    inline.close()


def order(folder: Path, job_id: str, *, cpus: int | None = 1, gpus: int = 0, memory_bytes: int | None = None) -> AttemptOrder:
    """Return an order whose server is the folder that the attempt writes into."""
    return AttemptOrder(
        server=str(folder), job_id=f"{job_id}-{folder.name}", attempt=1, token=TOKEN, cpus=cpus, gpus=gpus, memory_bytes=memory_bytes
    )


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.02)


def await_ends(pool: Pool, count: int = 1) -> list[AttemptEnd]:
    ends: list[AttemptEnd] = []

    def have_come() -> bool:
        ends.extend(pool.poll())
        return len(ends) >= count

    await_that(have_come)
    return ends


def await_pid(folder: Path, asked: AttemptOrder) -> int:
    path = folder / f"{asked.handle}.pid"
    await_that(lambda: path.exists() and bool(path.read_text()))
    return int(path.read_text())


def is_quiet(pool: Pool) -> bool:
    """Whether nothing more is reported for a while."""
    time.sleep(0.3)
    return pool.poll() == ()


def test_an_attempt_runs_and_its_end_is_told_once(pool: Pool, tmp_path: Path) -> None:
    asked = order(tmp_path, "done")
    pool.start(asked)
    assert await_ends(pool) == [AttemptEnd(handle=asked.handle, error=None)]
    assert (tmp_path / f"{asked.handle}.done").exists()
    assert is_quiet(pool)


def test_an_attempt_that_raises_is_told_without_its_secrets(pool: Pool, tmp_path: Path) -> None:
    asked = order(tmp_path, "fail")
    pool.start(asked)
    (end,) = await_ends(pool)
    assert end.handle == asked.handle
    assert end.error is not None
    assert end.error.code == "worker_lost"
    assert "secret" not in end.model_dump_json()
    assert is_quiet(pool)


def test_stop_ends_an_attempt_and_can_be_repeated(pool: Pool, tmp_path: Path) -> None:
    asked = order(tmp_path, "wait")
    pool.start(asked)
    pid = await_pid(tmp_path, asked)
    for _ in range(2):
        pool.stop(asked.handle)
    if pid != os.getpid():
        await_that(lambda: not psutil.pid_exists(pid))
    # Its end may be told or not, but never twice.
    time.sleep(1)
    assert [end.handle for end in pool.poll()] in ([], [asked.handle])
    pool.stop(asked.handle)
    assert is_quiet(pool)


def test_stop_of_what_was_never_here_is_harmless(pool: Pool) -> None:
    pool.stop("job-nobody.7")
    assert is_quiet(pool)


def test_several_attempts_run_side_by_side(pool: Pool, tmp_path: Path) -> None:
    if usable_cores() < 2:
        pytest.skip("needs two cores")
    first, second = order(tmp_path, "wait-a"), order(tmp_path, "wait-b")
    pool.start(first)
    pool.start(second)
    await_pid(tmp_path, first)
    await_pid(tmp_path, second)
    pool.stop(first.handle)
    pool.stop(second.handle)
    time.sleep(0.5)
    pool.poll()


@pytest.mark.parametrize("asked", [{"cpus": 100_000}, {"gpus": 9}])
def test_what_no_node_can_ever_give_is_refused(pool: Pool, tmp_path: Path, asked: dict[str, int]) -> None:
    with pytest.raises(NoCapacity) as caught:
        pool.start(order(tmp_path, "done", **asked))
    assert caught.value.problems[0].path == "resources"
    assert caught.value.problems[0].hint
    assert is_quiet(pool)


def test_a_cluster_that_is_away_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a trouble of the pool, each time; nobody waits for Ray's own patience."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    pool = RayPool(address, tmp_path)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(StartFailed, match="cannot be joined") as caught:
            pool.start(order(tmp_path, "done"))
        assert caught.value.problems[0].path == "WEGEFT_RAY_ADDRESS"
    assert time.monotonic() - started < 30
    pool.close()


SMALL, LARGE = {"CPU": 4.0, "memory": 8e9}, {"CPU": 16.0, "GPU": 1.0, "memory": 64e9}


def test_where_nodes_may_still_come_nothing_is_refused(tmp_path: Path) -> None:
    """A cluster may lack its only GPU node for a while, or be about to grow: the attempt waits for the room that it asks for."""
    asked = order(tmp_path, "done", cpus=8, gpus=1, memory_bytes=10**9)
    for nodes in ([SMALL], []):
        assert find_need(asked, nodes, can_grow=True) == {"CPU": 8.0, "GPU": 1.0, "memory": 1e9}
        with pytest.raises(NoCapacity):
            find_need(asked, nodes, can_grow=False)


def test_all_cores_are_those_of_the_nodes_that_fit(tmp_path: Path) -> None:
    """Where none is known yet, one core is asked for, so that any node that comes will do."""
    assert find_need(order(tmp_path, "done", cpus=None), [SMALL], can_grow=True) == {"CPU": 4.0}
    with_gpu = order(tmp_path, "done", cpus=None, gpus=1)
    assert find_need(with_gpu, [SMALL, LARGE], can_grow=True) == {"CPU": 16.0, "GPU": 1.0}
    assert find_need(with_gpu, [SMALL], can_grow=True) == {"CPU": 1.0, "GPU": 1.0}


def test_an_order_for_all_cores_runs(pool: Pool, tmp_path: Path) -> None:
    asked = order(tmp_path, "done", cpus=None)
    pool.start(asked)
    assert await_ends(pool) == [AttemptEnd(handle=asked.handle)]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["exit", "kill"])
def test_a_process_that_dies_is_told_as_lost(ray_pool: RayPool, tmp_path: Path, word: str) -> None:
    asked = order(tmp_path, word)
    ray_pool.start(asked)
    (end,) = await_ends(ray_pool)
    assert end.error is not None
    assert (end.handle, end.error.code) == (asked.handle, "worker_lost")
    assert is_quiet(ray_pool)


@pytest.mark.slow
def test_a_process_that_is_killed_from_outside_is_told_as_lost_soon(ray_pool: RayPool, tmp_path: Path) -> None:
    asked = order(tmp_path, "wait")
    ray_pool.start(asked)
    os.kill(await_pid(tmp_path, asked), signal.SIGKILL)
    killed_at = time.monotonic()
    (end,) = await_ends(ray_pool)
    assert end.error is not None
    assert end.error.code == "worker_lost"
    assert time.monotonic() - killed_at < 15


@pytest.mark.slow
def test_an_attempt_waits_for_room_and_gets_it(ray_pool: RayPool, tmp_path: Path) -> None:
    first, second = order(tmp_path, "wait", cpus=None), order(tmp_path, "done", cpus=None)
    ray_pool.start(first)
    await_pid(tmp_path, first)
    ray_pool.start(second)
    assert is_quiet(ray_pool)
    assert not (tmp_path / f"{second.handle}.pid").exists()
    ray_pool.stop(first.handle)
    assert await_ends(ray_pool) == [AttemptEnd(handle=second.handle)]


@pytest.mark.slow
def test_an_attempt_that_waits_for_room_can_be_stopped(ray_pool: RayPool, tmp_path: Path) -> None:
    first, second, third = order(tmp_path, "wait", cpus=None), order(tmp_path, "never", cpus=None), order(tmp_path, "done", cpus=None)
    # Ray does not promise the room of an ended attempt to the one that has waited longest, so the first is let in alone.
    ray_pool.start(first)
    await_pid(tmp_path, first)
    for asked in (second, third):
        ray_pool.start(asked)
    ray_pool.stop(second.handle)
    ray_pool.stop(first.handle)
    assert await_ends(ray_pool) == [AttemptEnd(handle=third.handle)]
    assert not (tmp_path / f"{second.handle}.pid").exists()


@pytest.mark.slow
def test_memory_that_no_node_has_is_refused(ray_pool: RayPool, tmp_path: Path) -> None:
    with pytest.raises(NoCapacity):
        ray_pool.start(order(tmp_path, "done", memory_bytes=1 << 50))


@pytest.mark.slow
def test_ray_is_ours_alone_and_keeps_no_secret(ray_pool: RayPool, tmp_path: Path) -> None:
    asked = order(tmp_path, "wait")
    ray_pool.start(asked)
    worker = psutil.Process(await_pid(tmp_path, asked))
    token_file = ray_pool.folder / "token"
    assert token_file.stat().st_mode & 0o777 == 0o600
    environment = worker.environ()
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", str(token_file))
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert worker.nice() == psutil.Process().nice(), "an attempt gets as much of the processor as any other process of ours"
    # Read while all of them live: of the worker nothing is told when it has ended.
    words = [word for process in (worker, *worker.parents()) for word in process.cmdline()]
    assert not any(TOKEN in word for word in words)
    ray_pool.stop(asked.handle)
    for root in {Path(word.partition("=")[2]) for word in words if word.startswith("--temp-dir=")}:
        assert not any(TOKEN.encode() in file.read_bytes() for file in root.rglob("*") if file.is_file() and file.stat().st_size < 1 << 24)


@pytest.mark.slow
def test_closing_kills_every_attempt_and_ray_can_start_again(ray_pool: RayPool, tmp_path: Path) -> None:
    asked = order(tmp_path, "wait")
    ray_pool.start(asked)
    pid = await_pid(tmp_path, asked)
    ray_pool.close()
    await_that(lambda: not psutil.pid_exists(pid))
    again = order(tmp_path, "done")
    ray_pool.start(again)
    assert await_ends(ray_pool) == [AttemptEnd(handle=again.handle)]
