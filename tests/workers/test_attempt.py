"""An attempt's parts on a real tiny model: what is delivered, what is said where there is nothing to deliver, and what is left behind."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tiny_models import make_model_folder, write_sums
from tests.workers.tiny_runs import spec_of
from wegeft.contracts.adapter import PUBLISHABLE_FILES, digest_of
from wegeft.contracts.errors import BlobNotFound, ErrorBody, ServiceUnreachable, StaleLease, StorageFull, WegeftError
from wegeft.contracts.training import (
    BlobView,
    Checkpoint,
    CheckpointSaved,
    Evaluation,
    EventBatch,
    Message,
    Progress,
    PublishedVersion,
    TrainingResult,
    TrainingTask,
    WorkerEvent,
)
from workers.attempt import _Attempt
from workers.watch import Reason, Watch
from workers.weights_digest import digest_weights


@dataclass
class Orchestrator:
    """Takes what a worker says, and keeps it in memory; ``refuse`` maps a call's name to what it raises."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, Exception] = field(default_factory=dict)
    events: list[WorkerEvent] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    results: list[TrainingResult] = field(default_factory=list)
    failures: list[ErrorBody] = field(default_factory=list)

    def _may(self, call: str) -> None:
        if call in self.refuse:
            raise self.refuse[call]

    def store(self, content: bytes) -> str:
        self.blobs[digest_of(content)] = content
        return digest_of(content)

    def get_blob(self, digest: str, path: Path) -> int:
        self._may("get_blob")
        if digest not in self.blobs:
            raise BlobNotFound(value=digest)
        return path.write_bytes(self.blobs[digest])

    def put_blob(self, source: Path | bytes) -> BlobView:
        self._may("put_blob")
        content = source if isinstance(source, bytes) else source.read_bytes()
        return BlobView(digest=self.store(content), size=len(content))

    def report(self, batch: EventBatch) -> None:
        self._may("report")
        assert batch.first_number == len(self.events)
        self.events += batch.events

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._may("checkpoint")
        self.checkpoints.append(checkpoint)

    def finish(self, result: TrainingResult) -> PublishedVersion:
        self._may("finish")
        self.results.append(result)
        return PublishedVersion(adapter="local/tiny", version=1)

    def fail(self, error: ErrorBody) -> None:
        self._may("fail")
        self.failures.append(error)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The place for temporary files, which must be empty again at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def orchestrator() -> Orchestrator:
    return Orchestrator()


@pytest.fixture
def task(orchestrator: Orchestrator, model_folder: Path, tmp_path: Path) -> Callable[..., TrainingTask]:
    train = orchestrator.store(write_sums(tmp_path / "train.jsonl", 12).read_bytes())
    held_out = orchestrator.store(write_sums(tmp_path / "heldout.jsonl", 4, start=50).read_bytes())

    def make(*, resume_from: Checkpoint | None = None, **fields: Any) -> TrainingTask:
        given = {
            "base_model": str(model_folder),
            "datasets": [{"path": train, "file_format": "jsonl"}],
            "test_datasets": [{"path": held_out, "file_format": "jsonl"}],
            **fields,
        }
        return TrainingTask(job_id="job-1", attempt=1, spec=spec_of(**given), resume_from=resume_from, heartbeat_seconds=1, lease_seconds=9)

    return make


def work(orchestrator: Orchestrator, task: TrainingTask, watch: Watch | None = None) -> Watch:
    watch = watch or Watch()
    orchestrator.events.clear()
    _Attempt(orchestrator, task, watch).run()  # type: ignore[arg-type] # speaks as the client does
    return watch


def kinds(events: list[WorkerEvent]) -> list[type]:
    return [type(event) for event in events if not isinstance(event, Message)]


def weights_of(orchestrator: Orchestrator) -> str:
    return next(entry.digest for entry in orchestrator.results[-1].files if entry.path == "adapter_model.safetensors")


def failure(orchestrator: Orchestrator) -> ErrorBody:
    (body,) = orchestrator.failures
    assert orchestrator.results == []
    assert "Traceback" not in body.model_dump_json()
    return body


def test_a_result_is_delivered_whole_after_all_its_events(
    orchestrator: Orchestrator, task: Callable[..., TrainingTask], tmp_path: Path, model_folder: Path
) -> None:
    watch = work(orchestrator, task(max_steps=3, save_steps=2))
    assert orchestrator.failures == []
    (result,) = orchestrator.results
    assert {entry.path for entry in result.files} == PUBLISHABLE_FILES
    assert all(orchestrator.blobs[entry.digest] for entry in result.files)
    assert [kind for kind in kinds(orchestrator.events) if kind is not CheckpointSaved] == [Evaluation, *[Progress] * 3, Evaluation]
    assert result.metrics["steps"] == watch.step == 3
    assert result.base_model == f"{model_folder}@{digest_weights(model_folder)}"
    content = tmp_path / "weights.safetensors"
    content.write_bytes(orchestrator.blobs[weights_of(orchestrator)])
    assert sum(tensor.numel() for tensor in load_file(content).values()) == result.trainable_parameters


def test_people_can_find_the_worker(orchestrator: Orchestrator, task: Callable[..., TrainingTask]) -> None:
    work(orchestrator, task(max_steps=1))
    texts = [event.text for event in orchestrator.events if isinstance(event, Message)]
    assert texts[0].startswith("worker pid ")
    assert any(text.startswith("loaded ") for text in texts)


