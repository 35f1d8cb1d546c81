"""Where attempts run: in threads of this process, or in actors on Ray. Both keep the promises of ``orchestrator.scheduler.Pool``."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from wegeft.contracts.errors import ErrorBody, NoCapacity, OutOfMemory, StartFailed, WorkerLost
from wegeft.contracts.placement import AttemptEnd, AttemptOrder
from workers.processor import usable_cores

_LOG = structlog.get_logger("pool")
_LONGEST_RAY_FOLDER = 40
"""Characters: Ray puts sockets up to 66 characters below its folder, and the kernel allows a socket's path 107."""
_OBJECT_STORE_BYTES = 128 << 20
"""Ray's shared memory: attempts fetch and deliver over HTTP, so it carries next to nothing."""
_ATTACH_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""
_CONTROL_PATIENCE_SECONDS = 10
"""How long a Ray of our own goes on without its control process before it ends."""

Run = Callable[[AttemptOrder, threading.Event], None]
"""Runs an attempt to its end and reports it over HTTP; stops soon after the event is set."""


def run_in_thread(order: AttemptOrder, stop: threading.Event) -> None:
    """Run an attempt in this process."""
    from workers.attempt import run_attempt

    run_attempt(order, stop=stop)


@dataclass
class _Thread:
    thread: threading.Thread
    stop: threading.Event
    error: ErrorBody | None = None


class InlinePool:
    """Runs each attempt in a thread of this process: for tests and small trials. One thread calls it.

    A thread cannot be killed: ``stop`` and ``close`` ask it to end, which training does between two passes.
    """

    def __init__(self, run: Run = run_in_thread) -> None:
        self._run = run
        self._running: dict[str, _Thread] = {}

    def start(self, order: AttemptOrder) -> None:
        """Start the attempt at once; raise :class:`NoCapacity` where it needs a GPU or more cores than there are."""
        find_need(order, [{"CPU": float(usable_cores()), "GPU": 0.0, "memory": float("inf")}], can_grow=False)
        entry = _Thread(thread=threading.Thread(target=self._work, args=(order,), name=order.handle, daemon=True), stop=threading.Event())
        self._running[order.handle] = entry
        entry.thread.start()

    def _work(self, order: AttemptOrder) -> None:
        entry = self._running[order.handle]
        try:
            self._run(order, entry.stop)
        except BaseException as error:  # noqa: BLE001 - a thread's end must be told, whatever ended it
            _LOG.exception("attempt ended by an error", handle=order.handle)
            entry.error = WorkerLost(f"the worker ended by an error: {type(error).__name__}").body()

    def poll(self) -> tuple[AttemptEnd, ...]:
        """Return the attempts whose threads have ended since the last call."""
        ended = [handle for handle, entry in self._running.items() if not entry.thread.is_alive()]
        return tuple(AttemptEnd(handle=handle, error=self._running.pop(handle).error) for handle in ended)

    def stop(self, handle: str) -> None:
        """Ask an attempt to end; harmless where it is over or unknown."""
        if handle in self._running:
            self._running[handle].stop.set()

    def close(self) -> None:
        """Ask every attempt to end, and wait for each for some seconds."""
        for entry in self._running.values():
            entry.stop.set()
        for entry in self._running.values():
            entry.thread.join(timeout=10)
        self._running.clear()


@dataclass(frozen=True)
class _Placed:
    actor: Any
    group: Any
    result: Any


