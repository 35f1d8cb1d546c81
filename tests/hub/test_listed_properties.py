"""What lists know of an adapter beside its publication: its signature, what it is stored as, and what was reported of it; and whoami."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog.organisations import create_organisation, set_member
from hub.provenance import publish_keys, with_signature
from hub.signing import Signer
from infra.auth import Principal, Role
from infra.database import writing
from tests.hub.serving import NOW, Hub
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterRef
from wegeft.contracts.signing_keys import SigningKey

FILES = {CONFIG_FILE: b"{}", WEIGHTS_FILE: b"w"}
LIST = "/api/v1/adapters"


def names(client: TestClient, **wanted: Any) -> list[str]:
    answer = client.get(LIST, params=wanted)
    assert answer.status_code == 200, answer.text
    return [one["adapter"] for one in answer.json()["adapters"]]


def report(client: TestClient, version: int, value: float, **told: str) -> None:
    body = {"metric": "accuracy", "value": value, **told}
    assert client.post(f"{LIST}/demo/x/versions/{version}/evaluations", json=body).status_code in (200, 201)


def test_what_somebody_reports_is_found_by_its_bound(hub: Hub, client: TestClient) -> None:
    hub.publish_files("job:1", "demo/x", FILES, metrics={"accuracy": 0.5, "eval_loss": 1.0})
    hub.publish_files("job:2", "demo/y", FILES, metrics={"accuracy": 0.95})
    assert names(client, metric="accuracy>=0.9") == ["demo/y"]
    report(client, 1, 0.92)
    assert names(client, metric="accuracy>=0.9") == ["demo/x", "demo/y"]
    assert names(client, metric=["accuracy>=0.9", "eval_loss<=1"]) == ["demo/x"]
    assert names(client, metric="accuracy<=0.5") == ["demo/x"]
    report(client, 1, 0.7)
    assert names(client, metric="accuracy>=0.9") == ["demo/y"]
    report(client, 1, 0.97, dataset_name="other")
    assert names(client, metric="accuracy>0.96") == ["demo/x"]
    assert names(client, metric=["accuracy>0.96", "accuracy<0.6"]) == ["demo/x"]


def test_reports_of_a_version_that_is_not_the_newest_are_not_listed(hub: Hub, client: TestClient) -> None:
    hub.publish_files("job:1", "demo/x", FILES)
    report(client, 1, 0.9)
    hub.publish_files("job:2", "demo/x", FILES)
    assert names(client, metric="accuracy>=0") == []
    report(client, 1, 0.8)
    assert names(client, metric="accuracy>=0") == []
    report(client, 2, 0.8)
    assert names(client, metric="accuracy>=0") == ["demo/x"]


def test_adapters_are_found_by_what_they_are_stored_as(hub: Hub, client: TestClient) -> None:
    for method in ("wegeft", "lora", "rslora", "dora", "ia3"):
        hub.publish_files(f"job:{method}", f"demo/{method}", FILES, method=method)
    assert names(client, format="wegeft") == ["demo/wegeft"]
    assert names(client, format="lora") == ["demo/lora", "demo/rslora"]
    assert names(client, format="peft", order="updated") == ["demo/ia3", "demo/dora"]
    facets = client.get(f"{LIST}/facets").json()["facets"]
    assert facets["format"] == [{"value": name, "count": count} for name, count in (("lora", 2), ("peft", 2), ("wegeft", 1))]
    assert facets["signed"] == [{"value": "false", "count": 5}]


def test_what_is_signed_is_told_from_what_is_not_once_it_is(hub: Hub, client: TestClient) -> None:
    for name in ("x", "y"):
        hub.publish_files(f"job:{name}", f"demo/{name}", FILES)
    assert (names(client, signed="false"), names(client, signed="true")) == (["demo/x", "demo/y"], [])
    signer = Signer(key=SigningKey(b"\x01" * 32))
    publish_keys(hub.engine, signer, NOW)
    signing = replace(hub.services, signer=signer)
    with writing(hub.engine) as connection:
        version = catalog.resolve(connection, AdapterRef.parse("demo/x@1"))
    with_signature(signing, version)
    assert (names(client, signed="false"), names(client, signed="true")) == (["demo/y"], ["demo/x"])
    hub.publish_files("job:new", "demo/x", FILES)
    assert names(client, signed="true") == []


@pytest.mark.parametrize(("name", "value"), [("format", "gguf"), ("format", ""), ("signed", "perhaps"), ("format", "x" * 5000)])
def test_what_cannot_be_asked_for_is_refused_by_name(client: TestClient, name: str, value: str) -> None:
    for path in (LIST, f"{LIST}/facets"):
        answer = client.get(path, params={name: value})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert name in answer.text


def test_whoami_names_the_organisations_of_the_caller(hub: Hub, client: TestClient) -> None:
    with writing(hub.engine) as connection:
        ada, bob = (Principal(token_id="1", name=name, role=Role.WRITE) for name in ("write", "bob"))
        create_organisation(connection, "Makers", ada, NOW, is_private_by_default=False)
        create_organisation(connection, "others", bob, NOW, is_private_by_default=False)
        create_organisation(connection, "readers", bob, NOW, is_private_by_default=False)
        set_member(connection, "readers", "write", Role.READ, bob, NOW)
    orgs = client.get("/api/whoami-v2").json()["orgs"]
    assert [(org["type"], org["name"], org["roleInOrg"]) for org in orgs] == [("org", "Makers", "admin"), ("org", "readers", "read")]
    assert client.get("/api/whoami-v2", headers=hub.bearer("read")).json()["orgs"] == []
