"""What the orchestrator, a worker and a reader of a job tell each other: tasks, events, checkpoints, results, views."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from wegeft.contracts.adapter import Digest, FileEntry
from wegeft.contracts.errors import ErrorBody
from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_kinds import AnySpec
from wegeft.contracts.job_tasks import MetricName


class _Frozen(BaseModel):
    # NaN and infinity are refused, because JSON has neither.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(ge=0, lt=2**31)]
"""Of steps or rows; what every database keeps as an integer."""


MAX_TEXT = 16_384
"""Characters of a text in an event."""
MAX_BATCH = 1000
"""Events in a batch."""
MAX_SAMPLES = 16
"""Samples of an evaluation."""
MAX_FILES = 1000
"""Files of a checkpoint or a result."""


def _cut(value: Any) -> Any:
    return value[: MAX_TEXT - 1] + "…" if isinstance(value, str) and len(value) > MAX_TEXT else value


EventText = Annotated[str, BeforeValidator(_cut), Field(max_length=MAX_TEXT)]
"""Text that is cut where it is too long, with an ellipsis, so that a model that babbles does not end its job."""

Files = Annotated[tuple[FileEntry, ...], Field(max_length=MAX_FILES)]
"""Of a checkpoint or a result."""


class JobState(StrEnum):
    """Where a job is; ``succeeded``, ``failed`` and ``cancelled`` are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether no event can move the job any more."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class Checkpoint(_Frozen):
    """Everything that training needs to go on as if it had never stopped, by digest."""

    step: Count
    """Optimizer steps done."""
    files: Files


class TrainingTask(_Frozen):
    """One attempt at one job, as the worker receives it; it holds no credentials."""

    job_id: str
    attempt: int
    spec: JobSpec
    resume_from: Checkpoint | None = None
    heartbeat_seconds: float
    """How often the worker must say that it lives."""
    lease_seconds: float
    """A worker that could not renew for so long stops itself."""


class Progress(_Frozen):
    """An optimizer step is done."""

    type: Literal["progress"] = "progress"
    step: Count
    total_steps: Count
    epoch: float
    loss: float
    """Mean over the step's answer tokens, or a classifier's rows, in nats; in a regression, of squares."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens_per_second: float
    """Tokens of input processed each second, over the step."""


class Sample(_Frozen):
    """One held-out row answered."""

    prompt: EventText
    expected: EventText
    answer: EventText


class Evaluation(_Frozen):
    """The held-out split was measured."""

    type: Literal["evaluation"] = "evaluation"
    step: Count
    total_steps: Count
    loss: float
    """Mean over the split's answer tokens, or a classifier's rows, in nats; in a regression, of squares."""
    rows: int
    exact_match: float | None = None
    """Share of generated answers that match the expected one, 0 to 1; None where not asked for."""
    metrics: Annotated[dict[MetricName, float], Field(max_length=16)] = Field(default_factory=dict)
    """What else was measured, by its name."""
    samples: Annotated[tuple[Sample, ...], Field(max_length=MAX_SAMPLES)] = ()


class CheckpointSaved(_Frozen):
    """A checkpoint is safe in the store."""

    type: Literal["checkpoint"] = "checkpoint"
    step: Count
    size: int
    """Bytes."""


class Advanced(_Frozen):
    """A part of a conversion is done."""

    type: Literal["advanced"] = "advanced"
    step: Count
    total_steps: Count
    text: EventText
    """What was done."""


class Message(_Frozen):
    """Something that a person should read."""

    type: Literal["message"] = "message"
    level: Literal["info", "warning", "error"] = "info"
    text: EventText


class StateChanged(_Frozen):
    """The job moved; written by the ledger only."""

    type: Literal["state"] = "state"
    state: JobState
    text: str = ""


WorkerEvent = Annotated[Progress | Evaluation | CheckpointSaved | Advanced | Message, Field(discriminator="type")]
"""What a worker may report."""

JobEvent = Annotated[Progress | Evaluation | CheckpointSaved | Advanced | Message | StateChanged, Field(discriminator="type")]
"""What a reader of a job's log may meet."""


class EventRecord(_Frozen):
    """An event in a job's log."""

    sequence: int
    """Grows within the job; pass the last one seen to read on."""
    attempt: int
    at: datetime
    event: JobEvent


class EventBatch(_Frozen):
    """Events from a worker, in order; sending a batch again is harmless."""

    first_number: Count
    """Number of the first event within the attempt, counted by the worker from 0, so that a repeated batch is recognised."""
    events: Annotated[tuple[WorkerEvent, ...], Field(max_length=MAX_BATCH)]

    @model_validator(mode="after")
    def _is_countable(self) -> Self:
        if self.first_number + len(self.events) >= 2**31:
            raise ValueError("the events' numbers must stay below 2147483647")
        return self


class EventPage(_Frozen):
    """The next events of a job's log."""

    records: tuple[EventRecord, ...]
    state: JobState
    """The job's state when the page was read."""


class Heartbeat(_Frozen):
    """The worker lives."""

    step: Count | None = None
    """Optimizer steps done; None before the first."""


class MetricPoint(_Frozen):
    """A metric's value at a step."""

    step: int
    value: float


class MetricPage(_Frozen):
    """The next values of one of a job's metrics, one a step: where steps were made again, the last attempt's."""

    name: str
    points: tuple[MetricPoint, ...]


class HeartbeatReply(_Frozen):
    """What the orchestrator answers to a sign of life."""

    should_stop: bool
    """The job was cancelled: stop at once, and report it."""


class TrainingResult(_Frozen):
    """A finished attempt; its files are in the store already."""

    files: Files
    metrics: dict[str, float]
    """Of the held-out split and the run: ``eval_loss``, ``eval_loss_before``, ``accuracy``, ``train_loss``, ``steps``, …"""
    base_model: str
    """As pinned by the worker: an id with its commit, a folder, or a file with its digest."""
    trainable_parameters: int


class PublishedVersion(_Frozen):
    """Where a job's adapter went."""

    adapter: str
    version: int

    @property
    def ref(self) -> str:
        """``namespace/name@version``."""
        return f"{self.adapter}@{self.version}"


class JobView(BaseModel):
    """A job, as the orchestrator answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    state: JobState
    priority: int
    labels: dict[str, str]
    spec: AnySpec
    attempt: int
    """Attempts begun so far."""
    step: int
    """Optimizer steps done, as last reported; of a federated job, rounds committed; of a conversion, its parts."""
    total_steps: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: ErrorBody | None
    result: PublishedVersion | None
    """What it has published; of a conversion, the version that the formats are attached to."""
    resume_from: Checkpoint | None
    waiting_for: str | None = None
    """Why a job does not get on yet, in words: a queued one, or a federated one that looks for sites."""


class JobPage(_Frozen):
    """Jobs, newest first."""

    jobs: tuple[JobView, ...]
    next_cursor: str | None
    """Pass it as ``after`` for the next page; None at the end."""


class BlobView(_Frozen):
    """Bytes in the store."""

    digest: Digest
    size: int
