"""A job's log as it comes, told to a person: a bar that moves on a terminal, and plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, assert_never

from cli.output import console, error_console, is_terminal, printable, show_bytes, show_duration
from wegeft.contracts.job_tasks import show_metric
from wegeft.contracts.training import Advanced, CheckpointSaved, Evaluation, EventRecord, JobEvent, Message, Progress, StateChanged

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar
    from rich.progress import TaskID

_LEVELS = {"info": "", "warning": "warning: ", "error": "error: "}


class Narrator(Protocol):
    """Tells events, one after the other."""

    def tell(self, record: EventRecord) -> None:
        """Tell one event."""


class Pace:
    """How fast an attempt moves, by the times that the server noted."""

    def __init__(self) -> None:
        self._attempt = 0
        self._first: tuple[datetime, int] | None = None

    def seconds_left(self, record: EventRecord, event: Progress) -> float | None:
        """Return the time that the steps to come will take, at the mean pace of the attempt so far; None while it cannot be told."""
        if self._first is None or record.attempt != self._attempt:
            self._attempt, self._first = record.attempt, (record.at, event.step)
            return None
        began, step = self._first
        steps, seconds = event.step - step, (record.at - began).total_seconds()
        return (event.total_steps - event.step) * seconds / steps if steps > 0 and seconds > 0 else None


def describe(event: JobEvent) -> str:
    """Return an event as text of one or more lines."""
    match event:
        case Progress():
            return (
                f"step {event.step}/{event.total_steps}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
                f"grad {event.gradient_norm:.3g}  {event.tokens_per_second:.0f} tok/s"
            )
        case Evaluation():
            return _describe_evaluation(event)
        case CheckpointSaved():
            return f"checkpoint at step {event.step} ({show_bytes(event.size)})"
        case Advanced():
            return f"part {event.step}/{event.total_steps}  {printable(event.text)}"
        case Message():
            return f"{_LEVELS[event.level]}{printable(event.text)}"
        case StateChanged():
            return f"{event.state}{': ' if event.text else ''}{printable(event.text)}"
        case _:
            assert_never(event)


def _describe_evaluation(event: Evaluation) -> str:
    exact = "" if event.exact_match is None else f", exact match {event.exact_match:.1%}"
    others = "".join(f", {name.replace('_', ' ')} {show_metric(name, value)}" for name, value in event.metrics.items())
    lines = [f"held-out loss {event.loss:.4f}{exact}{others} over {event.rows} rows at step {event.step}/{event.total_steps}"]
    for sample in event.samples:
        told = (("prompt", sample.prompt), ("expected", sample.expected), ("answer", sample.answer))
        lines += [f"  {name:<8}  {_one_line(text)}" for name, text in told]
    return "\n".join(lines)


def _one_line(text: str, limit: int = 160) -> str:
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


@contextmanager
def narrator() -> Iterator[Narrator]:
    """Give a narrator that suits where standard output goes."""
    if not is_terminal(sys.stdout):
        yield _LineNarrator()
        return
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as ProgressBar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[figures]}"))
    with ProgressBar(*columns, console=console(), transient=True) as bar:
        yield _BarNarrator(bar, bar.add_task("waiting", total=None, figures=""))


class _LineNarrator:
    """Prints a line for each event, with its time."""

    def __init__(self) -> None:
        self._pace = Pace()

    def tell(self, record: EventRecord) -> None:
        left = self._pace.seconds_left(record, record.event) if isinstance(record.event, Progress) else None
        tail = "" if left is None else f"  {show_duration(left)} left"
        sys.stdout.write(f"{record.at.astimezone():%H:%M:%S} {describe(record.event)}{tail}\n")
        sys.stdout.flush()


class _BarNarrator:
    """Moves a bar by the steps, and prints everything else above it."""

    def __init__(self, bar: ProgressBar, task: TaskID) -> None:
        self._bar = bar
        self._task = task
        self._pace = Pace()

    def tell(self, record: EventRecord) -> None:
        event = record.event
        if isinstance(event, Progress):
            left = self._pace.seconds_left(record, event)
            tail = "" if left is None else f"  {show_duration(left)} left"
            figures = f"{event.step}/{event.total_steps}  loss {event.loss:.4f}  {event.tokens_per_second:.0f} tok/s{tail}"
            self._bar.update(self._task, description="training", total=event.total_steps, completed=event.step, figures=figures)
            return
        if isinstance(event, Advanced):
            figures = f"{event.step}/{event.total_steps}"
            self._bar.update(self._task, description="converting", total=event.total_steps, completed=event.step, figures=figures)
        if isinstance(event, StateChanged):
            self._bar.update(self._task, description=str(event.state))
        self._bar.console.print(f"{record.at.astimezone():%H:%M:%S} {describe(event)}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def transfer_bar(total: int) -> Iterator[TransferBar]:
    """Give a bar on standard error for ``total`` bytes that are sent; on anything but a terminal nothing is shown."""
    if not is_terminal(sys.stderr) or not total:
        yield TransferBar(None)
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as ProgressBar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    with ProgressBar(*columns, console=error_console(), transient=True) as bar:
        yield TransferBar((bar, bar.add_task("uploading", total=total)))


class TransferBar:
    """Counts the bytes of several files that are sent one after the other."""

    def __init__(self, shown: tuple[ProgressBar, TaskID] | None) -> None:
        self._shown = shown
        self._before = 0

    def update(self, sent: int, _total: int) -> None:
        """Show that ``sent`` bytes of the present file are gone."""
        if self._shown:
            bar, task = self._shown
            bar.update(task, completed=self._before + sent)

    def finish_file(self, size: int) -> None:
        """Count a whole file, which may have been there already."""
        self._before += size
        self.update(0, 0)
