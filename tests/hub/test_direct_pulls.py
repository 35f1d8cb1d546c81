"""A pull of a long file goes to the address that its answer gives: with no further question to the hub, resumed, and verified."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hub import pulls
from hub.objects import ObjectStore
from hub.s3 import S3Access, open_store
from hub.signing import Signer
from tests.http_clients import patient_request
from tests.hub.broken_wire import Wire, broken_wire
from tests.hub.fault_run import Witness
from tests.hub.serving import Hub, listening, made_hub
from tests.servers import S3Server, free_ports
from wegeft.client import Client
from wegeft.client.downloads import RESUMED_FROM_BYTES
from wegeft.contracts.adapter import WEIGHTS_FILE, digest_of
from wegeft.contracts.errors import DigestMismatch, UnexpectedAnswer
from wegeft.contracts.signing_keys import SigningKey

LONG = np.random.default_rng(4).bytes(RESUMED_FROM_BYTES + 7)
PULL = "GET /api/v1/adapters/demo/arithmetic/versions/latest/pull"
FILE = f"GET /api/v1/adapters/demo/arithmetic/versions/1/files/{WEIGHTS_FILE}"


@dataclass
class Served:
    """A hub on an S3 store whose public address is a wire, and what the hub was asked."""

    hub: Hub
    url: str
    wire: Wire
    witness: Witness

    def download(self, folder: Path, patience_seconds: float = 0) -> bytes:
        with Client(self.url, self.hub.tokens["read"], patience_seconds=patience_seconds) as client:
            client.download("demo/arithmetic", folder)
        return (folder / WEIGHTS_FILE).read_bytes()

    @property
    def asked(self) -> list[str]:
        return [answer.request for answer in self.witness.answers]

    @property
    def ranges(self) -> list[str]:
        """What parts were asked of the S3 server; no token was."""
        packets = [packet.decode(errors="replace") for packet in self.wire.requests if packet.startswith(b"GET ")]
        assert not [packet for packet in packets if "authorization:" in packet.lower() or "traceparent:" in packet.lower()]
        return [packet.lower().partition("range: ")[2].partition("\r\n")[0] for packet in packets]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Served]:
    with broken_wire(s3_server.ports[0]) as wire:
        public = f"http://127.0.0.1:{wire.port}"
        access = S3Access(
            endpoint=s3_server.endpoint, access_key=s3_server.access_key, secret_key=s3_server.secret_key, public_endpoint=public
        )
        store = open_store(f"s3://{s3_server.new_bucket()}", access)
        database, signer = f"sqlite:///{tmp_path_factory.mktemp('hub') / 'hub.db'}", Signer(key=SigningKey(bytes(32)))
        with made_hub(database, store, signer, direct_from_bytes=1 << 20) as hub:
            witness = Witness(hub.app)
            with listening(witness) as url:  # type: ignore[arg-type]  # any application will do
                hub.publish(weights=LONG)
                yield Served(hub, url, wire, witness)


@pytest.fixture
def served(whole: Served) -> Iterator[Served]:
    """Of which nothing was asked yet."""
    whole.witness.answers.clear()
    whole.wire.requests.clear()
    yield whole
    whole.wire.cuts, whole.wire.answer = [], None


def test_a_long_file_needs_no_further_question(served: Served, tmp_path: Path) -> None:
    assert served.download(tmp_path / "ours") == LONG
    assert (served.asked, served.ranges) == ([PULL], [""])


def test_what_an_address_breaks_off_the_hub_goes_on_with(served: Served, tmp_path: Path) -> None:
    served.wire.cuts = [RESUMED_FROM_BYTES // 2]
    assert served.download(tmp_path / "ours") == LONG
    assert served.asked == [PULL, FILE]
    assert served.ranges[0] == ""
    assert int(served.ranges[1].removeprefix("bytes=").removesuffix("-")) > 1 << 20


def test_what_a_process_that_died_has_gathered_is_not_asked_for_again(served: Served, tmp_path: Path) -> None:
    """At the address too."""
    part = tmp_path / f".{digest_of(LONG).removeprefix('sha256:')[:32]}.part"
    part.write_bytes(LONG[:5_000_000])
    assert served.download(tmp_path / "ours") == LONG
    assert (served.asked, served.ranges) == ([PULL], ["bytes=5000000-"])
    assert not part.exists()


@pytest.mark.parametrize("gathered", [b"?" + LONG[1:5_000_000], b"?" + LONG[1:]], ids=["some", "as many as there are"])
def test_wrong_bytes_that_were_gathered_are_not_gone_on_with_for_ever(served: Served, tmp_path: Path, gathered: bytes) -> None:
    """Nobody has to find out which hidden file to delete: the bytes come again from their beginning."""
    (tmp_path / f".{digest_of(LONG).removeprefix('sha256:')[:32]}.part").write_bytes(gathered)
    assert served.download(tmp_path / "ours") == LONG


def test_an_address_that_is_good_no_more_is_asked_for_anew(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub gives another one; here the first was good for one second only, two seconds ago."""
    store: ObjectStore = served.hub.store
    address = store.presign(digest_of(LONG), 1, WEIGHTS_FILE)
    assert address is not None
    time.sleep(2)
    assert patient_request("GET", address).status_code == 403
    with monkeypatch.context() as patched:
        patched.setattr(pulls, "_addresses", lambda *_: iter([(WEIGHTS_FILE, address)]))
        assert served.download(tmp_path / "ours") == LONG
    assert served.asked == [PULL, FILE]


def test_a_store_that_cannot_be_reached_there_is_gone_around(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}/file"
    monkeypatch.setattr(pulls, "_addresses", lambda *_: iter([(WEIGHTS_FILE, nowhere)]))
    assert served.download(tmp_path / "ours") == LONG


@pytest.mark.parametrize("change", [b"?", b"?" + LONG[:1]])
def test_what_comes_from_an_address_is_verified(served: Served, tmp_path: Path, change: bytes) -> None:
    """Other bytes, as many or more, make no folder, and the next pull begins afresh."""
    wrong = change + LONG[1:]
    served.wire.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(wrong) + wrong
    with pytest.raises((DigestMismatch, UnexpectedAnswer)):
        served.download(tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir() if "ours" in path.name or path.suffix == ".part"] == []
    served.wire.answer = None
    assert served.download(tmp_path / "ours") == LONG


def test_an_address_that_is_none_is_not_asked(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "_addresses", lambda *_: iter([(WEIGHTS_FILE, "http://user:secret@host/")]))
    with pytest.raises(UnexpectedAnswer, match="no address"):
        served.download(tmp_path / "ours")
