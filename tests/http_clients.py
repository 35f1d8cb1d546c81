"""Clients that wait as long as a busy machine may take: httpx2's own give up after five seconds."""

from __future__ import annotations

from typing import Any

import httpx2

PATIENCE_SECONDS = 60


def patient_client(**options: Any) -> httpx2.Client:
    """Return a client that asks no proxy; ``options`` are httpx2's."""
    return httpx2.Client(trust_env=False, timeout=PATIENCE_SECONDS, **options)


def patient_request(method: str, url: str, **options: Any) -> httpx2.Response:
    """Ask once, and no proxy; ``options`` are httpx2's."""
    return httpx2.request(method, url, trust_env=False, timeout=PATIENCE_SECONDS, **options)
