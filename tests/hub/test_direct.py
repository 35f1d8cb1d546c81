"""Bytes that go between clients and the S3 server directly: verified all the same, and no token ever goes there."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import urllib3
from safetensors.numpy import save

from hub import adapter_uploads, catalog
from hub.catalog import quotas
from hub.catalog.reservations import AHEAD_SECONDS
from hub.collection import Collector
from hub.folder_store import FolderStore
from hub.s3 import S3Access, open_store
from infra.database import reading, writing
from tests.http_clients import patient_request
from tests.hub.broken_wire import Wire, broken_wire
from tests.hub.hf_clients import Endpoint, ask, sound_files
from tests.hub.serving import CONFIG, NOW, WEIGHTS, listening, made_hub
from tests.hub.test_hf_versions import python_with
from tests.servers import S3Server, free_ports
from wegeft.client import Client
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, digest_of
from wegeft.contracts.errors import DigestMismatch, QuotaExceeded, UnexpectedAnswer
from wegeft.contracts.quotas import QuotaLimits

API = "/api/v1/adapters/demo/arithmetic"
FILE = f"{API}/versions/1/files/{WEIGHTS_FILE}"
DIRECT_FROM = 2000
LONG = WEIGHTS * 30
"""Too long to come with the first answer of a pull."""
PART = 5 << 20
"""The least that S3 takes for a part that is not the last."""


@dataclass
class Direct(Endpoint):
    """A hub on an S3 store, whose public address is a wire that keeps what it is asked."""

    wire: Wire
    s3: S3Server
    bucket: str

    def objects(self) -> list[str]:
        """Everything in the bucket, finished or not."""
        with urllib3.PoolManager() as connections:
            client = self.s3.client(connections)
            begun = [one.object_name for one in client._list_multipart_uploads(self.bucket).uploads]
            return begun + [one.object_name for one in client.list_objects(self.bucket, recursive=True) if not one.is_dir]

    def asked(self) -> list[bytes]:
        """What the S3 server was asked by clients; there is no token in it."""
        whole = b"".join(self.wire.requests)
        assert b"authorization" not in whole.lower()
        assert all(token.encode() not in whole for token in self.hub.tokens.values())
        return [packet.split(b" ")[0] for packet in self.wire.requests if packet[:4] in (b"GET ", b"PUT ", b"HEAD")]


def access_to(server: S3Server, public: str) -> S3Access:
    return S3Access(endpoint=server.endpoint, access_key=server.access_key, secret_key=server.secret_key, public_endpoint=public)


@pytest.fixture
def direct(tmp_path: Path, s3_server: S3Server) -> Iterator[Direct]:
    bucket = s3_server.new_bucket()
    with broken_wire(s3_server.ports[0]) as wire:
        store = open_store(f"s3://{bucket}", access_to(s3_server, f"http://127.0.0.1:{wire.port}"))
        database = f"sqlite:///{tmp_path / 'hub.db'}"
        with made_hub(database, store, direct_from_bytes=DIRECT_FROM) as hub, listening(hub.app) as url:
            yield Direct(hub, url, tmp_path / "home", wire, s3_server, bucket)


SNAPSHOT = """
folder = Path(snapshot_download("demo/arithmetic"))
answer = {path.name: path.read_bytes().hex() for path in folder.iterdir()}
"""


@pytest.mark.soak
@pytest.mark.parametrize("version", ["0.36.2", "1.33.0"])
def test_older_clients_leave_their_token_here_too(direct: Direct, tmp_path: Path, version: str) -> None:
    direct.hub.publish(weights=LONG)
    check_snapshot(direct, python_with(version, tmp_path / "venv"))


def check_snapshot(direct: Direct, python: str) -> None:
    code = f"import json\nfrom pathlib import Path\nfrom huggingface_hub import *\n{SNAPSHOT}\nprint('ANSWER', json.dumps(answer))"
    assert direct.run_client([python, "-c", code], "read") == {CONFIG_FILE: CONFIG.hex(), WEIGHTS_FILE: LONG.hex()}
    assert direct.asked() == [b"GET"]


def test_clients_read_long_files_from_the_store_itself_and_their_token_stays_here(direct: Direct, tmp_path: Path) -> None:
    direct.hub.publish(weights=LONG)
    check_snapshot(direct, sys.executable)
    with Client(direct.url, direct.hub.tokens["read"]) as client:
        client.download("demo/arithmetic", tmp_path / "ours")
    assert (tmp_path / "ours" / WEIGHTS_FILE).read_bytes() == LONG
    assert direct.asked() == [b"GET", b"GET"]


def test_only_get_of_long_files_leads_elsewhere(direct: Direct) -> None:
    direct.hub.publish(weights=LONG)
    for path in (FILE, f"/demo/arithmetic/resolve/main/{WEIGHTS_FILE}"):
        head = ask(direct, "HEAD", path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(LONG)))
        assert "location" not in head.headers
        led = ask(direct, "GET", path)
        assert (led.status_code, led.headers["cache-control"]) == (302, "private, no-store")
        part = patient_request("GET", led.headers["location"], headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, LONG[5:10])
        assert ask(direct, "GET", path, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
        assert ask(direct, "GET", path, headers={"Range": "bytes=99999999-"}).status_code == 416
        assert ask(direct, "GET", path, role="").status_code == 401
    assert ask(direct, "GET", FILE.replace(WEIGHTS_FILE, CONFIG_FILE)).content == CONFIG
    assert ask(direct, "GET", f"/demo/arithmetic/resolve/main/{WEIGHTS_FILE}").headers["x-repo-commit"]


def test_what_the_store_serves_is_verified(direct: Direct, tmp_path: Path) -> None:
    direct.hub.publish(weights=LONG)
    direct.wire.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(LONG) + LONG[::-1]
    with Client(direct.url, direct.hub.tokens["read"], patience_seconds=0) as client, pytest.raises(DigestMismatch):
        client.download("demo/arithmetic", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_folder_has_no_addresses_of_its_own(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'hub.db'}"
    with made_hub(database, FolderStore(tmp_path / "blobs"), direct_from_bytes=0) as hub, listening(hub.app) as url:
        hub.publish()
        endpoint = Endpoint(hub, url, tmp_path)
        assert ask(endpoint, "GET", FILE).content == WEIGHTS
        view = begin(endpoint, b"x" * 100)
        assert (view["is_direct"], view["addresses"]) == (False, [])


def begin(endpoint: Endpoint, content: bytes, role: str = "write", **change: Any) -> dict[str, Any]:
    wanted = {"digest": digest_of(content), "size": len(content), "may_be_direct": True, **change}
    answer = ask(endpoint, "POST", f"{API}/uploads", role, json=wanted)
    assert answer.status_code in (200, 201), answer.text
    view: dict[str, Any] = answer.json()
    return view


def finish(endpoint: Endpoint, view: dict[str, Any]) -> httpx2.Response:
    return ask(endpoint, "POST", f"{API}/uploads/{view['id']}/finish", "write")


def put(address: dict[str, Any], content: bytes) -> None:
    part = content[address["offset"] : address["offset"] + address["size"]]
    assert patient_request("PUT", address["url"], content=part).status_code == 200


def test_a_long_file_is_put_to_the_store_and_verified_by_the_hub(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_uploads, "DIRECT_PART_BYTES", PART)
    content = np.random.default_rng(1).bytes(PART + 1000)
    view = begin(direct, content)
    assert [(one["offset"], one["size"]) for one in view["addresses"]] == [(0, PART), (PART, 1000)]
    put(view["addresses"][1], content)
    again = begin(direct, content)
    assert (again["id"], again["offset"]) == (view["id"], 1000)
    assert [one["offset"] for one in again["addresses"]] == [0]
    assert finish(direct, view).status_code == 409
    put(again["addresses"][0], content)
    assert finish(direct, view).json() == {"digest": digest_of(content), "size": len(content)}
    assert hashlib.sha256(b"".join(direct.hub.store.get(digest_of(content)))).hexdigest() == digest_of(content)[7:]
    assert [name.partition("/")[0] for name in direct.objects()] == ["sha256"], "nothing of the upload is left"
    assert begin(direct, content)["id"] == "", "the sender's own bytes need not come again"
    assert patient_request("PUT", view["addresses"][0]["url"], content=b"late").status_code == 404


def test_other_bytes_than_the_digest_names_are_refused_and_gone(direct: Direct) -> None:
    content = b"a" * 5000
    view = begin(direct, content)
    put(view["addresses"][0], content[::-1].replace(b"a", b"b"))
    refused = finish(direct, view)
    assert (refused.status_code, refused.json()["problems"][0]["path"]) == (422, digest_of(content))
    assert direct.objects() == []
    assert direct.hub.store.has(digest_of(content)) is None
    assert ask(direct, "GET", f"{API}/uploads/{view['id']}", "write").status_code == 404


def test_an_abandoned_upload_is_collected_and_can_be_begun_again(direct: Direct) -> None:
    content = b"a" * 5000
    put(begin(direct, content)["addresses"][0], content)
    assert len(direct.objects()) == 1
    collector = Collector(engine=direct.hub.engine, store=direct.hub.store)
    collector.collect(NOW, 10)
    assert len(direct.objects()) == 1, "it is not over yet"
    collector.collect(NOW + timedelta(days=2), 10)
    assert direct.objects() == []
    view = begin(direct, content)
    ask(direct, "DELETE", f"{API}/uploads/{view['id']}", "write")
    assert direct.objects() == []
    view = begin(direct, content)
    put(view["addresses"][0], content)
    assert finish(direct, view).status_code == 201


def test_an_upload_that_nobody_goes_on_with_counts_by_what_has_come(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once no address that was given is good any more; who goes on counts again by what may come."""
    monkeypatch.setattr(adapter_uploads, "DIRECT_PART_BYTES", PART)
    content = bytes(PART + 1000)
    view = begin(direct, content)
    put(view["addresses"][1], content)
    collector, lapsed = Collector(engine=direct.hub.engine, store=direct.hub.store), NOW + timedelta(seconds=AHEAD_SECONDS)

    def waiting() -> int:
        with reading(direct.hub.engine) as connection:
            return catalog.count_staged(connection, "demo", lapsed)

    collector.collect(lapsed - timedelta(seconds=1), 10)
    assert waiting() == len(content), "there may be more by now"
    collector.collect(lapsed, 10)
    assert waiting() == 1000
    begin(direct, content)
    assert waiting() == len(content)


