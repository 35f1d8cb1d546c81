"""A snapshot that Hugging Face's client fetches carries the hub's proof, and can be verified offline; nothing else minds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, snapshot_download
from starlette.testclient import TestClient

from hub.folder_store import FolderStore
from hub.signing import Signer
from tests.hub.serving import CONFIG, WEIGHTS, Hub, listening, made_hub
from wegeft.client.verification import read_signature, verify_folder
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE
from wegeft.contracts.bundles import ATTESTATION_FILE, SIGNATURE_FILE, open_training_bundle
from wegeft.contracts.errors import SignatureInvalid
from wegeft.contracts.signing_keys import SigningKey, key_id

KEY = SigningKey(bytes(range(32)))
TRUSTED = {key_id(KEY.pem("ed25519")): KEY.pem("ed25519")}
BESIDE = [ATTESTATION_FILE, SIGNATURE_FILE]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("signed")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs"), Signer(key=KEY)) as hub:
        hub.publish()
        yield hub


@pytest.fixture(scope="module")
def url(hub: Hub) -> Iterator[str]:
    with listening(hub.app) as url:
        yield url


def api(hub: Hub, url: str) -> HfApi:
    return HfApi(endpoint=url, token=hub.tokens["write"])


def test_a_snapshot_carries_its_signature_and_is_verified_offline(
    hub: Hub, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = Path(snapshot_download("demo/arithmetic", endpoint=url, token=hub.tokens["read"], cache_dir=tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE, *BESIDE])
    signed = verify_folder(folder, read_signature(folder), TRUSTED)
    assert (signed.ref, sorted(signed.files)) == ("demo/arithmetic@1", [CONFIG_FILE, WEIGHTS_FILE])
    claim, _ = open_training_bundle((folder / ATTESTATION_FILE).read_bytes(), TRUSTED)
    assert claim == signed.claim
    weights = folder / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[::-1])
    with pytest.raises(SignatureInvalid):
        verify_folder(folder, read_signature(folder), TRUSTED)


def test_both_are_listed_with_size_and_digest_and_served_in_part(client: TestClient) -> None:
    info = client.get("/api/models/demo/arithmetic?blobs=true").json()
    listed = {one["rfilename"]: one for one in info["siblings"]}
    tree = {one["path"]: one for one in client.get("/api/models/demo/arithmetic/tree/main").json()}
    assert set(tree) == set(listed) == {CONFIG_FILE, WEIGHTS_FILE, *BESIDE}
    for path in BESIDE:
        whole = client.get(f"/demo/arithmetic/resolve/main/{path}")
        head = client.head(f"/demo/arithmetic/resolve/main/{path}")
        assert json.loads(whole.content)["mediaType"]
        assert whole.headers["ETag"] == head.headers["ETag"] == f'"{tree[path]["lfs"]["oid"]}"'
        assert int(head.headers["Content-Length"]) == tree[path]["size"] == listed[path]["size"] == len(whole.content)
        assert head.headers["X-Repo-Commit"] == info["sha"]
        part = client.get(f"/demo/arithmetic/resolve/main/{path}", headers={"Range": "bytes=5-14"})
        assert (part.status_code, part.content) == (206, whole.content[5:15])


def test_sending_or_deleting_everything_leaves_the_signature_to_the_hub(
    hub: Hub, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: Any = {"files": [{"path": name, "sample": "", "size": 3} for name in BESIDE]}
    with TestClient(hub.app, headers=hub.bearer("write")) as client:
        answer = client.post("/api/models/demo/arithmetic/preupload/main", json=asked).json()
        assert [one["shouldIgnore"] for one in answer["files"]] == [True, True]
        lines = [
            {"key": "header", "value": {"summary": "s", "description": ""}},
            *({"key": "deletedFile", "value": {"path": name}} for name in BESIDE),
        ]
        body = "".join(json.dumps(line) + "\n" for line in lines)
        done = client.post("/api/models/demo/arithmetic/commit/main", content=body, headers={"Content-Type": "application/x-ndjson"})
        assert done.status_code == 200, done.text
        forged = [*lines[:1], {"key": "file", "value": {"path": SIGNATURE_FILE, "content": "e30=", "encoding": "base64"}}]
        body = "".join(json.dumps(line) + "\n" for line in forged)
        assert client.post("/api/models/demo/arithmetic/commit/main", content=body).status_code == 400
    assert len(api(hub, url).list_repo_files("demo/arithmetic")) == 4


def test_a_hub_that_does_not_sign_lists_only_the_versions_files(tmp_path: Path) -> None:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", FolderStore(tmp_path / "blobs")) as plain:
        plain.publish_files("job:1", "demo/x", {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS})
        with TestClient(plain.app, headers=plain.bearer("read")) as client:
            listed = client.get("/api/models/demo/x").json()["siblings"]
            assert [one["rfilename"] for one in listed] == [CONFIG_FILE, WEIGHTS_FILE]
            missing = client.get(f"/demo/x/resolve/main/{SIGNATURE_FILE}")
            assert (missing.status_code, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")
