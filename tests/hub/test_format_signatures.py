"""Derived formats are signed when they are attached, for what they are and never for their version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from hub import catalog
from hub.formats import shelf
from hub.objects import MemoryStore
from hub.signing import Signer
from infra.database import writing
from tests.hub import format_files as made
from tests.hub.serving import Hub, made_hub
from wegeft.contracts.adapter import AdapterRef, digest_of
from wegeft.contracts.bundles import open_format_bundle, open_version_bundle
from wegeft.contracts.errors import NotFound, SignatureInvalid, UntrustedKey
from wegeft.contracts.signing_keys import Algorithm, SigningKey, key_id

SIGNER = Signer(key=SigningKey(bytes(range(32))))
TRUSTED = {key_id(SIGNER.key.pem(algorithm)): SIGNER.key.pem(algorithm) for algorithm in get_args(Algorithm)}
FORMATS = "/api/v1/adapters/demo/x/versions/1/formats"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore(), SIGNER) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub) -> Iterator[TestClient]:
    with TestClient(hub.app, headers=hub.bearer("write")) as client:
        yield client


def attach(hub: Hub, client: TestClient, **changes: Any) -> dict[str, bytes]:
    files = made.lora(made.factors(made.generators()))
    made.send(client, files)
    answer = client.put(f"{FORMATS}/lora/float32", json=made.attachment(files, **changes))
    assert answer.status_code == 200, answer.text
    return files


def listed(client: TestClient) -> str:
    [view] = [view for view in client.get(FORMATS).json()["formats"] if view["format"] == "lora"]
    return str(view["attached"][0]["signature"])


def test_a_format_is_signed_for_its_files_its_version_and_its_error(hub: Hub, client: TestClient) -> None:
    made.publish(hub)
    files = attach(hub, client)
    signed = open_format_bundle(listed(client), TRUSTED)
    assert signed.files == {path: digest_of(content) for path, content in files.items()}
    assert (signed.subject, signed.claim.largest_error, signed.claim.base_model) == ("demo/x@1/lora/float32", 1e-8, made.BASE)
    first = listed(client)
    attach(hub, client, largest_error=1e-7)
    assert open_format_bundle(listed(client), TRUSTED).claim.largest_error == 1e-7
    assert listed(client) != first


def test_a_formats_signature_is_not_its_versions_nor_the_other_way_round(hub: Hub, client: TestClient) -> None:
    made.publish(hub)
    attach(hub, client)
    with pytest.raises(SignatureInvalid, match="of a derived format"):
        open_version_bundle(listed(client), TRUSTED)
    with pytest.raises(SignatureInvalid, match="of the version"):
        open_format_bundle(client.get("/api/v1/adapters/demo/x/versions/1/signature").text, TRUSTED)
    with pytest.raises(UntrustedKey):
        open_format_bundle(listed(client), {})


def test_what_was_attached_before_the_hub_signed_is_signed_once(hub: Hub, client: TestClient) -> None:
    made.publish(hub)
    attach(hub, client)
    with writing(hub.engine) as connection:
        connection.execute(update(catalog.DERIVED_FORMATS).values(signature=None))
        version = catalog.resolve(connection, AdapterRef.parse("demo/x@1"))
    silent = replace(hub.services, signer=None)
    assert [one.signature for one in shelf.list_signed(silent, version)] == [None]
    with pytest.raises(NotFound, match="does not sign"):
        shelf.find_signature(silent, version, ("lora", "float32"), "ed25519")
    first = listed(client)
    assert open_format_bundle(first, TRUSTED).ref == "demo/x@1"
    assert listed(client) == first


def test_the_signature_is_served_in_both_algorithms(hub: Hub, client: TestClient) -> None:
    made.publish(hub)
    attach(hub, client)
    at = f"{FORMATS}/lora/float32/signature"
    answer = client.get(at)
    assert (answer.text, answer.headers["content-type"]) == (listed(client), "application/vnd.dev.sigstore.bundle.v0.3+json")
    other = client.get(at, params={"algorithm": "ecdsa-p256"}).text
    assert open_format_bundle(other, TRUSTED).key == key_id(SIGNER.key.pem("ecdsa-p256"))
    assert client.get(at, params={"algorithm": "rsa"}).status_code == 422
    assert client.get(f"{FORMATS}/gguf/float32/signature").json()["code"] == "not_found"
    assert client.get(at, headers={"Authorization": "Bearer wgt_x"}).status_code == 401
