"""From the updates of a round to the next generators: pure functions on factors, in float64, with no I/O."""

from orchestrator.aggregate.aggregation import aggregate
from orchestrator.aggregate.controls import ControlChange, add_changes, mean_control
from orchestrator.aggregate.defences import needs_gram
from orchestrator.aggregate.gramian import SCORE_ARITHMETIC
from orchestrator.aggregate.state import (
    Contribution,
    Edit,
    FederationState,
    Outcome,
    Plan,
    Refused,
    Score,
    Tensors,
    change_of,
    new_edit,
    start_at,
)

__all__ = [
    "SCORE_ARITHMETIC",
    "Contribution",
    "ControlChange",
    "Edit",
    "FederationState",
    "Outcome",
    "Plan",
    "Refused",
    "Score",
    "Tensors",
    "add_changes",
    "aggregate",
    "change_of",
    "mean_control",
    "needs_gram",
    "new_edit",
    "start_at",
]
