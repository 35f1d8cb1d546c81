"""A job's log as lines of text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from hub.web.showing import show_bytes
from wegeft.contracts.job_tasks import show_metric
from wegeft.contracts.training import Advanced, CheckpointSaved, Evaluation, EventRecord, JobEvent, Message, Progress, StateChanged

_LONGEST = 2000


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One event."""

    at: datetime
    level: str
    """``info``, ``warning`` or ``error``."""
    text: str


def log_line(record: EventRecord) -> LogLine:
    """Return an event as a line; what a worker wrote is cut where it is very long, and shows no control characters."""
    level = record.event.level if isinstance(record.event, Message) else "info"
    text = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in _describe(record.event)[:_LONGEST])
    return LogLine(at=record.at, level=level, text=text)


def _describe(event: JobEvent) -> str:
    match event:
        case Progress():
            speed = f"{event.tokens_per_second:.0f} tok/s"
            return f"step {event.step}/{event.total_steps}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  {speed}"
        case Evaluation():
            others = "".join(f", {name.replace('_', ' ')} {show_metric(name, value)}" for name, value in event.metrics.items())
            exact = "" if event.exact_match is None else f", exact match {event.exact_match:.1%}"
            return f"held-out loss {event.loss:.4f}{exact}{others} over {event.rows} rows at step {event.step}"
        case CheckpointSaved():
            return f"checkpoint at step {event.step} ({show_bytes(event.size)})"
        case Advanced():
            return f"part {event.step}/{event.total_steps}  {event.text}"
        case Message():
            return event.text
        case StateChanged():
            return f"{event.state}{': ' if event.text else ''}{event.text}"
        case _:
            assert_never(event)