@pytest.mark.parametrize("is_looked_at", [True, False])
def test_a_part_that_is_longer_than_its_place_ends_the_upload(direct: Direct, is_looked_at: bool) -> None:
    """An address bounds no length: what comes by it beyond what was announced, and counted, does not stay."""
    content = b"a" * 5000
    view = begin(direct, content)
    assert patient_request("PUT", view["addresses"][0]["url"], content=content + b"a").status_code == 200
    if is_looked_at:
        assert ask(direct, "GET", f"{API}/uploads/{view['id']}", "write").status_code == 422
    else:
        Collector(engine=direct.hub.engine, store=direct.hub.store).collect(NOW + timedelta(seconds=AHEAD_SECONDS), 10)
    assert direct.objects() == []
    assert ask(direct, "GET", f"{API}/uploads/{view['id']}", "write").status_code == 404


def test_what_was_lost_in_the_store_is_begun_anew(direct: Direct) -> None:
    content = b"a" * 5000
    view = begin(direct, content)
    put(view["addresses"][0], content)
    staging = direct.hub.store.staging()
    assert staging is not None
    staging.discard(view["id"])
    again = begin(direct, content)
    assert (again["id"], again["offset"]) == (view["id"], 0)
    put(again["addresses"][0], content)
    assert finish(direct, again).status_code == 201


