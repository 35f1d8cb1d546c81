"""Which rows make up which optimizer step: a pure function of the seed and the step's number, so that resuming needs no more than both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wegeft.contracts.errors import InvalidData

_HOLD_OUT_STREAM = 1 << 63
"""Apart from the streams of epochs, which count from 0."""

MicroBatch = tuple[int, ...]
"""Row numbers of one forward and backward pass."""


@dataclass(frozen=True)
class BatchPlan:
    """The rows of every step. Each epoch visits each row once, in an order of its own."""

    lengths: tuple[int, ...]
    """Tokens of each row."""
    micro_batch_size: int
    accumulation_steps: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every row is visited once; the last one may hold fewer rows."""
        return math.ceil(len(self.lengths) / (self.micro_batch_size * self.accumulation_steps))

    def total_steps(self, num_epochs: float, max_steps: int | None) -> int:
        """Return the optimizer steps of a job: ``max_steps`` where given, or else those of ``num_epochs``, at least 1."""
        return max_steps or max(1, math.ceil(num_epochs * self.steps_per_epoch - 1e-9))

    def step(self, number: int) -> tuple[MicroBatch, ...]:
        """Return the micro-batches of step ``number``, counted from 0 over all epochs."""
        epoch, within = divmod(number, self.steps_per_epoch)
        return _epoch(self, epoch)[within]

    @property
    def fingerprint(self) -> str:
        """A digest of all that the plan depends on; a checkpoint of another plan must not be resumed."""
        text = repr((self.lengths, self.micro_batch_size, self.accumulation_steps, self.seed))
        return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4)
def _epoch(plan: BatchPlan, epoch: int) -> tuple[tuple[MicroBatch, ...], ...]:
    order = _shuffled(len(plan.lengths), plan.seed, epoch)
    rows_of_step = plan.micro_batch_size * plan.accumulation_steps
    return tuple(_micro_batches(plan, order[start : start + rows_of_step]) for start in range(0, len(order), rows_of_step))


def _shuffled(count: int, seed: int, stream: int) -> list[int]:
    """Return 0 to ``count - 1`` in random order; from raw bits, which numpy keeps the same over releases, unlike its permutations."""
    bits = np.random.Philox(key=(seed, stream)).random_raw(count)
    order: list[int] = np.argsort(bits, kind="stable").tolist()
    return order


def _micro_batches(plan: BatchPlan, rows: list[int]) -> tuple[MicroBatch, ...]:
    """Cut a step's rows into passes of similar length. Which rows share a step stays random: steps of like rows would pull apart."""
    ordered = sorted(rows, key=lambda row: plan.lengths[row])
    size = plan.micro_batch_size
    return tuple(tuple(ordered[start : start + size]) for start in range(0, len(ordered), size))


def hold_out(rows: int, amount: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows to train on and of those to hold out, each in order.

    ``amount`` below 1 is a share, of which at least one row is held out; otherwise it is a number. Raises ``InvalidData`` if no row is
    left to train on.
    """
    count = max(1, round(rows * amount)) if 0 < amount < 1 else int(amount)
    if count >= rows:
        hint = f"there are {rows} rows; hold out fewer, or give more"
        raise InvalidData("no row is left to train on", path="val_set_size", value=amount, hint=hint)
    order = _shuffled(rows, seed, _HOLD_OUT_STREAM)
    return sorted(order[count:]), sorted(order[:count])


def batches_within(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield row numbers, longest rows first, in batches of at most ``token_budget`` tokens with padding, and at least one row."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
