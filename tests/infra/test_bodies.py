"""How long a body may take, asked of what reads it."""

from __future__ import annotations

import anyio
import pytest
from starlette.types import Message

from infra.bodies import LEAST_BYTES_A_SECOND, STREAM_PATIENCE, LimitedBody
from wegeft.contracts.errors import ServiceTimeout

SECONDS = 30.0


async def wait_for_ever() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


def body_after(waited: float, seen: int) -> LimitedBody:
    body = LimitedBody({"type": "http", "headers": []}, wait_for_ever, SECONDS)
    body._waited, body._seen = waited, seen
    return body


@pytest.mark.parametrize(
    ("waited", "seen", "left"),
    [
        (0, 0, SECONDS),
        (SECONDS, 0, SECONDS),
        (STREAM_PATIENCE * SECONDS - 1, 0, 1),
        (STREAM_PATIENCE * SECONDS, LEAST_BYTES_A_SECOND, 1),
        (STREAM_PATIENCE * SECONDS + 1000, 2000 * LEAST_BYTES_A_SECOND, SECONDS),
    ],
)
def test_a_stream_may_rest_but_not_drip_without_end(waited: float, seen: int, left: float) -> None:
    """From one packet to the next it has so long, and in all as long as a slow line needs."""
    assert body_after(waited, seen)._seconds_left(is_streamed=True) == left


def test_another_body_has_so_long_in_all() -> None:
    assert body_after(20, 1 << 20)._seconds_left(is_streamed=False) == SECONDS - 20


@pytest.mark.parametrize("waited", [STREAM_PATIENCE * SECONDS, STREAM_PATIENCE * SECONDS + 1])
def test_what_does_not_come_in_time_is_refused(waited: float) -> None:
    body = body_after(waited, 0)
    body._scope["endpoint"] = type("Streamed", (), {"max_body_bytes": None})
    with pytest.raises(ServiceTimeout, match="too slowly"):
        anyio.run(body)


def test_what_the_endpoint_does_meanwhile_does_not_count() -> None:
    """Storing a packet may take the store a while."""

    async def read() -> float:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"x", "more_body": True}

        body = LimitedBody({"type": "http", "headers": []}, receive, SECONDS)
        for _ in range(2):
            await body()
            await anyio.sleep(0.2)
        return body._waited

    assert anyio.run(read) < 0.2