def adapter_of(size: int, folder: Path) -> Path:
    """Write an adapter of about so many bytes."""
    width, name = size // 32, "base_model.model.model.layers.0.self_attn.q_proj"
    values = np.random.default_rng(2).standard_normal((4, width), np.float32)
    config = json.loads(sound_files()[CONFIG_FILE]) | {"target_modules": ["q_proj"]}
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    (folder / WEIGHTS_FILE).write_bytes(save({f"{name}.lora_A.weight": values, f"{name}.lora_B.weight": np.ascontiguousarray(values.T)}))
    return folder


def test_a_long_push_goes_to_the_store(direct: Direct, tmp_path: Path) -> None:
    folder = adapter_of(9 << 20, tmp_path / "long")
    with Client(direct.url, direct.hub.tokens["write"], patience_seconds=0) as client:
        made = client.push(folder, "demo/long")
        assert client.push(folder, "demo/long").ref == made.ref
    assert direct.asked() == [b"PUT"]
    assert b"".join(direct.hub.store.get(made.manifest.files[1].digest)) == (folder / WEIGHTS_FILE).read_bytes()
    assert not [name for name in direct.objects() if not name.startswith("sha256/")]


def test_who_cannot_reach_the_store_pushes_through_the_hub(s3_server: S3Server, tmp_path: Path) -> None:
    folder = adapter_of(9 << 20, tmp_path / "long")
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = open_store(f"s3://{s3_server.new_bucket()}", access_to(s3_server, nowhere))
    database = f"sqlite:///{tmp_path / 'hub.db'}"
    with made_hub(database, store, direct_from_bytes=DIRECT_FROM) as hub, listening(hub.app) as url:
        client = Client(url, hub.tokens["write"], patience_seconds=0)
        made = client.push(folder, "demo/long")
        client.close()
    assert b"".join(store.get(made.manifest.files[1].digest)) == (folder / WEIGHTS_FILE).read_bytes()


