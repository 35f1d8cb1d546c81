"""A site's side of the wire: requests signed anew each time, offers and receipts believed only where they are ours, downloads resumed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.client.raw import answering, http
from tests.contracts.test_federation import an_offer as make_offer
from tests.contracts.test_federation import an_update as make_update
from tests.orchestrator.samples import make_spec
from wegeft.client.site import SiteClient, SiteCredentials, enrol
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.enrolment import Enrolment, enrolment_content
from wegeft.contracts.errors import (
    DigestMismatch,
    FederationOver,
    Forbidden,
    InvalidSetting,
    StaleRound,
    Unauthenticated,
    UnexpectedAnswer,
    WegeftError,
)
from wegeft.contracts.federation import Receipt, SignedReceipt, Site, SiteState
from wegeft.contracts.signatures import is_signed, public_key_of, request_content, sign

KEY, SERVER_KEY, OTHER_KEY = (bytes([number]) * 32 for number in (1, 2, 3))
TOKEN = "wgi_" + "0" * 12 + "_" + "a" * 64
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OFFER = make_offer()
BLOB = bytes(range(256)) * 40
JSON = "Content-Type: application/json"


def client_of(url: str, patience_seconds: float = 0) -> SiteClient:
    credentials = SiteCredentials(job_id=OFFER.job_id, pseudonym=OFFER.site, server_key=public_key_of(SERVER_KEY), private_key=KEY)
    return SiteClient(url, credentials, lambda: NOW, timeout_seconds=2, patience_seconds=patience_seconds)


def refusal(error: WegeftError) -> bytes:
    """A refusal as our services tell it."""
    body = error.body("r1")
    return http(body.status, body.model_dump_json().encode(), "Content-Type: application/problem+json")


def enrolment_for(key: bytes) -> bytes:
    site = Site(
        name="site-a", pseudonym=OFFER.site, public_key=public_key_of(key), state=SiteState.PENDING, max_examples=7, enrolled_at=NOW
    )
    spec = make_spec(datasets=[], federation={})
    return Enrolment(job_id=OFFER.job_id, site=site, server_key=public_key_of(SERVER_KEY), spec=spec).to_bytes()


def headers_of(request: bytes) -> dict[str, str]:
    lines = request.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_enrolment_proves_that_the_key_is_ours() -> None:
    requests: list[bytes]

    def answer(connection: socket.socket) -> None:
        head, _, body = requests[0].partition(b"\r\n\r\n")
        while len(body) < int(headers_of(head)["content-length"]):
            body += connection.recv(1 << 16)
        bodies.append(body)
        connection.sendall(http(201, enrolment_for(KEY), JSON))

    bodies: list[bytes] = []
    with answering(answer) as (url, requests):
        enrolment = enrol(url, TOKEN, KEY, 7)
    sent = json.loads(bodies[0])
    assert is_signed(sent["public_key"], enrolment_content(TOKEN, sent["public_key"], 7), sent["proof"])
    assert sent["public_key"] == public_key_of(KEY)
    assert KEY.hex() not in bodies[0].decode()
    assert "authorization" not in headers_of(requests[0])
    assert enrolment.site.name == "site-a"


def test_enrolment_with_another_key_is_not_believed() -> None:
    with answering(http(201, enrolment_for(OTHER_KEY), JSON)) as (url, _), pytest.raises(UnexpectedAnswer, match="another key"):
        enrol(url, TOKEN, KEY, 7)


@pytest.mark.parametrize("token", ["", "wgi_1", "wgt_" + "0" * 12 + "_" + "a" * 64, TOKEN + "\n"])
def test_token_that_is_none_is_refused_before_anything_is_sent(token: str) -> None:
    with pytest.raises(InvalidSetting, match="token"):
        enrol("http://127.0.0.1:9", token, KEY, 7)


def test_every_request_is_signed_anew() -> None:
    with answering(http(204, b"")) as (url, requests), client_of(url) as client:
        assert client.offer(wait_seconds=3) is None
        assert client.offer(wait_seconds=3) is None
    first, second = (headers_of(request) for request in requests)
    assert first["wegeft-site"] == f"{OFFER.job_id}/{OFFER.site}"
    assert first["wegeft-nonce"] != second["wegeft-nonce"]
    assert len(first["wegeft-nonce"]) >= 32
    assert "authorization" not in first
    path = requests[0].split()[1].decode()
    assert path == "/api/v1/federation/offer?wait=3"
    content = request_content("GET", path, b"", first["wegeft-timestamp"], first["wegeft-nonce"])
    assert is_signed(public_key_of(KEY), content, first["wegeft-signature"])
    other = request_content("GET", path.replace("3", "4"), b"", first["wegeft-timestamp"], first["wegeft-nonce"])
    assert not is_signed(public_key_of(KEY), other, first["wegeft-signature"])


def test_offer_is_believed_only_where_it_is_for_this_site() -> None:
    strange = OFFER.model_copy(update={"site": "somebody-else"})
    answers = [http(200, content, JSON) for content in (OFFER.to_bytes(), strange.to_bytes(), b'{"round": 1}')]
    with answering(*answers) as (url, _), client_of(url) as client:
        assert client.offer() == OFFER
        for _ in range(2):
            with pytest.raises(UnexpectedAnswer, match="offer"):
                client.offer()


@pytest.mark.parametrize("error", [FederationOver("over", path="job", value="succeeded"), Unauthenticated("no"), Forbidden("revoked")])
def test_refusals_keep_their_names(error: WegeftError) -> None:
    with answering(refusal(error)) as (url, _), client_of(url) as client, pytest.raises(type(error)) as caught:
        client.offer()
    assert caught.value.problems == error.problems


def test_request_that_was_sent_twice_on_the_way_is_signed_anew() -> None:
    twice = refusal(Unauthenticated("this very request has come before", path="nonce"))
    with answering(twice, http(200, OFFER.to_bytes(), JSON)) as (url, requests), client_of(url, patience_seconds=5) as client:
        assert client.offer() == OFFER
    first, second = (headers_of(request)["wegeft-nonce"] for request in requests)
    assert first != second


def receipt_for(key: bytes, **change: Any) -> bytes:
    update = make_update()
    said = {name: getattr(update, name) for name in ("job_id", "round", "attempt", "site", "tensors")}
    receipt = Receipt(**{**said, "update": update.digest, "received_at": NOW, **change})
    return SignedReceipt(receipt=receipt, signature=sign(key, receipt.to_bytes())).to_bytes()


def test_receipt_is_returned() -> None:
    with answering(http(201, receipt_for(SERVER_KEY), JSON)) as (url, _), client_of(url) as client:
        assert client.submit(make_update()).receipt.update == make_update().digest


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (receipt_for(OTHER_KEY), "signed with"),
        (receipt_for(SERVER_KEY, update=digest_of(b"x")), "another update"),
        (receipt_for(SERVER_KEY, tensors=digest_of(b"x")), "another update"),
        (receipt_for(SERVER_KEY, round=9), "another update"),
    ],
)
def test_receipt_for_something_else_or_by_somebody_else_is_not_believed(content: bytes, match: str) -> None:
    with answering(http(201, content, JSON)) as (url, _), client_of(url) as client, pytest.raises(UnexpectedAnswer, match=match):
        client.submit(make_update())


def test_late_update_learns_the_current_round() -> None:
    late = StaleRound("round 1 is over", path="round", value=2)
    with answering(refusal(late)) as (url, _), client_of(url) as client, pytest.raises(StaleRound) as caught:
        client.submit(make_update())
    assert caught.value.problems[0].value == "2"


def part_of_blob(request: bytes) -> bytes:
    """The rest of the blob, as a server that knows ranges gives it."""
    begin = int(headers_of(request).get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if begin >= len(BLOB):
        return refusal(InvalidSetting("no such range"))
    status = 206 if begin else 200
    return http(status, BLOB[begin:], f"Content-Range: bytes {begin}-{len(BLOB) - 1}/{len(BLOB)}")


@pytest.fixture
def ranged() -> Iterator[tuple[str, list[bytes]]]:
    requests: list[bytes]

    def answer(connection: socket.socket) -> None:
        connection.sendall(part_of_blob(requests[-1]))

    with answering(answer) as (url, requests):
        yield url, requests


def test_download_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    cut = http(200, BLOB[:4000], length=len(BLOB))
    rest = http(206, BLOB[4000:], f"Content-Range: bytes 4000-{len(BLOB) - 1}/{len(BLOB)}")
    with answering(cut, rest) as (url, requests), client_of(url, patience_seconds=5) as client:
        client.fetch_blob(digest_of(BLOB), tmp_path / "start")
    assert (tmp_path / "start").read_bytes() == BLOB
    assert headers_of(requests[1])["range"] == "bytes=4000-"
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


@pytest.mark.parametrize("held", [0, 1, 5000, len(BLOB) - 1, len(BLOB)])
def test_download_goes_on_where_a_killed_process_was(tmp_path: Path, ranged: tuple[str, list[bytes]], held: int) -> None:
    (tmp_path / "start.part").write_bytes(BLOB[:held])
    url, requests = ranged
    with client_of(url) as client:
        client.fetch_blob(digest_of(BLOB), tmp_path / "start")
    assert (tmp_path / "start").read_bytes() == BLOB
    assert len(requests) == (held < len(BLOB))


def test_download_starts_afresh_where_what_is_held_is_longer_than_the_file(tmp_path: Path, ranged: tuple[str, list[bytes]]) -> None:
    (tmp_path / "start.part").write_bytes(BLOB + b"more")
    with client_of(ranged[0]) as client:
        client.fetch_blob(digest_of(BLOB), tmp_path / "start")
    assert (tmp_path / "start").read_bytes() == BLOB


def test_wrong_bytes_never_get_their_name(tmp_path: Path, ranged: tuple[str, list[bytes]]) -> None:
    (tmp_path / "start.part").write_bytes(b"not the beginning")
    with client_of(ranged[0]) as client:
        with pytest.raises(DigestMismatch):
            client.fetch_blob(digest_of(BLOB), tmp_path / "start")
        assert list(tmp_path.iterdir()) == []
        client.fetch_blob(digest_of(BLOB), tmp_path / "start")
    assert (tmp_path / "start").read_bytes() == BLOB


def test_server_without_ranges_gives_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "start.part").write_bytes(BLOB[:100])
    with answering(http(200, BLOB)) as (url, _), client_of(url) as client:
        client.fetch_blob(digest_of(BLOB), tmp_path / "start")
    assert (tmp_path / "start").read_bytes() == BLOB


@pytest.mark.parametrize("held", [0, 100])
def test_server_that_never_stops_sending_does_not_fill_the_disk(tmp_path: Path, ranged: tuple[str, list[bytes]], held: int) -> None:
    (tmp_path / "start.part").write_bytes(BLOB[:held])
    with client_of(ranged[0]) as client:
        with pytest.raises(UnexpectedAnswer, match="more than"):
            client.fetch_blob(digest_of(BLOB), tmp_path / "start", max_bytes=len(BLOB) - 1)
        assert list(tmp_path.iterdir()) == []
        client.fetch_blob(digest_of(BLOB), tmp_path / "start", max_bytes=len(BLOB))
    assert (tmp_path / "start").read_bytes() == BLOB


def test_clock_is_compared_with_the_servers() -> None:
    date = f"Date: {format_datetime(NOW - timedelta(minutes=7), usegmt=True)}"
    with answering(http(200, b"{}", date), http(200, b"{}"), http(200, b"{}", "Date: soon")) as (url, _), client_of(url) as client:
        assert client.clock_lead() == timedelta(minutes=7)
        for _ in range(2):
            with pytest.raises(UnexpectedAnswer, match="what time"):
                client.clock_lead()
