"""The only training loop: a job's rows and a base model in, a trained adapter and its measurements out.

It knows nothing of services. What happens is told through callbacks, which also take checkpoints and may ask to stop. On a CPU in
float32, a run that is resumed from any of its checkpoints ends in the same bytes as one that never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wegeft.contracts.errors import InvalidTensors, LossNotFinite, OutOfMemory
from wegeft.contracts.job import JobSpec, seconds_of
from wegeft.contracts.training import Evaluation, Message, Progress, TrainingTask, WorkerEvent
from workers.adaptation import adapt, count_lora_parameters, trainable
from workers.base_model import BaseModel
from workers.best_adapter import BestAdapter
from workers.checkpoint import Measurement, Memory, Point, RunState, pack, read_state, unpack
from workers.generator_start import Start, begin_at, learning_parameters
from workers.proximal import Spring
from workers.rank_allocation import allocation_of
from workers.rows import AnyRow
from workers.scaffold import Control, Correction
from workers.schedule import schedule_of
from workers.tasks import prepare_task
from workers.tasks.task import Answers, Task


class TrainingStopped(Exception):
    """The callbacks asked to stop; nothing was saved since the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a task names, brought here."""

    base: BaseModel
    train_rows: Sequence[AnyRow]
    held_out_rows: Sequence[AnyRow] = ()
    resume_from: Mapping[str, bytes] | None = None
    """Files of a checkpoint, as ``Callbacks.save`` received them."""
    start: Start | None = None
    """Generators to begin from, for a federation's site; None begins with the seed's own."""
    proximal_mu: float = 0.0
    """How strongly each step pulls back to where training began; see :mod:`workers.proximal`."""
    control_shift: Control | None = None
    """With a ``start``: makes each step a plain gradient step, corrected by this; see :mod:`workers.scaffold`."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """How the loop speaks to what is around it. None of them should take long: the loop waits."""

    report: Callable[[WorkerEvent], None]
    save: Callable[[int, dict[str, bytes]], None]
    """Takes the steps done and the checkpoint's files by name."""
    should_stop: Callable[[], bool]
    """Asked between micro-batches, and between the tokens of an answer."""
    now: Callable[[], float]
    """Seconds of a clock that never goes back."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trained adapter, and what was measured."""

    model: Any
    """The ``PeftModel``; with early stopping, its adapter is the best one."""
    state: RunState
    before: Measurement | None
    after: Measurement | None
    """None without a held-out split."""
    total_steps: int
    epochs: float
    trainable_parameters: int
    lora_parameters: int | None
    """Of the LoRA that computes the same; None for a method that has none."""

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that a version is published with."""
        last = self.state.history[-max(1, len(self.state.history) // 10) :]
        before = {f"{name}_before": value for name, value in self.before.metrics.items()} if self.before else {}
        after = {str(name): value for name, value in self.after.metrics.items()} if self.after else {}
        figures: dict[str, float | None] = {
            **before,
            **after,
            "eval_loss": self.after.loss if self.after else None,
            "eval_loss_before": self.before.loss if self.before else None,
            "exact_match": self.after.exact_match if self.after else None,
            "exact_match_before": self.before.exact_match if self.before else None,
            "train_loss": sum(point.loss for point in last) / len(last) if last else None,
            "steps": float(self.state.step),
            "epochs": self.epochs,
            "train_seconds": self.state.seconds,
            "train_tokens": float(self.state.tokens),
            "trainable_parameters": float(self.trainable_parameters),
            "lora_equivalent_parameters": None if self.lora_parameters is None else float(self.lora_parameters),
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


def train(task: TrainingTask, inputs: TrainingInputs, callbacks: Callbacks) -> Outcome:
    """Train the task's adapter on ``inputs.base``, whose layers are wrapped in place, and return it.

    Raises ``InvalidData``, ``InvalidJob``, ``TargetsNotFound``, ``LossNotFinite``, ``OutOfMemory``, ``InvalidTensors`` for a checkpoint of
    another run, and ``TrainingStopped``. One run at a time uses a base model; runs on different ones may share a process.
    """
    work = prepare_task(task.spec, inputs.base, inputs.train_rows, inputs.held_out_rows)
    for message in work.messages:
        callbacks.report(message)
    with _memory_errors(task.spec):
        run = _Run(task.spec, inputs, work, callbacks)
        run.begin(inputs.resume_from)
        while run.has_more:
            run.step()
        return run.finish()


class _Run:
    """One run in progress."""

    def __init__(self, spec: JobSpec, inputs: TrainingInputs, task: Task, callbacks: Callbacks) -> None:
        base = inputs.base
        self._spec, self._base, self._task, self._callbacks = spec, base, task, callbacks
        self._lora_parameters = count_lora_parameters(base, spec)
        self._model = adapt(base, spec, task.total_steps)
        if inputs.start is not None:
            begin_at(self._model, inputs.start)
        self._parameters = trainable(self._model)
        self._allocation = allocation_of(self._model)
        self._spring = Spring(self._parameters.values(), inputs.proximal_mu) if inputs.proximal_mu else None
        self._learner = task.begin(self._model)
        self._schedule = schedule_of(spec, task.total_steps)
        self._correction: Correction | None = None
        if inputs.start is not None and inputs.control_shift is not None:
            self._correction = Correction(learning_parameters(self._model, inputs.start), inputs.control_shift)
        self._optimizer = _optimizer(spec, self._parameters, is_plain=self._correction is not None)
        self._base_names = (base.identity, base.former_identity)
        self._state = RunState(plan=task.fingerprint, base_model=base.identity, commit=base.commit)
        self._best = BestAdapter(spec, self._parameters)
        self._saved_at = callbacks.now()

    @property
    def has_more(self) -> bool:
        """Whether steps are left; early stopping leaves them undone."""
        return self._state.step < self._task.total_steps and not self._best.has_given_up(self._state)

    @property
    def _trainable_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters.values())

    def begin(self, checkpoint: Mapping[str, bytes] | None) -> None:
        """Go on from the checkpoint, or measure the model before its first step."""
        own, lora = self._trainable_parameters, self._lora_parameters
        share = f", {own / lora:.1%} of the LoRA that computes the same" if lora else ""
        text = f"{self._spec.method}: {own:,} numbers are trained{share}; {self._task.total_steps:,} steps"
        self._callbacks.report(Message(text=text))
        if checkpoint is not None:
            self._resume(checkpoint)
        elif self._task.held_out_rows:
            self._report(self._measure(), has_answers=True)

    def _resume(self, checkpoint: Mapping[str, bytes]) -> None:
        state = read_state(checkpoint)
        if state.plan != self._state.plan or state.base_model not in self._base_names:
            hint = f"it was made on {state.base_model}, and this is {self._state.base_model}"
            raise InvalidTensors("the checkpoint is of other data, settings or base model", path="resume_from", hint=hint)
        memory = unpack(checkpoint, self._parameters, self._optimizer)
        self._best.tensors = dict(memory.best)
        if self._allocation is not None:
            self._allocation.restore(memory.method)
        self._state = state
        self._callbacks.report(Message(text=f"going on from the checkpoint at step {state.step:,} of {self._task.total_steps:,}"))

    def step(self) -> None:
        """Make one optimizer step, then measure and save where it is time to."""
        started = self._callbacks.now()
        rate = self._schedule.rate(self._state.step)
        loss, tokens = self._backward(rate)
        norm = self._update(rate)
        seconds = self._callbacks.now() - started
        self._state.step += 1
        self._state.seconds += seconds
        self._state.tokens += tokens
        self._tell(Point(step=self._state.step, loss=loss, learning_rate=rate, gradient_norm=norm), tokens / max(seconds, 1e-9))
        if self._task.held_out_rows and self._spec.eval_steps and self._state.step % self._spec.eval_steps == 0:
            self._report(self._measure(), has_answers=False)
        self._save_if_due()

    def _backward(self, rate: float) -> tuple[float, int]:
        """Add up the gradients of the step's mean loss over what is learnt in it; return the loss and how many tokens were read."""
        micro_batches = self._task.plan.step(self._state.step)
        weight = sum(self._task.weight(rows) for rows in micro_batches)
        total = torch.zeros((), device=self._base.device)
        self._model.train()
        for rows in micro_batches:
            self._check_stop()
            loss = self._learner.loss(rows) / weight
            loss.backward()  # type: ignore[no-untyped-call] # torch's own method
            total += loss.detach()
        if self._allocation is not None:
            self._allocation.penalty().backward()  # type: ignore[no-untyped-call] # torch's own method
        if self._spring is not None:
            self._spring.pull()
        tokens = sum(self._task.tokens(rows) for rows in micro_batches)
        return self._finite("the loss", total.item(), rate), tokens

    def _update(self, rate: float) -> float:
        """Clip, step and forget the gradients; return their norm before clipping."""
        limit = self._spec.max_grad_norm or math.inf
        norm = self._finite("the gradient", nn.utils.clip_grad_norm_(self._parameters.values(), limit).item(), rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._correction is not None:
            self._correction.apply()
        self._optimizer.step()
        if self._allocation is not None:
            self._allocation.after_step(self._state.step + 1)
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def _finite(self, what: str, value: float, rate: float) -> float:
        if math.isfinite(value):
            return value
        hint = "lower learning_rate, or set max_grad_norm; with bf16, try bf16: false"
        step = self._state.step + 1
        raise LossNotFinite(
            f"{what} became {value} at step {step}, at a learning rate of {rate:.3g}", path=f"step {step}", value=value, hint=hint
        )

    def _tell(self, point: Point, tokens_per_second: float) -> None:
        if point.step % self._spec.logging_steps and point.step != self._task.total_steps:
            return
        self._state.add_point(point)
        progress = Progress(
            total_steps=self._task.total_steps, epoch=self._epochs, tokens_per_second=tokens_per_second, **point.model_dump()
        )
        self._callbacks.report(progress)

    @property
    def _epochs(self) -> float:
        return self._state.step / self._task.plan.steps_per_epoch

    def _measure(self) -> Measurement:
        """Measure the held-out rows, and remember the adapter if it is the best so far."""
        step = self._state.step
        score = self._learner.measure(self._check_stop)
        loss = score.loss
        if not math.isfinite(loss):
            hint = "lower learning_rate" if step else "the base model's own numbers overflow; try bf16: true, or another model"
            raise LossNotFinite(f"the held-out loss is {loss} after {step} steps", path=f"step {step}", value=loss, hint=hint)
        measurement = Measurement(step=step, loss=loss, metrics=score.metrics)
        self._state.measurements.append(measurement)
        self._best.remember(measurement, self._state)
        return measurement

    def _report(self, measurement: Measurement, *, has_answers: bool) -> Measurement:
        """Report a measurement, with the model's answers to the held-out questions where they are wanted."""
        answers = self._learner.answer(self._check_stop) if has_answers else Answers()
        measurement = measurement.model_copy(update={"exact_match": answers.exact_match})
        self._state.measurements[-1] = measurement
        rows, total = self._task.held_out_rows, self._task.total_steps
        self._callbacks.report(Evaluation(total_steps=total, rows=rows, samples=answers.samples, **measurement.model_dump()))
        return measurement

    def _save_if_due(self) -> None:
        every = self._spec.save_steps
        is_time = self._callbacks.now() - self._saved_at >= seconds_of(self._spec.save_every)
        if is_time or (every is not None and self._state.step % every == 0):
            remembered = {} if self._allocation is None else self._allocation.state()
            files = pack(self._state, self._parameters, self._optimizer, Memory(best=self._best.tensors, method=remembered))
            self._callbacks.save(self._state.step, files)
            self._saved_at = self._callbacks.now()

    def _check_stop(self) -> None:
        if self._callbacks.should_stop():
            raise TrainingStopped

    def finish(self) -> Outcome:
        """Measure the adapter that will be published, the best one where the job may stop early, and return it."""
        measurements = self._state.measurements
        before = measurements[0] if measurements else None
        after = self._measure_result() if self._task.held_out_rows else None
        if self._allocation is not None:
            self._allocation.settle()
        self._model.eval()
        return Outcome(
            model=self._model,
            state=self._state,
            before=before,
            after=after,
            total_steps=self._task.total_steps,
            epochs=self._epochs,
            trainable_parameters=self._trainable_parameters,
            lora_parameters=self._lora_parameters,
        )

    def _measure_result(self) -> Measurement:
        latest = self._state.measurements[-1]
        is_told = latest.step == self._state.step
        measurement, best = latest if is_told else self._measure(), self._state.best
        if best is not None and best.step != measurement.step:
            self._best.put_back()
            text = f"keeping the adapter of step {best.step:,}, which had {self._best.merit_text}"
            self._callbacks.report(Message(text=text))
            self._state.measurements.append(best)
            return self._report(best, has_answers=True)
        if is_told and not self._task.has_answers:
            return measurement
        return self._report(measurement, has_answers=True)


def _optimizer(spec: JobSpec, parameters: Mapping[str, nn.Parameter], *, is_plain: bool) -> torch.optim.Optimizer:
    if is_plain:
        return torch.optim.SGD(parameters.values(), lr=spec.learning_rate)
    return torch.optim.AdamW(
        parameters.values(),
        lr=spec.learning_rate,
        betas=(spec.adam_beta1, spec.adam_beta2),
        eps=spec.adam_epsilon,
        weight_decay=spec.weight_decay,
        fused=True,
    )


@contextmanager
def _memory_errors(spec: JobSpec) -> Iterator[None]:
    """Say what to change when memory runs out, on a GPU or a CPU."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        hint = "lower micro_batch_size (and raise gradient_accumulation_steps), lower sequence_len, or set gradient_checkpointing: true"
        raise OutOfMemory("memory ran out while training", path="micro_batch_size", value=spec.micro_batch_size, hint=hint) from error
