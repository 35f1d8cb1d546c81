"""What the orchestrator's API stands on; made by the composition root."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from hub.intake import KEEP_SECONDS, Intake, check_kept
from hub.objects import ObjectStore
from hub.services import HubServices
from hub.signing import Signer
from hub.uploads import PART_BYTES
from infra.database import writing
from orchestrator import ledger
from orchestrator.admission import Policy
from orchestrator.bells import Bells
from orchestrator.jobs import Limits
from wegeft.contracts.adapter import digest_of


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
    part_bytes: int = PART_BYTES
    """Of each part of a long upload but the last."""
    bells: Bells = field(default_factory=Bells)
    federation_key: bytes | None = field(default=None, repr=False)
    """32 bytes, the Ed25519 private key that signs receipts; None refuses sites."""
    signer: Signer | None = None
    """Signs what is published; None leaves that for when somebody asks."""

    @property
    def hub(self) -> HubServices:
        """The same parts, for what the hub does of a request."""
        return HubServices(
            engine=self.engine,
            store=self.store,
            clock=self.clock,
            max_blob_bytes=self.policy.max_blob_bytes,
            keep_seconds=self.keep_seconds,
            signer=self.signer,
        )

    @property
    def intake(self) -> Intake:
        """Takes in what workers and sites deliver."""
        return Intake(
            engine=self.engine,
            store=self.store,
            clock=self.clock,
            max_blob_bytes=self.policy.max_blob_bytes,
            keep_seconds=self.keep_seconds,
        )

    def keep_for_rounds(self, job_id: str, content: bytes) -> str:
        """Store bytes that a federated job needs, and return their digest.

        Raises :class:`StorageUnavailable` where they could not be kept, and what :meth:`ObjectStore.put` does.
        """
        digest = digest_of(content)
        size = self.intake.store_bytes(digest, io.BytesIO(content), len(content))
        with writing(self.engine) as connection:
            is_kept = ledger.keep_for_rounds(connection, job_id, digest, size, self.intake.keep_until)
        check_kept(digest, is_kept=is_kept)
        return digest
