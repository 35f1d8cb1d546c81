"""The best adapter so far of a run that may stop early: which of two measurements is better, and the numbers to go back to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_tasks import LOWER_IS_BETTER, BestMetric
from workers.checkpoint import Measurement, RunState


class BestAdapter:
    """A copy of the trained numbers as they were at the best measurement; which one that was stands in the :class:`RunState`."""

    def __init__(self, spec: JobSpec, parameters: Mapping[str, nn.Parameter]) -> None:
        self._patience = spec.early_stopping_patience
        self._metric: BestMetric = spec.metric_for_best_model
        self._parameters = parameters
        self.tensors: dict[str, Tensor] = {}
        """By the parameters' names; empty before the first measurement that counts."""

    @property
    def merit_text(self) -> str:
        """What the best adapter has, as a message says it."""
        return "the lowest held-out loss" if self._metric == "eval_loss" else f"the best {self._metric}"

    def has_given_up(self, state: RunState) -> bool:
        """Whether as many measurements in a row were no better as the job has patience for."""
        return self._patience is not None and state.unimproved >= self._patience

    def remember(self, measurement: Measurement, state: RunState) -> None:
        """Copy the numbers where they are the best so far and the job may stop early; the untrained ones do not count."""
        if self._patience is None or measurement.step == 0:
            return
        if state.best is None or _merit(measurement, self._metric) > _merit(state.best, self._metric):
            state.best, state.unimproved = measurement, 0
            self.tensors = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        else:
            state.unimproved += 1

    def put_back(self) -> None:
        """Write the copy over the numbers that are trained."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self.tensors[name])


def _merit(measurement: Measurement, metric: BestMetric) -> float:
    """Return what is more where an adapter is better; a perplexity too large to be told is the worst."""
    if metric == "eval_loss":
        return -measurement.loss
    value = measurement.metrics.get(metric, math.inf)
    return -value if metric in LOWER_IS_BETTER else value
