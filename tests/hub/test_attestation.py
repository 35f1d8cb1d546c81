"""Attestations: how a version was trained, told from its own files."""

from __future__ import annotations

import json
from pathlib import Path

from hub.folder_store import FolderStore
from hub.signing import Signer
from tests.hub.serving import CONFIG, WEIGHTS, listening, made_hub
from tests.hub.test_signing import KEY, TRUSTED
from wegeft.client import Client
from wegeft.contracts.adapter import CONFIG_FILE, JOB_FILE, METRICS_FILE, WEIGHTS_FILE, FileEntry, digest_of
from wegeft.contracts.bundles import claim_of, make_bundle, open_training_bundle, open_version_bundle, signature_statement
from wegeft.contracts.signing_keys import key_id


def test_how_a_version_was_trained_is_attested(tmp_path: Path) -> None:
    job = {"datasets": [{"path": f"sha256:{1:064x}"}], "test_datasets": [{"path": f"sha256:{2:064x}"}, {"path": 7}, None]}
    figures = {"base_model_config": f"sha256:{3:064x}", "code": {"wegeft-hub": "1", "torch": "2"}, "round": {"round": 2}}
    files = {CONFIG_FILE: CONFIG, WEIGHTS_FILE: WEIGHTS, JOB_FILE: json.dumps(job).encode(), METRICS_FILE: json.dumps(figures).encode()}
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", FolderStore(tmp_path / "blobs"), Signer(key=KEY)) as hub, listening(hub.app) as url:
        hub.publish_files("round:7:1", "demo/arithmetic", files)
        hub.publish_files("round:7:2", "demo/arithmetic", files)
        hub.publish_files("upload:x", "demo/other", files)
        with Client(url, hub.tokens["read"]) as client:
            build = client.attestation("demo/arithmetic@2")["buildDefinition"]
            run = client.attestation("demo/arithmetic@2")["runDetails"]
            upload = client.attestation("demo/other@1")
            first = client.resolve("demo/arithmetic@1")
            claim, _ = open_training_bundle(client.signature("demo/arithmetic@2", "attestation"), TRUSTED)
    assert claim.version == 2
    digests = {one["name"]: one.get("digest", {}).get("sha256") for one in build["resolvedDependencies"]}
    assert digests == {
        "base_model": f"{3:064x}",
        "datasets": f"{1:064x}",
        "test_datasets": f"{2:064x}",
        "next_round": first.manifest_digest[7:],
    }
    assert build["externalParameters"]["job"]["sha256"] == digest_of(files[JOB_FILE])[7:]
    assert [one["ref"] for one in build["internalParameters"]["rounds"]] == ["demo/arithmetic@1"]
    assert run["builder"] == {"id": f"urn:wegeft:hub:{key_id(KEY.pem('ed25519'))}", "version": {"wegeft-hub": "1", "torch": "2"}}
    assert [one["name"] for one in run["byproducts"]] == ["round_record"]
    assert [one["name"] for one in upload["buildDefinition"]["resolvedDependencies"]] == ["base_model"]  # it may claim anything
    assert "digest" not in upload["buildDefinition"]["resolvedDependencies"][0]


def test_a_statement_lists_files_by_name() -> None:
    claim = claim_of("a/b", 1, f"sha256:{5:064x}")
    files = tuple(FileEntry(path=name, digest=f"sha256:{number:064x}", size=1) for number, name in enumerate("cab"))
    statement = signature_statement(claim, files)
    assert [one["name"] for one in statement["predicate"]["resources"]] == ["a", "b", "c"]
    assert open_version_bundle(make_bundle(statement, KEY), TRUSTED).files == {entry.path: entry.digest for entry in files}
