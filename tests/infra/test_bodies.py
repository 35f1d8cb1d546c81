"""How long a body may take, asked of what reads it."""

from __future__ import annotations

import anyio
import pytest
from starlette.types import Message

from infra.bodies import LEAST_BYTES_A_SECOND, STREAM_PATIENCE, LimitedBody
from wegeft.contracts.errors import ServiceTimeout

SECONDS = 0.02


def streamed() -> None:
    """An endpoint that says that it streams."""


streamed.max_body_bytes = None  # type: ignore[attr-defined]


async def count_packets(size: int, pause: float, most: int) -> int:
    """Read packets that come after pauses until there are enough, or the reader has had enough."""

    async def receive() -> Message:
        await anyio.sleep(pause)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    body = LimitedBody({"type": "http", "headers": [], "endpoint": streamed}, receive, SECONDS)
    for number in range(most):
        try:
            await body()
        except ServiceTimeout:
            return number
    return most


def test_a_stream_that_drips_is_not_waited_for_without_end() -> None:
    """A byte now and then does not keep it open; as many as a slow line carries do."""
    most = 4 * STREAM_PATIENCE
    assert anyio.run(count_packets, 1, SECONDS / 2, most) < most
    assert anyio.run(count_packets, LEAST_BYTES_A_SECOND, SECONDS / 2, most) == most


def test_what_the_endpoint_does_meanwhile_does_not_count() -> None:
    async def read_slowly() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"x", "more_body": True}

        body = LimitedBody({"type": "http", "headers": []}, receive, SECONDS)
        for _ in range(3):
            await body()
            await anyio.sleep(SECONDS)

    anyio.run(read_slowly)


def test_a_pause_ends_it() -> None:
    async def wait() -> None:
        async def receive() -> Message:
            await anyio.sleep_forever()
            raise AssertionError

        await LimitedBody({"type": "http", "headers": [], "endpoint": streamed}, receive, SECONDS)()

    with pytest.raises(ServiceTimeout):
        anyio.run(wait)
