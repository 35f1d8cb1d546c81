"""Publishers that go on through faults of what the hub stands on, a witness of every answer, and what must be true afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli import serve
from hub.collection import Collector
from hub.objects import ObjectStore, read_verified
from hub.signing import Signer
from infra.auth import Guard
from infra.settings import Settings
from orchestrator.services import OrchestratorServices
from tests.hub.hf_clients import sound_files
from tests.hub.serving import NOW, Hub
from wegeft.client import Client
from wegeft.contracts.adapter import VersionView, digest_of
from wegeft.contracts.errors import ERROR_KINDS
from wegeft.contracts.signing_keys import SigningKey

PATIENCE_SECONDS = 240.0
"""No more than a bound: on a busy machine a hub takes half a minute to come up, and several die one after the other."""
RETRYABLE = frozenset({503, 504})
_LONG_AFTER = NOW + timedelta(days=30)


@dataclass
class Answer:
    """One answer of the hub."""

    request: str
    status: int
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = False


class Witness:
    """The hub's application, watched from outside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.answers: list[Answer] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and keep what is answered."""

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {name.decode(): value.decode() for name, value in message["headers"]}
                self.answers.append(Answer(f"{scope['method']} {scope['path']}", message["status"], headers))
                seen.append(self.answers[-1])
            elif message["type"] == "http.response.body":
                seen[-1].body += message.get("body", b"")
                seen[-1].is_whole = not message.get("more_body", False)
            await send(message)

        seen: list[Answer] = []
        await self._app(scope, receive, watch)

    def check(self) -> set[str]:
        """Return the codes of all refusals; fail where one is not as it must be."""
        return {self._checked(answer) for answer in self.answers if answer.status >= 400 and not answer.request.startswith("HEAD")}

    def _checked(self, answer: Answer) -> str:
        assert answer.headers["content-type"] == "application/problem+json", answer
        told = json.loads(bytes(answer.body))
        assert told["status"] == answer.status
        assert answer.status != 500, answer
        assert ERROR_KINDS[told["code"]].http_status == answer.status or answer.status == 400, answer
        assert ("retry-after" in answer.headers) == (answer.status == 503), answer
        assert told["request_id"] == answer.headers["x-request-id"]
        return str(told["code"])


def service_app(hub: Hub, *, is_whole: bool = False, **settings: Any) -> FastAPI:
    """Return the application that ``wgctl serve`` puts together around a hub's parts and these settings, its gate and probes too."""
    guard = Guard(engine=hub.engine, clock=lambda: NOW)
    plain: dict[str, Any] = {"engine": hub.engine, "store": hub.store, "guard": guard, "settings": Settings(**settings)}
    jobs = OrchestratorServices(engine=hub.engine, store=hub.store, clock=lambda: NOW) if is_whole else None
    signer = Signer(key=SigningKey(bytes(32)))
    parts = serve._Parts(**plain, registry=CollectorRegistry(), jobs=jobs, signer=signer)
    return serve._make_app(parts, None if is_whole else "hub", "http://testserver")


@dataclass(frozen=True)
class Push:
    """One folder that a publisher pushes."""

    adapter: str
    folder: Path
    message: str
    digests: frozenset[str]


def make_pushes(folder: Path, publishers: int, versions: int, adapter: str | None = None) -> list[list[Push]]:
    """Return what each publisher pushes, one after the other, into an adapter of its own unless there is one for all."""
    return [
        [_make_push(folder / f"{one}-{number}", 1 + one + number / 16, adapter or f"demo/by-{one}") for number in range(versions)]
        for one in range(publishers)
    ]


def _make_push(folder: Path, fill: float, adapter: str) -> Push:
    files = sound_files(fill)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Push(adapter, folder, f"filled with {fill}", frozenset(digest_of(content) for content in files.values()))


def push_all(url: str, token: str, pushes: Iterable[list[Push]]) -> list[tuple[Push, VersionView]]:
    """Let all publishers work at once; return what was acknowledged, each in its order."""

    def publish(own: list[Push]) -> list[tuple[Push, VersionView]]:
        with Client(url, token, patience_seconds=PATIENCE_SECONDS) as client:
            return [(push, client.push(push.folder, push.adapter, message=push.message)) for push in own]

    work = list(pushes)
    with ThreadPoolExecutor(len(work)) as pool:
        return [made for own in pool.map(publish, work) for made in own]


def abandon_uploads(url: str, token: str, seed: int, count: int) -> None:
    """Send bytes that no version will ever name."""
    chance = random.Random(seed)
    with Client(url, token, patience_seconds=PATIENCE_SECONDS) as client:
        for _ in range(count):
            client.upload(chance.randbytes(1000))


def check_published(url: str, token: str, acknowledged: list[tuple[Push, VersionView]], store: ObjectStore) -> None:
    """Every push has made one version, in its order, with its bytes; and there is no other."""
    with Client(url, token) as client:
        there = {view.ref: view for adapter in client.adapters().adapters for view in client.versions(adapter.adapter)}
    told = {view.ref: view for _, view in acknowledged}
    assert len(told) == len(acknowledged), "two pushes were told of one version"
    assert there.keys() == told.keys()
    for push, view in acknowledged:
        assert {entry.digest for entry in there[view.ref].manifest.files} == push.digests
        for entry in there[view.ref].manifest.files:
            read_verified(store, entry.digest, entry.size)
    for name in {push.adapter for push, _ in acknowledged}:
        numbers = [view.version for push, view in acknowledged if push.adapter == name]
        assert numbers == list(range(1, len(numbers) + 1))


def collect_all(hub: Hub, store: ObjectStore) -> None:
    """Collect whatever nobody needs long after."""
    while not Collector(engine=hub.engine, store=store).collect(_LONG_AFTER, 20).is_done:
        pass


def needed_digests(acknowledged: Iterable[tuple[Push, Any]]) -> set[str]:
    """Return the digests of all bytes that a version names."""
    return {digest for push, _ in acknowledged for digest in push.digests}
