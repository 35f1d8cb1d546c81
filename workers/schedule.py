"""The learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wegeft.contracts.job import JobSpec

DEFAULT_WARMUP_RATIO = 0.1


@dataclass(frozen=True)
class Schedule:
    """A rise from nearly nothing to ``peak`` over ``warmup_steps``, then a fall to nearly nothing at ``total_steps``, or none."""

    peak: float
    total_steps: int
    warmup_steps: int
    shape: Literal["linear", "cosine", "constant"]

    def rate(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0; it is positive for each step that is made."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        left = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        match self.shape:
            case "linear":
                return self.peak * left
            case "cosine":
                return self.peak * 0.5 * (1 - math.cos(math.pi * left))
            case "constant":
                return self.peak


def schedule_of(spec: JobSpec, total_steps: int) -> Schedule:
    """Return the schedule of a job; its warm-up is never longer than the job."""
    ratio = DEFAULT_WARMUP_RATIO if spec.warmup_ratio is None else spec.warmup_ratio
    warmup = spec.warmup_steps if spec.warmup_steps is not None else math.ceil(ratio * total_steps)
    return Schedule(spec.learning_rate, total_steps, min(warmup, total_steps), spec.lr_scheduler)
