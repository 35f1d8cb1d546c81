"""One round at a site: from an offer, its start and the site's own rows to the tensors of an update."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wegeft.algebra import Generator, difference, norm
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.control_variates import control_of, trained_names
from wegeft.contracts.errors import InvalidTensors, Problem
from wegeft.contracts.federation import Offer, TensorForm, Update
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import TrainingTask, WorkerEvent
from wegeft.contracts.wire import Wire, as_received, write_update
from workers.adaptation import strip
from workers.base_model import BaseModel
from workers.batches import hold_out
from workers.generator_start import Start, moved_from, read_start
from workers.rows import AnyRow
from workers.scaffold import advance_control, change_of_control, fit_change, shift_of
from workers.schedule import schedule_of
from workers.tasks import prepare_task
from workers.train import Callbacks, Outcome, TrainingInputs, train

_BISECTIONS = 60
_SHARED_METRICS = ("train_loss", "eval_loss", "eval_loss_before", "exact_match", "exact_match_before", "train_seconds", "train_tokens")
"""What an update tells of its training; numbers over all rows, never of one."""

Moved = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a site is asked, and what it does it with."""

    offer: Offer
    spec: JobSpec
    """The job, as the site agreed to it."""
    base: BaseModel
    rows: Sequence[AnyRow]
    start: bytes
    """The bytes of ``offer.start``, verified."""
    max_norm: float
    """Longer updates are shortened to this."""
    checkpoint: Mapping[str, bytes] | None = None
    """Of an earlier try at this very offer."""
    carried: Moved = field(default_factory=dict)
    """What the wire cut off earlier updates, by tensor: added to this one."""
    control: Moved = field(default_factory=dict)
    """The site's own control variate, by tensor; a tensor without one begins at zero."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of it."""

    tensors: bytes
    """The update's safetensors file, in the offer's wire format."""
    examples: int
    steps: int
    norm: float
    """Of the update over all generators, before it was shortened."""
    is_shortened: bool
    carried: Moved
    """What is to be added to the next update."""
    control: Moved
    """The site's control variate once this update counts; empty where none is asked for."""
    metrics: Mapping[str, float]


def train_round(work: Work, callbacks: Callbacks) -> Trained:
    """Train on the site's rows from the offer's start, and return how far its tensors have moved.

    The layers of ``work.base`` are as before when this returns or raises. Raises what :func:`workers.train.train` does, and
    :class:`InvalidTensors` where the start is not what the offer says of it or not of this base model.
    """
    start = read_start(work.start, work.offer.tensors)
    _check_forms(start, work.offer.tensors)
    spec = round_spec(work.spec, work.offer, start.scale)
    rows, held_out = split_rows(work.spec, work.rows)
    inputs = TrainingInputs(
        base=work.base,
        train_rows=rows,
        held_out_rows=held_out,
        resume_from=work.checkpoint,
        start=start,
        proximal_mu=work.spec.federation.proximal_mu if work.spec.federation else 0.0,
        control_shift=shift_of(start.controls, work.control) if work.offer.control else None,
    )
    task = TrainingTask(job_id=work.offer.job_id, attempt=work.offer.attempt, spec=spec, heartbeat_seconds=1, lease_seconds=1)
    outcome, trained = _train(task, inputs, start, callbacks)
    moved = add_carried(trained, work.carried)
    change = _control_change(work, start, trained, outcome)
    length = update_norm(start, moved)
    sent = _scaled(moved, fitting_share(start, moved, work.max_norm, work.offer.wire))
    return Trained(
        tensors=write_update({**sent, **{control_of(name): array for name, array in change.items()}}, work.offer.wire),
        examples=len(rows),
        steps=outcome.state.step,
        norm=length,
        is_shortened=length > work.max_norm,
        carried=carry_over(work, sent),
        control=advance_control(work.control, change, work.offer.wire) if work.offer.control else {},
        metrics={name: value for name in _SHARED_METRICS if (value := outcome.metrics.get(name)) is not None},
    )


def _train(task: TrainingTask, inputs: TrainingInputs, start: Start, callbacks: Callbacks) -> tuple[Outcome, Moved]:
    """Train, and return how far the tensors have moved; the base model's layers are as before, whatever happens."""
    try:
        outcome = train(task, inputs, callbacks)
        return outcome, moved_from(outcome.model, start)
    finally:
        strip(inputs.base)


def _control_change(work: Work, start: Start, trained: Moved, outcome: Outcome) -> dict[str, NDArray[np.float64]]:
    """Return how the site's control variate changes by what was trained, whatever of it is sent; nothing where none is asked for."""
    if work.offer.control is None:
        return {}
    schedule = schedule_of(work.spec, outcome.total_steps)
    rates = math.fsum(schedule.rate(step) for step in range(outcome.state.step))
    return fit_change(change_of_control(trained, start.controls, rates), work.offer.control.max_norm, work.offer.wire)


def update_of(offer: Offer, trained: Trained, control_from: str | None = None) -> Update:
    """Return what a site says of what it has trained for an offer."""
    return Update(
        version=offer.version,
        job_id=offer.job_id,
        round=offer.round,
        attempt=offer.attempt,
        site=offer.site,
        offer=offer.digest,
        base_model=offer.base_model,
        start=offer.start,
        tensors=digest_of(trained.tensors),
        size=len(trained.tensors),
        examples=trained.examples,
        steps=trained.steps,
        metrics=dict(trained.metrics),
        control_from=control_from,
    )


