"""What the scheduler and a pool tell each other: an order to start an attempt, and how an attempt ended."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from wegeft.contracts.errors import ErrorBody


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def handle_of(job_id: str, attempt: int) -> str:
    """Return the one name of an attempt, ``<job id>.<attempt>``."""
    return f"{job_id}.{attempt}"


class AttemptOrder(_Frozen):
    """Everything that a pool needs to start one attempt; the worker fetches the rest over HTTP."""

    server: str
    """Base URL of the orchestrator, as the worker reaches it."""
    job_id: str
    attempt: int = Field(ge=1)
    token: str = Field(repr=False)
    """Bearer token of this attempt alone; a secret, so it is neither logged nor put on a command line."""
    cpus: int | None = None
    """CPU cores; None is all of the node that runs the attempt."""
    gpus: int = 0
    memory_bytes: int | None = None
    """Memory to set aside; None sets none aside."""

    @property
    def handle(self) -> str:
        """The name under which the pool reports and stops the attempt."""
        return handle_of(self.job_id, self.attempt)


class AttemptEnd(_Frozen):
    """An attempt's process is over; each end is reported once."""

    handle: str
    error: ErrorBody | None = None
    """None where the process says that it reported its own end over HTTP; otherwise why it did not:
    ``worker_lost``, ``out_of_memory``, ``no_capacity``, …"""
    is_refused: bool = False
    """Whether the pool refused to start it, so that nothing of it ever ran; ``error`` says why."""
