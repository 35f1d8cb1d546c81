"""What the hub's API stands on; made by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine

from hub.objects import ObjectStore


@dataclass(frozen=True, kw_only=True)
class HubServices:
    """The parts that a request needs."""

    engine: Engine
    store: ObjectStore
    clock: Callable[[], datetime]
    max_blob_bytes: int = 4 << 30
    """Longer uploads are refused."""
