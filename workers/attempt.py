"""One attempt from its order to its end: fetch the task, train or convert, and deliver a result or say why there is none."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import assert_never

import structlog
import torch

from wegeft.client import AttemptClient
from wegeft.contracts.conversion import ConversionTask
from wegeft.contracts.errors import ErrorBody, JobCancelled, OutOfMemory, StorageFull, TrainingCrashed, WegeftError, shorten
from wegeft.contracts.job import DatasetSpec
from wegeft.contracts.placement import AttemptOrder
from wegeft.contracts.training import Advanced, Message, Progress, PublishedVersion, TrainingTask, WorkerEvent
from workers.base_model import ModelRequest, default_cache, load_base_model, request_of
from workers.checkpoint import read_state
from workers.conversion import Conversion
from workers.data import read_datasets
from workers.delivery import deliver
from workers.labelled_rows import RowRules
from workers.labels import find_labels
from workers.outbox import CheckpointOutbox, EventOutbox
from workers.private_folder import private_folder
from workers.processor import usable_cores
from workers.rows import AnyRow
from workers.train import Callbacks, TrainingInputs, TrainingStopped, train
from workers.watch import Reason, Watch

_LOG = structlog.get_logger("worker")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def run_attempt(order: AttemptOrder, *, stop: threading.Event | None = None, owns_process: bool = False) -> None:
    """Work at the attempt until it is over, and report its end over HTTP; nothing is raised for what can be reported.

    Stops soon after ``stop`` is set, after the job is cancelled, or after the lease is lost. A process that it ``owns_process`` of is ended
    where training does not stop by itself. The data is kept in a folder for this user alone, and removed at the end.
    """
    watch = Watch(stop)
    with AttemptClient(order) as client, watch.ending_process() if owns_process else nullcontext():
        try:
            task = client.task()
        except WegeftError as error:
            _LOG.warning("attempt not begun", handle=order.handle, code=error.code, reason=error.message)
            return
        torch.set_num_threads(order.cpus or usable_cores())
        with watch.beating(client.heartbeat, task.heartbeat_seconds, task.lease_seconds):
            _Attempt(client, task, watch).run()


@dataclass
class _Attempt:
    client: AttemptClient
    task: TrainingTask | ConversionTask
    watch: Watch

    def run(self) -> None:
        error = self._try()
        if error is None or self.watch.reason in (Reason.STALE, Reason.SILENT, Reason.ASKED):
            return
        try:
            self.client.fail(error)
        except WegeftError as refusal:
            _LOG.warning("failure not reported", code=error.code, refused=refusal.message)

    def _try(self) -> ErrorBody | None:
        """Return None where the result is delivered, and otherwise why there is none."""
        try:
            with private_folder() as folder:
                self._work(folder)
        except TrainingStopped:
            return JobCancelled().body()
        except WegeftError as error:
            _LOG.info("attempt failed", code=error.code, reason=str(error))
            return error.body()
        except MemoryError:
            return OutOfMemory("memory ran out").body()
        except OSError as error:
            _LOG.exception("attempt failed")
            kind = StorageFull if error.errno in _FULL else TrainingCrashed
            return kind(f"{type(error).__name__}: {error.strerror or error}").body()
        except Exception as error:  # noqa: BLE001 - the job must learn how its attempt ended, whatever ended it
            _LOG.exception("attempt crashed")
            return TrainingCrashed(f"{type(error).__name__}: {shorten(str(error), 500)}").body()
        return None

    def _work(self, folder: Path) -> None:
        events = EventOutbox(self.client.report, self.watch.check)
        with events.sending():
            events.add(Message(text=f"worker pid {os.getpid()} on {socket.gethostname()}, {torch.get_num_threads()} threads"))
            finish = self._prepare(folder, events)
        # Every event is sent before the job ends, so that a reader who stops at the end has seen them all.
        self._check_stop()
        _LOG.info("published", ref=finish().ref)

    def _prepare(self, folder: Path, events: EventOutbox) -> Callable[[], PublishedVersion]:
        """Do the work, and return what ends the job with it."""

        def report(event: WorkerEvent) -> None:
            self._report(events, event)

        match self.task:
            case TrainingTask():
                return _Training(client=self.client, task=self.task, watch=self.watch, folder=folder).run(events, report)
            case ConversionTask():
                work = Conversion(client=self.client, task=self.task, folder=folder, report=report, check_stop=self._check_stop)
                return partial(self.client.finish_conversion, work.run())
            case _:
                assert_never(self.task)

    def _check_stop(self) -> None:
        if self.watch.must_stop():
            raise TrainingStopped

    def _report(self, events: EventOutbox, event: WorkerEvent) -> None:
        if isinstance(event, Progress | Advanced):
            self.watch.step = event.step
        events.add(event)


@dataclass(frozen=True, kw_only=True)
class _Training:
    client: AttemptClient
    task: TrainingTask
    watch: Watch
    folder: Path

    def run(self, events: EventOutbox, report: Callable[[WorkerEvent], None]) -> Callable[[], PublishedVersion]:
        """Train, and return what publishes the adapter."""
        checkpoints = CheckpointOutbox(self.client, events.add, self.watch.check)
        inputs = self._fetch(self.folder, events)
        callbacks = Callbacks(report=report, save=checkpoints.save, should_stop=self.watch.must_stop, now=monotonic)
        with checkpoints.delivering():
            outcome = train(self.task, inputs, callbacks)
        adapter = self.folder / "adapter"
        adapter.mkdir()
        return partial(deliver, self.client, self.task.spec, inputs.base, outcome, adapter)

    def _fetch(self, folder: Path, events: EventOutbox) -> TrainingInputs:
        """Bring data, checkpoint and base model here; data first, because it is quick to be wrong."""
        spec = self.task.spec
        train_rows = self._read("datasets", spec.datasets, folder)
        held_out_rows = self._read("test_datasets", spec.test_datasets, folder)
        checkpoint = self._fetch_checkpoint(folder)
        started = monotonic()
        labels = find_labels(spec, [*train_rows, *held_out_rows])
        base = load_base_model(self._request(checkpoint, labels))
        events.add(Message(text=f"loaded {base.identity} in {monotonic() - started:.1f} s"))
        return TrainingInputs(base=base, train_rows=train_rows, held_out_rows=held_out_rows, resume_from=checkpoint)

    def _request(self, checkpoint: dict[str, bytes] | None, labels: tuple[str, ...]) -> ModelRequest:
        """Ask for the model that an earlier attempt trained on: a branch may have moved since."""
        request = request_of(self.task.spec, default_cache(), labels)
        commit = read_state(checkpoint).commit if checkpoint else None
        return replace(request, revision=commit) if commit else request

    def _read(self, what: str, datasets: Sequence[DatasetSpec], folder: Path) -> list[AnyRow]:
        files = []
        for number, dataset in enumerate(datasets):
            path = folder / f"{what}-{number}"
            self.client.get_blob(dataset.path, path)
            files.append((path, dataset, f"{what}[{number}]"))
        rows = read_datasets(files, RowRules.of(self.task.spec)) if files else []
        for path, _, _ in files:
            path.unlink()
        return rows

    def _fetch_checkpoint(self, folder: Path) -> dict[str, bytes] | None:
        if self.task.resume_from is None:
            return None
        files = {}
        for number, entry in enumerate(self.task.resume_from.files):
            path = folder / f"checkpoint-{number}"
            self.client.get_blob(entry.digest, path)
            files[entry.path] = path.read_bytes()
            path.unlink()
        return files
