"""Events and checkpoints on their way: in order, once, and never in the way of a step."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import ServiceUnreachable, StaleLease, WegeftError
from wegeft.contracts.training import BlobView, Checkpoint, CheckpointSaved, EventBatch, Message, Progress, WorkerEvent
from workers import outbox
from workers.outbox import CheckpointOutbox, EventOutbox, thinned


def progress(step: int) -> Progress:
    return Progress(step=step, total_steps=9, epoch=0, loss=1, learning_rate=1, gradient_norm=1, tokens_per_second=1)


def message(number: int) -> Message:
    return Message(text=str(number))


class Receiver:
    """Takes batches as the orchestrator does: a repeated event is known by its number."""

    def __init__(self, *, failures: int = 0) -> None:
        self.events: list[WorkerEvent] = []
        self.batches: list[EventBatch] = []
        self.failures = failures

    def take(self, batch: EventBatch) -> None:
        self.batches.append(batch)
        assert batch.first_number <= len(self.events), "a gap"
        self.events[batch.first_number :] = batch.events
        if self.failures:
            # The batch has come, and the answer is lost.
            self.failures -= 1
            raise ServiceUnreachable


def test_events_arrive_in_order_and_once() -> None:
    receiver, errors = Receiver(failures=3), list[WegeftError]()
    events = EventOutbox(receiver.take, errors.append)
    sent = [message(number) for number in range(2 * outbox._BATCH + 50)]
    with events.sending():
        for event in sent:
            events.add(event)
        while len(receiver.batches) < 4:
            time.sleep(0.01)
    assert receiver.events == sent
    assert len(errors) == 3


def test_what_is_left_is_sent_at_the_end() -> None:
    receiver = Receiver()
    events = EventOutbox(receiver.take, lambda _error: None)
    with events.sending():
        events.add(message(1))
    assert receiver.events == [message(1)]


def test_adding_never_waits_for_the_network() -> None:
    gate = threading.Event()

    def hang(_batch: EventBatch) -> None:
        gate.wait(30)

    events = EventOutbox(hang, lambda _error: None)
    with events.sending():
        time.sleep(outbox._PAUSE_SECONDS * 2)
        started = time.monotonic()
        for number in range(1000):
            events.add(message(number))
        assert time.monotonic() - started < 1
        gate.set()


def test_a_refusal_is_told() -> None:
    errors: list[WegeftError] = []

    def refuse(_batch: EventBatch) -> None:
        raise StaleLease

    events = EventOutbox(refuse, errors.append)
    with events.sending():
        events.add(message(1))
    assert {type(error) for error in errors} == {StaleLease}


def test_memory_is_bounded_while_the_orchestrator_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_LIMIT", 100)
    receiver = Receiver()
    events = EventOutbox(receiver.take, lambda _error: None)
    for step in range(5000):
        events.add(progress(step))
    assert len(events._waiting) <= 101
    with events.sending():
        pass
    steps = [event.step for event in receiver.events if isinstance(event, Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == 4999


@given(st.lists(st.booleans(), min_size=2))
def test_thinning_keeps_messages_where_it_can_and_always_helps(kinds: list[bool]) -> None:
    events = tuple(progress(n) if is_step else message(n) for n, is_step in enumerate(kinds))
    kept = thinned(events)
    assert len(kept) < len(events)
    assert [event for event in events if event in kept] == kept
    if any(kinds):
        assert [event for event in kept if isinstance(event, Message)] == [event for event in events if isinstance(event, Message)]


class Store:
    """Stores blobs and checkpoints; each blob takes ``seconds``."""

    def __init__(self, *, seconds: float = 0.0, error: WegeftError | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.blobs: dict[str, bytes] = {}
        self.checkpoints: list[Checkpoint] = []

    def put_blob(self, content: bytes) -> BlobView:
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        self.blobs[digest_of(content)] = content
        return BlobView(digest=digest_of(content), size=len(content))

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        assert all(entry.digest in self.blobs for entry in checkpoint.files)
        self.checkpoints.append(checkpoint)


def files(step: int) -> dict[str, bytes]:
    return {"state.json": b"%d" % step, "state.safetensors": b"tensors"}


def deliver(store: Any, steps: range) -> tuple[list[WorkerEvent], list[WegeftError]]:
    events: list[WorkerEvent] = []
    errors: list[WegeftError] = []
    checkpoints = CheckpointOutbox(store, events.append, errors.append)
    with checkpoints.delivering():
        for step in steps:
            checkpoints.save(step, files(step))
            time.sleep(0.02)
        deadline = time.monotonic() + 20
        while not (errors or (store.checkpoints and store.checkpoints[-1].step == steps[-1])) and time.monotonic() < deadline:
            time.sleep(0.01)
    return events, errors


def test_a_checkpoint_is_committed_after_its_bytes_and_told() -> None:
    store = Store()
    events, errors = deliver(store, range(3, 4))
    assert [checkpoint.step for checkpoint in store.checkpoints] == [3]
    assert [entry.path for entry in store.checkpoints[0].files] == ["state.json", "state.safetensors"]
    assert events == [CheckpointSaved(step=3, size=8)]
    assert errors == []


def test_a_checkpoint_that_a_newer_one_overtakes_is_let_go() -> None:
    store = Store(seconds=0.15)
    deliver(store, range(10))
    steps = [checkpoint.step for checkpoint in store.checkpoints]
    assert steps == sorted(steps)
    assert len(steps) < 10
    assert steps[-1] == 9


def test_a_checkpoint_that_cannot_be_saved_is_a_warning() -> None:
    events, errors = deliver(Store(error=ServiceUnreachable("the store is away")), range(2, 3))
    (event,) = events
    assert isinstance(event, Message)
    assert (event.level, event.text) == ("warning", "the checkpoint of step 2 could not be saved: the store is away")
    assert len(errors) == 1
