"""From the updates of a round to the next generators: pure functions on factors, in float64, with no I/O."""

from orchestrator.aggregate.aggregation import aggregate
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
    "Contribution",
    "Edit",
    "FederationState",
    "Outcome",
    "Plan",
    "Refused",
    "Score",
    "Tensors",
    "aggregate",
    "change_of",
    "new_edit",
    "start_at",
]