def test_room_is_asked_for_before_bytes_and_nothing_tells_what_others_have(direct: Direct) -> None:
    content = b"a" * 5000
    others = begin(direct, content, "admin")
    put(others["addresses"][0], content)
    ask(direct, "POST", f"{API}/uploads/{others['id']}/finish", "admin")
    assert direct.hub.store.has(digest_of(content)) == 5000
    known, unknown = begin(direct, content), begin(direct, b"b" * 5000)
    assert known["id"]
    assert (known["offset"], len(known["addresses"])) == (unknown["offset"], len(unknown["addresses"]))
    assert ask(direct, "GET", f"{API}/uploads/{others['id']}", "write").status_code == 404
    with writing(direct.hub.engine) as connection:
        quotas.set_quota(connection, "demo", QuotaLimits(bytes=5999))
    full = ask(direct, "POST", f"{API}/uploads", "write", json={"digest": digest_of(b"c"), "size": 6000})
    assert full.json()["code"] == QuotaExceeded.code


def test_an_upload_that_cannot_be_is_refused(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'hub.db'}"
    bodies: list[tuple[dict[str, Any], str]] = [
        ({"digest": "md5:1", "size": 1}, "body.digest"),
        ({"digest": digest_of(b""), "size": 0}, "body.size"),
        ({"size": 1, "x": 1}, "body.x"),
        ({"digest": digest_of(b""), "size": 1 << 50}, "size"),
    ]
    with made_hub(database, FolderStore(tmp_path / "blobs")) as hub, listening(hub.app) as url:
        endpoint = Endpoint(hub, url, tmp_path)
        for body, path in bodies:
            answer = ask(endpoint, "POST", f"{API}/uploads", "write", json=body)
            assert answer.status_code in (413, 422)
            assert path in [problem["path"] for problem in answer.json()["problems"]]
            assert ask(endpoint, "POST", f"{API}/uploads", "read", json=body).status_code == 403
        view = begin(endpoint, b"x" * 100)
        place = f"{API}/uploads/{view['id']}/parts"
        assert ask(endpoint, "PUT", f"{place}/50/{digest_of(b'y')}", "write", content=b"y").status_code == 409
        assert ask(endpoint, "PUT", f"{place}/0/{digest_of(b'y')}", "write", content=b"y").status_code == 422
        assert ask(endpoint, "PUT", f"{place}/0/{digest_of(b'x' * 100)}", "admin", content=b"x" * 100).status_code == 404
        assert finish(endpoint, view).status_code == 409


def test_an_address_that_is_none_is_not_asked(direct: Direct, tmp_path: Path) -> None:
    direct.hub.publish(weights=LONG)
    for location in ("ftp://host/x", "http://", "/relative", "http://user:secret@host/"):
        direct.hub.store.presign = lambda *_, location=location: location  # type: ignore[method-assign]
        with Client(direct.url, direct.hub.tokens["read"], patience_seconds=0) as client, pytest.raises(UnexpectedAnswer) as caught:
            client.download("demo/arithmetic", tmp_path / "ours")
        assert "secret" not in str(caught.value)
