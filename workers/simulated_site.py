"""What a simulated federation has done elsewhere: sites' rounds by the code of real sites, and measuring what became of them.

A hand loads the base model once and then trains one site after the other on it. Everything that follows from an order depends on the
order alone, not on which hand did it, nor on what it did before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from wegeft.contracts.errors import Problem, WegeftError
from wegeft.contracts.federation import Offer
from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_tasks import TaskType
from workers.adaptation import adapt, strip
from workers.base_model import BaseModel, default_cache, load_base_model, request_of
from workers.generator_start import begin_at, read_start
from workers.labels import find_labels
from workers.processor import use_threads
from workers.rows import AnyRow
from workers.site_training import Moved, Trained, Work, train_round
from workers.tasks import prepare_task
from workers.train import Callbacks

EVERYBODY = "everybody"
"""Stands for a site that has all rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainOrder:
    """One site's round."""

    site: str
    offer: Offer
    start: bytes
    carried: Moved = field(default_factory=dict)
    times: int = 1
    """How many rounds' steps to make in one go."""
    rows: Sequence[AnyRow] | None = None
    """What it trains on in place of its own rows; as many of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasureOrder:
    """Generators to measure on the held-out rows."""

    start: bytes
    """As a site of the job's rank gets it."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why a site could not do what it was asked."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How generators do on the held-out rows."""

    loss: float
    metrics: Mapping[str, float]


AnyOrder = TrainOrder | MeasureOrder
AnyResult = Trained | Failed | Measured


@dataclass(frozen=True, kw_only=True, eq=False)
class Workplace:
    """What every hand has."""

    spec: JobSpec
    rows: Sequence[AnyRow]
    parts: Mapping[str, Sequence[int]]
    """Numbers of each site's rows."""
    held_out: Sequence[AnyRow] = ()

    def prepare(self) -> Callable[[AnyOrder], AnyResult]:
        """Load the base model and return what does orders with it, on one core."""
        use_threads(1)
        base = load_base_model(replace(request_of(self.spec, default_cache(), find_labels(self.spec, self.rows)), gpus=0))
        if self.spec.task is not TaskType.CAUSAL_LM:
            # No head is sent, so it stays as the base model has it.
            base = replace(base, head_modules=())
        return _Hand(self, base)


@dataclass(frozen=True, eq=False)
class _Hand:
    place: Workplace
    base: BaseModel

    def __call__(self, order: AnyOrder) -> AnyResult:
        try:
            return self._train(order) if isinstance(order, TrainOrder) else self._measure(order)
        except WegeftError as error:
            if isinstance(order, MeasureOrder):
                raise
            return Failed(problems=error.body().problems)

    def _train(self, order: TrainOrder) -> Trained:
        numbers = range(len(self.place.rows)) if order.site == EVERYBODY else self.place.parts[order.site]
        spec, offer = _prolonged(self.place.spec, order.offer, order.times)
        work = Work(
            offer=offer,
            spec=spec,
            base=self.base,
            rows=[self.place.rows[number] for number in numbers] if order.rows is None else order.rows,
            start=order.start,
            max_norm=offer.max_update_norm,
            carried=order.carried,
        )
        return train_round(work, _quiet())

    def _measure(self, order: MeasureOrder) -> Measured:
        start, spec = read_start(order.start, ()), self.place.spec.model_copy(update={"val_set_size": 0})
        task = prepare_task(spec, self.base, self.place.rows[:1], self.place.held_out)
        try:
            model = adapt(self.base, spec)
            begin_at(model, start)
            score = task.begin(model).measure(lambda: None)
        finally:
            strip(self.base)
        return Measured(loss=score.loss, metrics={str(name): value for name, value in score.metrics.items()})


def _prolonged(spec: JobSpec, offer: Offer, times: int) -> tuple[JobSpec, Offer]:
    if times == 1:
        return spec, offer
    steps = {"max_steps": None if spec.max_steps is None else times * spec.max_steps, "num_epochs": times * spec.num_epochs}
    asked = None if offer.max_steps is None else times * offer.max_steps
    return spec.model_copy(update=steps), offer.model_copy(update={"max_steps": asked})


def _quiet() -> Callbacks:
    return Callbacks(report=lambda _event: None, save=lambda _step, _files: None, should_stop=lambda: False, now=monotonic)
