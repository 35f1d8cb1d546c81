"""A long push whose process is killed is gone on with by the next one, from the last part that came."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.folder_store import FolderStore
from hub.uploads import PART_BYTES
from tests.hub.serving import Hub, listening, made_hub
from tests.hub.test_direct import adapter_of
from wegeft.client import Client
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.errors import DigestMismatch

ROOT = Path(__file__).parents[2]
SIZE = 3 * PART_BYTES - 5000


class Holding:
    """An application that notes where parts begin, and lets nothing of those from ``hold_from`` on come further."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app, self.offsets = app, list[int]()
        self.hold_from = 2 * SIZE
        self.is_over = False

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "PUT" and "/parts/" in scope["path"]:
            offset = int(scope["path"].split("/parts/")[1].split("/")[0])
            self.offsets.append(offset)
            if offset >= self.hold_from:
                while not self.is_over:  # noqa: ASYNC110 - another thread says so
                    await asyncio.sleep(0.01)
                return
        await self.app(scope, receive, send)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Hub, Holding, str]]:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", FolderStore(tmp_path / "blobs")) as hub:
        app = Holding(hub.app)
        with listening(app) as url:  # type: ignore[arg-type]
            yield hub, app, url
            app.is_over = True


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_the_rest_is_sent_after_a_kill(held: tuple[Hub, Holding, str], tmp_path: Path) -> None:
    hub, app, url = held
    folder, app.hold_from = adapter_of(SIZE, tmp_path / "long"), 2 * PART_BYTES
    code = f"""
import os
from pathlib import Path
from wegeft.client import Client
with Client({url!r}, os.environ["PUSHER"]) as client:
    client.push(Path({str(folder)!r}), "a/b")
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PUSHER": hub.tokens["write"]})
    wait_until(lambda: app.offsets[-1:] == [2 * PART_BYTES])
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    app.hold_from, sent = 2 * SIZE, list(app.offsets)
    assert sent == [0, PART_BYTES, 2 * PART_BYTES]
    told: list[tuple[int, int]] = []
    with Client(url, hub.tokens["write"]) as client:
        made = client.push(folder, "a/b", on_progress=lambda *one: told.append(one))
        assert set(app.offsets[len(sent) :]) == {2 * PART_BYTES}
        client.download(made.ref, tmp_path / "back")
    assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()
    size = (folder / WEIGHTS_FILE).stat().st_size
    assert (2 * PART_BYTES, size) in told
    assert told[-1] == (size, size)


def test_a_long_pull_goes_on_where_a_killed_one_ended(held: tuple[Hub, Holding, str], tmp_path: Path) -> None:
    hub, _, url = held
    folder = adapter_of(SIZE, tmp_path / "long")
    content = (folder / WEIGHTS_FILE).read_bytes()
    with Client(url, hub.tokens["write"]) as client:
        made = client.push(folder, "a/b")
        digest = next(entry.digest for entry in made.manifest.files if entry.path == WEIGHTS_FILE)
        begun = tmp_path / f".{digest[7:39]}.part"  # what a process that was killed leaves
        begun.write_bytes(content[: 5 << 20])
        ranges: list[str] = []
        client._transport._http.event_hooks["request"].append(lambda request: ranges.append(request.headers.get("range", "")))
        client.download(made.ref, tmp_path / "back")
        assert f"bytes={5 << 20}-" in ranges
        assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == content
        begun.write_bytes(b"?" + content[1 : 5 << 20])  # of other bytes: refused once, and then fetched whole
        with pytest.raises(DigestMismatch):
            client.download(made.ref, tmp_path / "again")
        client.download(made.ref, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
