"""What the hub's API stands on; made by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine

from hub.catalog import Sender
from hub.intake import KEEP_SECONDS, Intake
from hub.objects import ObjectStore
from hub.recent_blobs import RecentBlobs
from hub.signing import Signer
from infra.bodies import DOWNLOADS_A_READER
from infra.principals import Principal

FORMAT_KEEP_SECONDS = 30 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class HubServices:
    """The parts that a request needs."""

    engine: Engine
    store: ObjectStore
    clock: Callable[[], datetime]
    max_blob_bytes: int = 4 << 30
    """Longer uploads are refused."""
    max_staged_bytes: int = 64 << 30
    """That one account may have sent and no version names yet."""
    keep_seconds: float = KEEP_SECONDS
    """How long an upload stays that nothing names."""
    format_keep_seconds: float = FORMAT_KEEP_SECONDS
    """How long a derived format stays that nobody fetches."""
    is_private_by_default: bool = True
    """Whether new adapters of an organisation that is made now are private."""

    downloads_at_once: int = DOWNLOADS_A_READER
    """Answers with a file that one account may have open."""
    direct_from_bytes: int | None = None
    """From which length on files go directly between clients and the store, where it can do that; None: never."""

    recent: RecentBlobs = field(default_factory=RecentBlobs)
    """What pulls have read lately; by default nothing is held."""

    signer: Signer | None = None
    """Signs versions; None where versions are not signed."""

    @property
    def intake(self) -> Intake:
        """Takes uploads in."""
        return Intake(
            engine=self.engine, store=self.store, clock=self.clock, max_blob_bytes=self.max_blob_bytes, keep_seconds=self.keep_seconds
        )

    def sender(self, caller: Principal, namespace: str | None = None) -> Sender:
        """Return who sends bytes, for a namespace where that is known, and how many may wait."""
        return Sender(caller=caller, most_bytes=self.max_staged_bytes, namespace=namespace.lower() if namespace else None)