def add_carried(moved: Moved, carried: Moved) -> Moved:
    """Return an update with what was cut off earlier ones; a tensor whose shape has changed since goes without."""
    fitting = {name for name, array in moved.items() if name in carried and carried[name].shape == array.shape}
    return {name: array + carried[name] if name in fitting else array for name, array in moved.items()}


def carry_over(work: Work, sent: Moved) -> Moved:
    """Return what the wire cuts off ``sent``, with what still waits for tensors that this round does not ask for.

    Nothing for float32, which cuts off nothing, and for ``stack``, which begins each round from other factors.
    """
    if work.offer.wire == "fp32" or work.offer.rule.name == "stack":
        return {}
    cut = {name: array - as_received(name, array, work.offer.wire) for name, array in sent.items()}
    return {**work.carried, **cut}


def dry_step(spec: JobSpec, base: BaseModel, rows: Sequence[AnyRow], report: Callable[[WorkerEvent], None]) -> None:
    """Make one optimizer step of the job from a fresh generator and forget it; raises what :func:`workers.train.train` does."""
    task = TrainingTask(
        job_id="preflight",
        attempt=1,
        spec=spec.model_copy(update={"max_steps": 1, "val_set_size": 0, "save_steps": None, "logging_steps": 1}),
        heartbeat_seconds=1,
        lease_seconds=1,
    )
    callbacks = Callbacks(report=report, save=lambda _step, _files: None, should_stop=lambda: False, now=monotonic)
    try:
        train(task, TrainingInputs(base=base, train_rows=split_rows(spec, rows)[0]), callbacks)
    finally:
        strip(base)


def round_spec(spec: JobSpec, offer: Offer, scale: float) -> JobSpec:
    """Return the job as one site trains it in one round: at its rank, for its steps, in an order of rows of its own."""
    change = {
        "rank": offer.rank,
        "alpha": scale * offer.rank,
        "seed": seed_of(offer),
        "max_steps": offer.max_steps or spec.max_steps,
        "val_set_size": 0,
    }
    return spec.model_copy(update=change)


def planned_steps(spec: JobSpec, offer: Offer, base: BaseModel, rows: Sequence[AnyRow]) -> int:
    """Return how many optimizer steps an offer asks of these rows; raises what reading them does. Nothing is trained."""
    change = {"seed": seed_of(offer), "max_steps": offer.max_steps or spec.max_steps, "val_set_size": 0}
    return prepare_task(spec.model_copy(update=change), base, *split_rows(spec, rows)).total_steps


def seed_of(offer: Offer) -> int:
    """Return the seed of a site's round: another one for each round, try and site."""
    return int.from_bytes(hashlib.sha256(f"{offer.seed}\n{offer.site}".encode()).digest()[:4], "big")


def split_rows(spec: JobSpec, rows: Sequence[AnyRow]) -> tuple[list[AnyRow], list[AnyRow]]:
    """Return the rows to train on and those to measure on: the same in each round, so that no row is ever both."""
    if not spec.val_set_size:
        return list(rows), []
    kept, held = hold_out(len(rows), spec.val_set_size, spec.seed)
    return [rows[row] for row in kept], [rows[row] for row in held]


def _check_forms(start: Start, forms: Mapping[str, TensorForm]) -> None:
    problems = [
        Problem(path=name, message=f"must have shape {list(form.shape)}, as offered", value=str(list(start.trained[name].shape)))
        for name, form in ((name, forms[name]) for name in trained_names(forms))
        if start.trained[name].shape != form.shape
    ]
    if problems:
        raise InvalidTensors("the start is not what the offer says of it", problems=problems)


def update_norm(start: Start, moved: Moved) -> float:
    """Return the Frobenius norm of an update over all generators, as the server's gate takes it."""
    return math.hypot(*(norm(difference(_trained(start, group, moved), _trained(start, group, {}))) for group in start.groups))


def _trained(start: Start, group: str, moved: Moved) -> Generator:
    def now(part: str) -> Any:
        name = f"{group}.{part}"
        return start.trained[name].astype(np.float64) + moved.get(name, 0.0)

    psi = now("core") @ now("psi") if f"{group}.core" in start.trained else now("psi")
    return Generator(phi=now("phi"), psi=psi, scale=start.scale)


def fitting_share(start: Start, moved: Moved, max_norm: float, wire: Wire) -> float:
    """Return the largest share of ``moved``, up to 1, whose norm is at most ``max_norm`` as the server will read it."""

    def fits(share: float) -> bool:
        return update_norm(start, _received(_scaled(moved, share), wire)) <= max_norm

    if fits(1.0):
        return 1.0
    # The norm is not linear in the share, because both factors of a generator move.
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _scaled(moved: Moved, share: float) -> Moved:
    return {name: share * array for name, array in moved.items()}


def _received(moved: Moved, wire: Wire) -> Moved:
    return {name: as_received(name, array, wire) for name, array in moved.items()}
