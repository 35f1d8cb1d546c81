"""What a worker says to the orchestrator about the one attempt that it works at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from wegeft.client.blobs import STORE_SECONDS, fetch, upload
from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.conversion import AttemptTask, ConversionResult, ConversionTask
from wegeft.contracts.errors import ErrorBody
from wegeft.contracts.placement import AttemptOrder
from wegeft.contracts.training import (
    BlobView,
    Checkpoint,
    EventBatch,
    Heartbeat,
    HeartbeatReply,
    PublishedVersion,
    TrainingResult,
    TrainingTask,
)

HEARTBEAT_SECONDS = 5.0
"""A heartbeat is worth less than the next one, so it is given up early and never tried again."""


class AttemptClient:
    """The orchestrator, for the holder of one attempt's token; safe to use from several threads.

    Every call is harmless to repeat. :class:`StaleLease` means that another attempt holds the job: stop at once.
    """

    def __init__(self, order: AttemptOrder, *, timeout_seconds: float = 30.0, patience_seconds: float = 30.0) -> None:
        self._transport = Transport(order.server, order.token, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)
        self._prefix = f"/attempts/{quote(order.job_id, safe='')}/{order.attempt}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def task(self) -> TrainingTask | ConversionTask:
        """Return what is to be trained or converted; from now on the job counts as running."""
        return self._transport.ask(Call(method="GET", path=f"{self._prefix}/task"), AttemptTask).root

    def heartbeat(self, step: int | None = None) -> HeartbeatReply:
        """Say that the worker lives, and how many optimizer steps are done; learn whether to stop. Tried once, briefly."""
        call = Call(
            method="POST",
            path=f"{self._prefix}/heartbeat",
            headers=_JSON,
            content=json_body(Heartbeat(step=step)),
            read_seconds=HEARTBEAT_SECONDS,
        )
        return self._transport.ask(call, HeartbeatReply, patience_seconds=0)

    def report(self, batch: EventBatch) -> None:
        """Add events to the job's log, once however often it is sent."""
        self._transport.tell(self._post("events", batch))

    def get_blob(self, digest: str, path: Path) -> int:
        """Write what the task names, data, a checkpoint or a version's file, to the new file ``path``, verified; return its bytes."""
        return fetch(self._transport, f"{self._prefix}/blobs/{quote(digest, safe=':')}", path, digest)

    def put_blob(self, source: Path | bytes) -> BlobView:
        """Store a file or bytes; return their digest and size."""
        return upload(self._transport, f"{self._prefix}/blobs", source)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Let a later attempt go on from here; its files are stored already."""
        self._transport.tell(self._post("checkpoints", checkpoint))

    def finish(self, result: TrainingResult) -> PublishedVersion:
        """Publish the adapter and end the job, in one transaction; its files are stored already."""
        # The server reads every byte before it answers.
        return self._transport.ask(replace(self._post("result", result), read_seconds=STORE_SECONDS), PublishedVersion)

    def finish_conversion(self, result: ConversionResult) -> PublishedVersion:
        """Attach the formats and end the job, in one transaction; their files are stored already. Return the version that has them."""
        return self._transport.ask(replace(self._post("conversion", result), read_seconds=STORE_SECONDS), PublishedVersion)

    def fail(self, error: ErrorBody) -> None:
        """End the attempt without a result; the orchestrator decides whether there will be another."""
        self._transport.tell(self._post("failure", error))

    def _post(self, name: str, body: EventBatch | Checkpoint | TrainingResult | ConversionResult | ErrorBody) -> Call:
        return Call(method="POST", path=f"{self._prefix}/{name}", headers=_JSON, content=json_body(body))


_JSON = {"Content-Type": "application/json"}
