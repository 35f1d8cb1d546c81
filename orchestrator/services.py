"""What the orchestrator's API stands on; made by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from hub.intake import KEEP_SECONDS, Intake
from hub.objects import ObjectStore
from orchestrator.admission import Policy
from orchestrator.jobs import Limits


@dataclass(frozen=True, kw_only=True)
class OrchestratorServices:
    """The parts that a request needs."""

    engine: Engine
    store: ObjectStore
    clock: Callable[[], datetime]
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    keep_seconds: float = KEEP_SECONDS
    """How long bytes stay that nothing names."""

    @property
    def intake(self) -> Intake:
        """Takes in what workers deliver."""
        return Intake(
            engine=self.engine,
            store=self.store,
            clock=self.clock,
            max_blob_bytes=self.policy.max_blob_bytes,
            keep_seconds=self.keep_seconds,
        )
