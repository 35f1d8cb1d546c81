"""Long updates in parts over real HTTP: bounded, verified, and gone on with by other processes of the site and of the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from hub import catalog
from hub.collection import Collector
from infra.database import reading, writing
from orchestrator.update_intake import longest_upload
from tests.orchestrator.federating import API, SERVER_KEY, FakeSite, Server, key_of, now, train
from tests.orchestrator.federation_world import World, problems
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening
from wegeft.client.site import SiteClient, SiteCredentials
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import InvalidInput, ServiceUnreachable
from wegeft.contracts.federation import Offer
from wegeft.contracts.signatures import public_key_of

PART = 200
Asked = list[tuple[str, str]]
"""Methods and paths."""


class Counting:
    """An application that notes what it was asked to store."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app, self.asked = app, Asked()
        self.before: Callable[[str], None] = lambda _method: None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] in ("PUT", "POST"):
            self.asked.append((scope["method"], scope["path"].removeprefix(f"{API}/federation/")))
            self.before(scope["method"])
        await self.app(scope, receive, send)


class Twice(World):
    """A server of which other processes can be started."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.app = Counting(server.app())
        super().__init__(server, stack.enter_context(listening(self.app)))  # type: ignore[arg-type]
        self.stack = stack

    def other_process(self, site: FakeSite) -> tuple[FakeSite, Counting]:
        """The same site at another process of the same service."""
        server = Server(self.server.engine, store=self.server.store)
        server.services = self.server.services
        app = Counting(server.app())
        other = FakeSite(self.stack.enter_context(listening(app)), site.index)  # type: ignore[arg-type]
        self.closing.enter_context(other.http)
        other.job_id, other.pseudonym = site.job_id, site.pseudonym
        return other, app


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Twice]:
    engine = new_sqlite(tmp_path / "a.db")
    server = Server(engine)
    server.services = replace(server.services, part_bytes=PART)
    with ExitStack() as stack:
        world = Twice(server, stack)
        with world.closing:
            yield world
    engine.dispose()


def begun(world: World, *indices: int) -> tuple[list[FakeSite], list[Offer], bytes]:
    """Sites that are asked, and what the first of them is to send: some parts long."""
    _, sites = world.begin(*indices, rounds=1, min_sites=len(indices))
    offers = [site.offer() for site in sites]
    assert all(offers)
    found = [offer for offer in offers if offer is not None]
    content = train(found[0], indices[0])[1]
    assert 2 * PART < len(content) < longest_upload(found[0])
    return sites, found, content


def begin_upload(site: FakeSite, content: bytes, **change: Any) -> httpx2.Response:
    fields = {"digest": digest_of(content), "size": len(content), **change}
    return site.call("POST", "uploads", json.dumps(fields).encode())


def put_part(site: FakeSite, upload: str, content: bytes, offset: int, part: bytes | None = None) -> httpx2.Response:
    sent = content[offset : offset + PART] if part is None else part
    return site.call("PUT", f"uploads/{upload}/parts/{offset}/{digest_of(sent)}", sent)


def client_of(site: FakeSite, one_request_bytes: int = PART) -> SiteClient:
    credentials = SiteCredentials(
        job_id=site.job_id, pseudonym=site.pseudonym, server_key=public_key_of(SERVER_KEY), private_key=key_of(site.index)
    )
    return SiteClient(str(site.http.base_url), credentials, now, patience_seconds=0, one_request_bytes=one_request_bytes)


def collect(world: World, seconds: float = 0) -> None:
    """Delete what nobody needs, now or so much later."""
    Collector(engine=world.server.engine, store=world.server.store).collect(now() + timedelta(seconds=seconds), 1000)


def stores(asked: Asked) -> Asked:
    return [one for one in asked if one[0] == "PUT" or one[1].startswith("uploads")]


def test_what_has_come_is_not_sent_again_by_another_process_to_another_one(world: Twice) -> None:
    (site,), (offer,), content = begun(world, 0)
    begun_upload = begin_upload(site, content)
    assert begun_upload.status_code == 201
    upload = begun_upload.json()["id"]
    assert put_part(site, upload, content, 0).json()["offset"] == PART
    other, app = world.other_process(site)
    head = other.call("HEAD", f"uploads/{upload}")
    assert (head.status_code, head.headers["Upload-Offset"], head.headers["Upload-Length"]) == (200, str(PART), str(len(content)))
    with client_of(other) as client:
        client.store_blob(content)
    offsets = [path.split("/")[3] for method, path in app.asked if method == "PUT"]
    assert offsets == [str(offset) for offset in range(PART, len(content), PART)]
    assert world.server.store.has(digest_of(content)) == len(content)
    collect(world)
    parts = [digest_of(content[offset : offset + PART]) for offset in range(0, len(content), PART)]
    assert [world.server.store.has(digest) for digest in [*parts, digest_of(content)]] == [None] * len(parts) + [len(content)]
    del app.asked[:]
    with client_of(other) as client:
        client.store_blob(content)
        receipt = client.submit(train(offer, 0)[0].update)
    assert [path for _, path in app.asked] == ["uploads", "updates"]
    assert receipt.receipt.tensors == digest_of(content)
    world.wait_for(site.job_id, "succeeded")
    assert site.call("HEAD", f"uploads/{upload}").status_code == 404


def test_short_updates_stay_one_request(world: Twice) -> None:
    (site,), _, content = begun(world, 0)
    del world.app.asked[:]
    with client_of(site, one_request_bytes=len(content)) as client:
        client.store_blob(content)
    assert stores(world.app.asked) == [("PUT", f"blobs/{digest_of(content)}")]


def test_a_part_is_taken_once_in_its_place_and_size(world: Twice) -> None:
    (site, thief), _, content = begun(world, 0, 1)
    upload = begin_upload(site, content).json()["id"]
    assert put_part(site, upload, content, 0).status_code == 200
    assert put_part(site, upload, content, 0).json()["offset"] == PART
    skipped = put_part(site, upload, content, 2 * PART)
    assert (skipped.status_code, skipped.json()["problems"][0]["value"]) == (409, str(PART))
    assert put_part(site, upload, content, 0, part=b"x" * PART).status_code == 409
    assert put_part(site, upload, content, PART, part=content[PART : PART + 10]).status_code == 422
    assert put_part(site, upload, content, PART, part=content[PART : 2 * PART + 1]).status_code == 413
    path = f"{API}/federation/uploads/{upload}/parts/{PART}/{digest_of(b'other')}"
    forged = site.http.put(path, content=content[PART : 2 * PART], headers=site.headers("PUT", path, b"other"))
    assert forged.status_code == 422
    assert site.call("POST", f"uploads/{upload}/finish").status_code == 409
    assert put_part(thief, upload, content, PART).status_code == 404
    assert thief.call("HEAD", f"uploads/{upload}").status_code == 404
    assert thief.call("POST", f"uploads/{upload}/finish").status_code == 404
    assert site.http.head(f"{API}/federation/uploads/{upload}").status_code == 401
    assert put_part(site, upload, content, -1).status_code == 422
    assert put_part(site, upload, content, PART).json()["offset"] == 2 * PART


def test_a_whole_that_is_not_what_its_digest_names_is_refused_and_begun_anew(world: Twice) -> None:
    (site,), _, content = begun(world, 0)
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    upload = begin_upload(site, content).json()["id"]
    for offset in range(0, len(content), PART):
        assert put_part(site, upload, wrong, offset).status_code == 200
    refused = site.call("POST", f"uploads/{upload}/finish")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert world.server.store.has(digest_of(content)) is None
    with client_of(site) as client:
        client.store_blob(content)
    assert world.server.store.has(digest_of(content)) == len(content)


def test_uploads_are_bounded_and_belong_to_an_open_offer(world: Twice) -> None:
    (site, other), (offer, _), content = begun(world, 0, 1)
    too_long = begin_upload(site, content, size=longest_upload(offer) + 1)
    assert (too_long.status_code, set(problems(too_long))) == (413, {"size"})
    assert begin_upload(site, content, size=0).status_code == 422
    assert begin_upload(site, content, digest="sha256:0").status_code == 422
    first = begin_upload(site, content).json()
    assert (begin_upload(site, content).status_code, begin_upload(site, content).json()["id"]) == (200, first["id"])
    assert set(problems(begin_upload(site, content, size=len(content) - 1))) == {"size"}
    assert begin_upload(site, b"second").status_code == 201
    third = begin_upload(site, b"third")
    assert (third.status_code, set(problems(third))) == (413, {"digest"})
    assert begin_upload(other, b"theirs").status_code == 201
    with client_of(site) as client, pytest.raises(InvalidInput):
        client.submit(train(offer, 0)[0].update)
    site.answer(offer)
    stale = put_part(site, first["id"], content, 0)
    assert (stale.status_code, stale.json()["code"]) == (409, "stale_round")


def test_uploads_that_nobody_goes_on_with_are_collected_with_their_parts(world: Twice) -> None:
    (site,), _, content = begun(world, 0)
    upload = begin_upload(site, content).json()["id"]
    put_part(site, upload, content, 0)
    part = "sha256:" + hashlib.sha256(content[:PART]).hexdigest()
    collect(world)
    assert world.server.store.has(part) == PART
    later = now() + timedelta(seconds=world.server.services.keep_seconds + 1)
    with writing(world.server.engine) as connection:
        assert catalog.forget_expired_uploads(connection, now(), 100) == 0
        assert catalog.forget_expired_uploads(connection, later, 100) == 1
    collect(world, world.server.services.keep_seconds + 1)
    assert world.server.store.has(part) is None
    with reading(world.server.engine) as connection:
        assert connection.execute(select(catalog.UPLOAD_PARTS)).all() == []
    assert put_part(site, upload, content, PART).status_code == 404
    with client_of(site) as client:
        client.store_blob(content)
    assert world.server.store.has(digest_of(content)) == len(content)


def test_a_server_that_loses_every_part_is_told_so(world: Twice) -> None:
    (site,), _, content = begun(world, 0)

    def forget(method: str) -> None:
        if method == "PUT":
            with writing(world.server.engine) as connection:
                catalog.forget_expired_uploads(connection, now() + timedelta(days=400), 100)

    world.app.before = forget
    with client_of(site) as client, pytest.raises(ServiceUnreachable, match="loses the parts"):
        client.store_blob(content)