@dataclass
class RayPool:
    """Runs each attempt in an actor of its own, in a placement group, on a Ray of this machine or a cluster. One thread calls it.

    Ray starts with the first attempt and is kept. Retries are the orchestrator's alone: an actor is never restarted. When Ray's control
    process dies, Ray ends the process that drives it, so this belongs into a child of the service.
    """

    address: str | None
    """``host:port`` of a cluster on one of whose nodes this process runs; None starts a Ray for this process alone."""
    folder: Path
    """Where a Ray of our own keeps its token, and its files where the path is short enough."""
    run: Callable[[AttemptOrder], None] | None = None
    """What an actor does; the training of an attempt by default."""
    _placed: dict[str, _Placed] = field(default_factory=dict, init=False)
    _lost: list[AttemptEnd] = field(default_factory=list, init=False)
    _is_connected: bool = field(default=False, init=False)

    def start(self, order: AttemptOrder) -> None:
        """Place the attempt as soon as a node has room; raise :class:`NoCapacity` where no node ever has.

        No node of a Ray of our own is ever added; a cluster may get one, so there the attempt waits.
        """
        self._connect()
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        nodes = _living_nodes()
        if self.address is None and not any(node.get("CPU") for node in nodes):
            self._start_again()
            nodes = _living_nodes()
        need = find_need(order, nodes, can_grow=self.address is not None)
        group = ray.util.placement_group([need], strategy="STRICT_PACK", name=order.handle)
        cpus, gpus, memory = need.pop("CPU", 0), need.pop("GPU", 0), need.pop("memory", None)
        actor = (
            ray.remote(_Actor)
            .options(
                name=order.handle,
                num_cpus=cpus,
                num_gpus=gpus,
                memory=memory,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
            )
            .remote()
        )
        self._placed[order.handle] = _Placed(actor=actor, group=group, result=actor.run.remote(order, self.run))

    def poll(self) -> tuple[AttemptEnd, ...]:
        """Return the attempts whose actors have ended since the last call."""
        lost, self._lost = self._lost, []
        if not self._placed:
            return tuple(lost)
        import ray

        results = {placed.result: handle for handle, placed in self._placed.items()}
        done, _ = ray.wait(list(results), num_returns=len(results), timeout=0)
        return (*lost, *(AttemptEnd(handle=results[result], error=self._end_of(results[result])) for result in done))

    def _end_of(self, handle: str) -> ErrorBody | None:
        import ray

        try:
            ray.get(self._placed[handle].result)
        except ray.exceptions.OutOfMemoryError:
            return OutOfMemory("Ray ended the worker because its node ran out of memory", hint="ask for more resources.memory").body()
        except ray.exceptions.RayError as error:
            _LOG.warning("worker lost", handle=handle, reason=" ".join(str(error).split())[:500])
            return WorkerLost(f"the worker process ended without a word ({type(error).__name__})").body()
        else:
            return None
        finally:
            self.stop(handle)

    def stop(self, handle: str) -> None:
        """Kill an attempt's process and give its room back; harmless where it is over or unknown."""
        placed = self._placed.pop(handle, None)
        if placed is None:
            return
        import ray

        ray.kill(placed.actor, no_restart=True)
        ray.util.remove_placement_group(placed.group)

    def close(self) -> None:
        """Kill every attempt, and end a Ray that this pool started."""
        for handle in list(self._placed):
            self.stop(handle)
        if self._is_connected:
            import ray

            ray.shutdown()
            self._is_connected = False

    def connect(self) -> None:
        """Start Ray, or join it, before the first attempt does; harmless where that is done."""
        self._connect()

    def _connect(self) -> None:
        if self._is_connected:
            return
        # Ray's native part reads these once, when it is imported.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.pop("RAY_ADDRESS", None)
        if self.address is None:
            self._start_own()
        else:
            self._attach(self.address)
        self._is_connected = True

    def _start_again(self) -> None:
        """Replace a Ray of our own whose node has died; what ran on it is lost."""
        _LOG.warning("the node of our Ray has died; starting another")
        error = WorkerLost("the node of Ray has died").body()
        self._lost += [AttemptEnd(handle=handle, error=error) for handle in self._placed]
        self._placed.clear()
        self.close()
        self._connect()

    def _start_own(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = _ray_folder(self.folder)
        for old in files.glob("session_*"):
            shutil.rmtree(old, ignore_errors=True)
        # Workers inherit it. Threads that wait by spinning make a step several times slower on a machine that does anything else.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Ray's workers would otherwise run at nice 15, and starve beside anything else that computes where the kernel groups no processes.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # The control process of a Ray on one machine never comes back, so nobody need wait a minute for it.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_CONTROL_PATIENCE_SECONDS))
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(_write_token(self.folder / "token"))
        import ray

        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level="warning",
            namespace="wegeft",
            _temp_dir=str(files),
        )

    def _attach(self, address: str) -> None:
        import ray

        try:
            _check_answers(address)
            ray.init(address=address, log_to_driver=False, logging_level="warning", namespace="wegeft")
        except (OSError, RuntimeError, ValueError) as error:
            hint = "this machine must be a node of the cluster (ray start --address=…), with the cluster's token in RAY_AUTH_TOKEN"
            raise StartFailed(f"the Ray cluster cannot be joined: {error}", path="WEGEFT_RAY_ADDRESS", value=address, hint=hint) from error


def _check_answers(address: str) -> None:
    """Raise :class:`OSError` where nothing listens at ``host:port``, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ATTACH_SECONDS).close()


def _living_nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class _Actor:
    """One attempt's process on a Ray node."""

    def run(self, order: AttemptOrder, run: Callable[[AttemptOrder], None] | None) -> None:
        """Run the attempt to its end."""
        if run is not None:
            run(order)
            return
        from workers.attempt import run_attempt

        run_attempt(order, owns_process=True)


def find_need(order: AttemptOrder, nodes: list[dict[str, float]], *, can_grow: bool) -> dict[str, float]:
    """Return what to set aside for the attempt on one of ``nodes``; raise :class:`NoCapacity` where none has it or ever will.

    Where nodes may still come (``can_grow``) it is never refused; an order for all of a node's cores then asks for one at least.
    """
    asked = {"CPU": float(order.cpus or 1), "GPU": float(order.gpus), "memory": float(order.memory_bytes or 0)}
    fitting = [node for node in nodes if all(node.get(name, 0.0) >= amount for name, amount in asked.items())]
    if not fitting and not can_grow:
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in asked}
        short = [name for name, amount in asked.items() if most[name] < amount]
        hint = "the largest node has " + ", ".join(f"{most[name]:g} {name}" for name in short or asked)
        raise NoCapacity("no node can ever run this job", path="resources", value=asked, hint=hint)
    if order.cpus is None and fitting:
        asked["CPU"] = min(node["CPU"] // max(1.0, node.get("GPU", 0.0)) if order.gpus else node["CPU"] for node in fitting) or 1.0
    return {name: amount for name, amount in asked.items() if amount}


def _write_token(path: Path) -> Path:
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path


def _ray_folder(folder: Path) -> Path:
    """Return where Ray keeps its files: ``folder``, or, where its path is too long, one in the machine's temporary folder.

    That one is the same each time, so that what a killed Ray left there is removed by the next.
    """
    if len(str(folder)) <= _LONGEST_RAY_FOLDER:
        return folder
    digest = hashlib.sha256(str(folder).encode()).hexdigest()
    short = Path(tempfile.gettempdir()) / f"wegeft-ray-{digest[:12]}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.is_symlink() or short.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="wegeft-ray-"))
    return short