def test_an_attempt_goes_on_from_the_last_checkpoint_to_the_same_bytes(
    orchestrator: Orchestrator, task: Callable[..., TrainingTask]
) -> None:
    work(orchestrator, task())
    whole = weights_of(orchestrator)
    work(orchestrator, task(save_steps=3))
    checkpoint = orchestrator.checkpoints[-1]
    work(orchestrator, task(resume_from=checkpoint))
    assert weights_of(orchestrator) == whole
    steps = [event.step for event in orchestrator.events if isinstance(event, Progress)]
    assert steps == list(range(checkpoint.step + 1, 9))


@pytest.mark.parametrize(
    ("fields", "code", "path"),
    [
        ({"base_model": "./no-such-model"}, "base_model_not_found", "base_model"),
        ({"base_model": "/"}, "base_model_unusable", "base_model"),
        ({"target_modules": ["none_proj"]}, "targets_not_found", "target_modules"),
        ({"datasets": [{"path": "sha256:" + "0" * 64, "file_format": "jsonl"}]}, "blob_not_found", ""),
        ({"sequence_len": 8, "excess_length_strategy": "error"}, "invalid_data", "datasets row 1"),
        ({"chat_template": "{% for"}, "invalid_job", "chat_template"),
        ({"resources": {"gpus": 1}}, "no_capacity", "resources.gpus"),
    ],
)
def test_what_cannot_be_trained_is_told_with_its_place(
    orchestrator: Orchestrator, task: Callable[..., TrainingTask], fields: dict[str, Any], code: str, path: str
) -> None:
    work(orchestrator, task(**fields))
    body = failure(orchestrator)
    assert (body.code, body.problems[0].path) == (code, path)


def test_bad_rows_are_named_by_their_data_set_and_line(orchestrator: Orchestrator, task: Callable[..., TrainingTask]) -> None:
    bad = orchestrator.store(b'{"prompt": "x"}\n{broken\n')
    work(orchestrator, task(datasets=[{"path": bad, "file_format": "jsonl"}]))
    problems = failure(orchestrator).problems
    assert [(problem.path, problem.line) for problem in problems] == [("datasets[0]: completion", 1), ("datasets[0]", 2)]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError("a bug\n  File x.py"), "training_crashed", "RuntimeError: a bug File x.py"),
        (MemoryError(), "out_of_memory", "memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full", "No space left"),
        (OSError(errno.EACCES, "Permission denied"), "training_crashed", "Permission denied"),
        (StorageFull("the hub is full"), "storage_full", "the hub is full"),
    ],
)
def test_whatever_breaks_is_told_in_words(
    orchestrator: Orchestrator, task: Callable[..., TrainingTask], error: Exception, code: str, words: str
) -> None:
    orchestrator.refuse["get_blob"] = error
    work(orchestrator, task())
    body = failure(orchestrator)
    assert body.code == code
    assert words in body.detail


def test_a_store_that_is_full_at_the_end_fails_the_attempt(orchestrator: Orchestrator, task: Callable[..., TrainingTask]) -> None:
    orchestrator.refuse["put_blob"] = StorageFull()
    work(orchestrator, task(max_steps=1))
    assert failure(orchestrator).code == "storage_full"


def test_a_checkpoint_that_cannot_be_saved_does_not_fail_the_attempt(orchestrator: Orchestrator, task: Callable[..., TrainingTask]) -> None:
    orchestrator.refuse["checkpoint"] = ServiceUnreachable("away")
    work(orchestrator, task(save_steps=2))
    assert len(orchestrator.results) == 1
    assert any(isinstance(event, Message) and event.level == "warning" for event in orchestrator.events)


@pytest.mark.parametrize(
    ("reason", "codes"),
    [(Reason.CANCELLED, ["job_cancelled"]), (Reason.STALE, []), (Reason.SILENT, []), (Reason.ASKED, [])],
)
def test_a_worker_that_must_stop_delivers_nothing(
    orchestrator: Orchestrator, task: Callable[..., TrainingTask], reason: Reason, codes: list[str]
) -> None:
    watch = Watch()
    watch.stop(reason)
    work(orchestrator, task(), watch)
    assert [body.code for body in orchestrator.failures] == codes
    assert orchestrator.results == []
    assert not any(isinstance(event, Progress) for event in orchestrator.events)


def test_a_refused_event_stops_the_worker(orchestrator: Orchestrator, task: Callable[..., TrainingTask]) -> None:
    orchestrator.refuse["report"] = StaleLease()
    watch = work(orchestrator, task(max_steps=100_000))
    assert watch.reason is Reason.STALE
    assert (orchestrator.results, orchestrator.failures) == ([], [])


@pytest.mark.parametrize("error", [ServiceUnreachable(), StaleLease(), WegeftError()])
def test_a_failure_that_cannot_be_told_raises_nothing(
    orchestrator: Orchestrator, task: Callable[..., TrainingTask], error: WegeftError
) -> None:
    orchestrator.refuse["fail"] = error
    work(orchestrator, task(base_model="./no-such-model"))
    assert orchestrator.failures == []


def test_the_job_file_that_is_published_is_the_task(orchestrator: Orchestrator, task: Callable[..., TrainingTask]) -> None:
    asked = task(max_steps=1)
    work(orchestrator, asked)
    job = next(entry.digest for entry in orchestrator.results[0].files if entry.path == "job.json")
    assert json.loads(orchestrator.blobs[job]) == asked.spec.model_dump(mode="json")
