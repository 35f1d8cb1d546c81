"""What the orchestrator's API stands on; made by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from hub.objects import ObjectStore
from orchestrator.admission import Policy
from orchestrator.bells import Bells
from orchestrator.jobs import Limits


@dataclass(frozen=True, kw_only=True)
class OrchestratorServices:
    """The parts that a request needs."""

    engine: Engine
    store: ObjectStore
    clock: Callable[[], datetime]
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    bells: Bells = field(default_factory=Bells)
    federation_key: bytes | None = field(default=None, repr=False)
    """32 bytes, the Ed25519 private key that signs receipts; None refuses sites."""
