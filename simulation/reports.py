"""What a simulation tells: of each try at a round, and of the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from simulation.scenario import Scenario
from wegeft.contracts.federation import Exclusion, Message, ReasonCode, RoundRecord


class Figures(Message):
    """How generators do on the held-out rows."""

    loss: float
    metrics: dict[str, float] = Field(default_factory=dict)


class RoundReport(Message):
    """One try at a round."""

    record: RoundRecord
    """As a real round's; sites' names stand for their pseudonyms."""
    asked: tuple[str, ...]
    hostile: tuple[str, ...]
    """Of those that were asked."""
    before: Figures | None
    """The generators that the round started from; None without held-out rows."""
    after: Figures | None
    train_loss: float | None
    """Mean over the members that tell one, by their examples."""
    sent_bytes: int
    """Files of updates that reached the service."""
    received_bytes: int
    """Files that sites started from."""
    seconds: float
    """Of the simulated clock, from asking to closing."""

    @property
    def hostile_members(self) -> tuple[str, ...]:
        """Hostile sites whose update is in the aggregate with a weight."""
        inside = {member.site for member in self.record.members if member.weight != 0}
        return tuple(sorted(inside & set(self.hostile)))

    def left_out(self, reason: ReasonCode) -> tuple[Exclusion, ...]:
        """Return who was left out for one reason, sorted."""
        return tuple(one for one in self.record.left_out if one.reason is reason)


class Bound(Message):
    """What the same rows give without a federation."""

    name: Literal["local_only", "centralised"]
    sites: int
    loss: float
    """Mean over the sites."""
    metrics: dict[str, float]
    """Likewise."""


class SimulationReport(Message):
    """What a simulation came to."""

    scenario: Scenario
    hostile: tuple[str, ...]
    rounds: int
    """Committed."""
    tries: int
    result: str
    """sha256 of the state after the last committed round: the same for the same seed, whatever number of actors."""
    before: Figures | None
    after: Figures | None
    bounds: tuple[Bound, ...]
    sent_bytes: int
    received_bytes: int
    kinds: str
    """How rows were told apart to be shared out."""


def mean_train_loss(told: Iterable[tuple[float, int]]) -> float | None:
    """Return the mean of losses by their examples; None of none."""
    pairs = list(told)
    total = sum(examples for _, examples in pairs)
    return sum(loss * examples for loss, examples in pairs) / total if total else None
