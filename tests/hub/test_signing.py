"""Signatures: every version is signed, in the OpenSSF's form, and whatever is changed is noticed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select
from starlette.testclient import TestClient

from hub import catalog
from hub.folder_store import FolderStore
from hub.provenance import publish_keys
from hub.signing import Signer, Succession
from infra.database import reading, writing
from tests.hub.serving import CONFIG, NOW, WEIGHTS, Hub, hub_app, listening, made_hub
from wegeft.client import Client
from wegeft.client.trust import TrustStore
from wegeft.client.verification import read_signature, verify_folder
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, digest_of
from wegeft.contracts.bundles import SIGNATURE_FILE, make_bundle, open_version_bundle
from wegeft.contracts.errors import InvalidSetting, NotFound, SignatureInvalid, UntrustedKey
from wegeft.contracts.signing_keys import KeySet, SigningKey, extend_trust, is_signature, key_id

SEED = bytes(range(32))
KEY = SigningKey(SEED)
TRUSTED = {key_id(KEY.pem("ed25519")): KEY.pem("ed25519")}
OTHER = SigningKey(b"\x07" * 32)
API = "/api/v1/adapters/demo/arithmetic"
OPENSSF = shutil.which("model_signing")


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'hub.db'}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Two versions that a hub has signed; no test changes them."""
    folder = tmp_path_factory.mktemp("signed")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs"), Signer(key=KEY)) as hub:
        hub.publish()
        hub.publish("job:2", weights=WEIGHTS + b"2")
        yield hub


@pytest.fixture(scope="module")
def url(hub: Hub) -> Iterator[str]:
    """Of an application that nobody else gets, for a test changes what it stands on."""
    with listening(hub_app(hub.services)) as url:
        yield url


@pytest.fixture
def client(hub: Hub, url: str, tmp_path: Path) -> Iterator[Client]:
    with Client(url, hub.tokens["write"], trust=TrustStore(tmp_path / "trusted.json")) as client:
        yield client


@pytest.fixture
def pulled(client: Client, tmp_path: Path) -> Path:
    client.download("demo/arithmetic@1", tmp_path / "pulled")
    return tmp_path / "pulled"


def refusal(folder: Path, trusted: dict[str, str] = TRUSTED, signature: bytes | str | None = None) -> str:
    with pytest.raises((SignatureInvalid, UntrustedKey)) as caught:
        verify_folder(folder, signature if signature is not None else read_signature(folder), trusted)
    return str(caught.value)


def test_a_pull_is_verified_and_can_be_verified_again_without_the_hub(pulled: Path) -> None:
    signed = verify_folder(pulled, read_signature(pulled), TRUSTED)
    assert signed.ref == "demo/arithmetic@1"
    assert signed.files == {CONFIG_FILE: digest_of(CONFIG), WEIGHTS_FILE: digest_of(WEIGHTS)}
    assert {path.name for path in pulled.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, SIGNATURE_FILE}


def test_a_snapshot_of_the_hugging_face_cache_is_verified(client: Client, pulled: Path, tmp_path: Path) -> None:
    """Its files are links to blobs, and its name is the version's commit."""
    version, signed = client.resolve_signed("demo/arithmetic@1")
    assert signed is not None
    repository = tmp_path / "models--demo--arithmetic"
    snapshot = repository / "snapshots" / version.manifest_digest[7:47]
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for entry in version.manifest.files:
        shutil.copy(pulled / entry.path, repository / "blobs" / entry.digest[7:])
        (snapshot / entry.path).symlink_to(Path("../../blobs") / entry.digest[7:])
    assert verify_folder(snapshot, read_signature(snapshot, pulled / SIGNATURE_FILE), TRUSTED) == signed
    for wrong in (f"models--demo--other/snapshots/{snapshot.name}", f"models--demo--arithmetic/snapshots/{'0' * 40}"):
        shutil.copytree(snapshot, tmp_path / wrong)
        assert "named for another version" in refusal(tmp_path / wrong, signature=(pulled / SIGNATURE_FILE).read_bytes())


def _corrupt(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[100] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)


def _swap(folder: Path) -> None:
    first, second = (folder / name for name in (CONFIG_FILE, WEIGHTS_FILE))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _add_below(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c.py").write_text("x")


HARMS: list[tuple[Callable[[Path], Any], list[str]]] = [
    (_corrupt, [f"{WEIGHTS_FILE}: the file is not the signed one"]),
    (_swap, [f"{WEIGHTS_FILE}: the file is not the signed one", f"{CONFIG_FILE}: the file is not the signed one"]),
    (lambda folder: (folder / CONFIG_FILE).unlink(), [f"{CONFIG_FILE}: the signed file is missing"]),
    (lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"), ["adapter_model.bin: the file is not signed"]),
    (
        lambda folder: (folder / "a" / "b").mkdir(parents=True) or (folder / "a/b/c.py").write_text("x"),
        ["a/b/c.py: the file is not signed"],
    ),
]


@pytest.mark.parametrize(("harm", "told"), HARMS)
def test_whatever_is_changed_in_a_folder_is_noticed(pulled: Path, harm: Callable[[Path], Any], told: list[str]) -> None:
    """A corrupted byte, swapped files, one removed, one added: every one is named."""
    harm(pulled)
    found = refusal(pulled)
    assert all(text in found for text in told), found


def test_a_signature_of_another_version_is_noticed(client: Client, pulled: Path) -> None:
    other = client.signature("demo/arithmetic@2")
    assert "the files are not those of demo/arithmetic@2" in refusal_title(pulled, other)


def refusal_title(folder: Path, signature: str) -> str:
    with pytest.raises(SignatureInvalid) as caught:
        verify_folder(folder, signature, TRUSTED)
    return caught.value.message


def test_a_signature_by_another_key_is_noticed(pulled: Path) -> None:
    assert "not trusted" in refusal(pulled, {"0" * 64: OTHER.pem("ed25519")})
    bundle = json.loads((pulled / SIGNATURE_FILE).read_text())
    forged = json.loads(make_bundle(payload_of(bundle), OTHER))
    assert "not trusted" in refusal(pulled, signature=json.dumps(forged))
    forged["verificationMaterial"] = bundle["verificationMaterial"]  # another's signature under the right key's name
    assert "does not hold" in refusal(pulled, signature=json.dumps(forged))


def payload_of(bundle: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return found


def test_a_changed_statement_is_noticed(pulled: Path) -> None:
    bundle = json.loads((pulled / SIGNATURE_FILE).read_text())
    statement = payload_of(bundle)
    statement["predicate"]["wegeft"]["version"] = 2
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    assert "does not hold" in refusal(pulled, signature=json.dumps(bundle))


def _contradict(statement: dict[str, Any]) -> dict[str, Any]:
    return {**statement, "subject": [{**statement["subject"][0], "digest": {"sha256": "0" * 64}}]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_contradict, "contradicts itself"),
        (lambda statement: {**statement, "subject": [{**statement["subject"][0], "name": "demo/arithmetic@7"}]}, "names two versions"),
        (lambda statement: {**statement, "predicateType": "https://other"}, "not a signature of files"),
        (lambda statement: {**statement, "predicate": {}}, "not one of ours"),
        (lambda statement: {"hello": 1}, "not one of in-toto"),
    ],
)
def test_a_statement_of_ours_must_make_sense(pulled: Path, change: Callable[[dict[str, Any]], dict[str, Any]], told: str) -> None:
    """Signed by the right key or not."""
    statement = payload_of(json.loads((pulled / SIGNATURE_FILE).read_text()))
    assert told in refusal(pulled, signature=make_bundle(change(statement), KEY))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "not json", "x" * 5_000_000, '{"mediaType": 1}', "{" * 5000])
def test_what_is_no_bundle_is_refused(pulled: Path, text: str) -> None:
    assert "bundle" in refusal(pulled, signature=text)


def test_without_a_signature_a_folder_cannot_be_verified(pulled: Path) -> None:
    (pulled / SIGNATURE_FILE).unlink()
    with pytest.raises(InvalidSetting):
        read_signature(pulled)


@pytest.mark.skipif(OPENSSF is None, reason="model-signing is installed beside, never among ours: put its program on the PATH")
def test_the_openssf_verifier_takes_our_bundle(client: Client, pulled: Path, tmp_path: Path) -> None:
    """Its keys are on P-256: it takes no Ed25519."""
    (tmp_path / "openssf.sig").write_text(client.signature("demo/arithmetic@1", "ecdsa-p256"))
    (tmp_path / "key.pem").write_text(KEY.pem("ecdsa-p256"))
    assert OPENSSF is not None
    command = [OPENSSF, "verify", "key", pulled, "--signature", tmp_path / "openssf.sig", "--public_key", tmp_path / "key.pem"]
    good = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert good.returncode == 0, good.stdout + good.stderr
    _corrupt(pulled)
    bad = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert bad.returncode != 0
    assert "mismatch" in bad.stdout + bad.stderr


def test_both_keys_sign_the_same_statement(client: Client) -> None:
    ours, theirs = (json.loads(client.signature("demo/arithmetic@1", kind)) for kind in ("ed25519", "ecdsa-p256"))
    assert payload_of(ours) == payload_of(theirs)
    trusted = {key_id(KEY.pem("ecdsa-p256")): KEY.pem("ecdsa-p256")}
    assert open_version_bundle(json.dumps(theirs), trusted).ref == "demo/arithmetic@1"
    assert not is_signature("no key", b"", b"")
    assert not is_signature(KEY.pem("ed25519"), b"x", b"short")


def test_the_keys_are_there_for_everybody(hub: Hub) -> None:
    with TestClient(hub.app) as anybody:
        keys = KeySet.model_validate(anybody.get("/.well-known/wegeft-keys.json").json()).keys
        assert {key.algorithm: key.pem for key in keys} == {name: KEY.pem(name) for name in ("ed25519", "ecdsa-p256")}
        assert anybody.get(f"{API}/versions/1/signature").status_code == 401
    with TestClient(hub.app, headers=hub.bearer("read")) as reader:
        assert reader.get(f"{API}/versions/9/signature").status_code == 404
        assert reader.get(f"{API}/versions/1/signature?kind=pgp").status_code == 422


# Trust


def test_keys_are_pinned_when_a_hub_is_first_met(hub: Hub, url: str, client: Client, tmp_path: Path) -> None:
    """Somebody in the middle who shows other keys later on is refused, and nothing is written."""
    client.resolve_signed("demo/arithmetic@1")
    store = TrustStore(tmp_path / "trusted.json")
    assert key_id(KEY.pem("ed25519")) in store.keys_of(url)
    store.pin(url, {key_id(OTHER.pem("ed25519")): OTHER.pem("ed25519")})
    with pytest.raises(UntrustedKey) as caught:
        client.download("demo/arithmetic@1", tmp_path / "folder")
    assert "--renew" in str(caught.value)
    assert not (tmp_path / "folder").exists()
    store.forget(url)
    client.download("demo/arithmetic@1", tmp_path / "folder")
    with pytest.raises(InvalidSetting):
        store.pin(url, {"0" * 64: OTHER.pem("ed25519")})
    (tmp_path / "trusted.json").write_text("{")
    with pytest.raises(InvalidSetting):
        store.keys_of(url)


def test_a_stripped_signature_is_noticed(hub: Hub, url: str, client: Client, tmp_path: Path) -> None:
    hub_of_before = hub.services.signer
    try:
        object.__setattr__(hub.services, "signer", None)
        with pytest.raises(SignatureInvalid):
            client.download("demo/arithmetic@1", tmp_path / "folder")
    finally:
        object.__setattr__(hub.services, "signer", hub_of_before)


def test_who_trusts_a_key_trusts_those_that_it_endorses() -> None:
    """And whom they endorse, but nobody else."""
    third = SigningKey(b"\x09" * 32)
    second = Signer(key=OTHER, succession=succession(KEY, OTHER))
    last = Signer(key=third, succession=succession(OTHER, third))
    stranger = Signer(key=SigningKey(b"\x0b" * 32))
    offered = KeySet(keys=(*last.public_keys(NOW), *stranger.public_keys(NOW), *second.public_keys(NOW)))
    ed25519 = {key_id(key.pem("ed25519")) for key in (KEY, OTHER, third)}
    found = extend_trust(TRUSTED, offered).keys()
    assert ed25519 <= found
    assert key_id(stranger.key.pem("ed25519")) not in found
    forged = [key.model_copy(update={"pem": third.pem("ed25519")}) for key in second.public_keys(NOW)]
    assert extend_trust(TRUSTED, KeySet(keys=tuple(forged))) == TRUSTED
    assert extend_trust(TRUSTED, KeySet(keys=(second.public_keys(NOW)[0].model_copy(update={"endorsement": "zz"}),))) == TRUSTED


def succession(old: SigningKey, new: SigningKey) -> Succession:
    endorsements = {name: old.endorse(new.pem(name)) for name in ("ed25519", "ecdsa-p256")}
    return Succession(predecessor=key_id(old.pem("ed25519")), endorsements=endorsements)


def test_a_key_takes_over_and_what_the_old_one_signed_stays_good(database: str, tmp_path: Path) -> None:
    signer = Signer(key=KEY)
    store = TrustStore(tmp_path / "trusted.json")
    with made_hub(database, FolderStore(tmp_path / "blobs"), signer) as hub, listening(hub.app) as address:
        hub.publish()
        with Client(address, hub.tokens["read"], trust=store) as client:
            client.resolve_signed("demo/arithmetic@1")
            new = Signer(key=OTHER, succession=succession(KEY, OTHER))
            publish_keys(hub.engine, new, NOW + timedelta(hours=1))
            object.__setattr__(hub.services, "signer", new)
            hub.publish("job:2", weights=b"others")
            found = [client.resolve_signed(f"demo/arithmetic@{number}")[1] for number in (1, 2)]
            assert [signed and signed.key for signed in found] == [key_id(key.pem("ed25519")) for key in (KEY, OTHER)]
            assert [key.retired_at is None for key in client.keys().keys] == [False, False, True, True]


# Versions of before, and attestations


def test_a_version_of_before_signing_is_signed_when_it_is_asked_for(database: str, tmp_path: Path) -> None:
    with made_hub(database, FolderStore(tmp_path / "blobs")) as hub, listening(hub_app(hub.services)) as address:
        hub.publish()
        with Client(address, hub.tokens["read"]) as client:
            assert client.resolve_signed("demo/arithmetic")[1] is None
            with pytest.raises(NotFound):
                client.signature("demo/arithmetic")
            client.download("demo/arithmetic", tmp_path / "unsigned")
            assert not (tmp_path / "unsigned" / SIGNATURE_FILE).exists()
            publish_keys(hub.engine, Signer(key=KEY), NOW)
            object.__setattr__(hub.services, "signer", Signer(key=KEY))
            first = client.signature("demo/arithmetic@1", "ecdsa-p256")
            assert client.signature("demo/arithmetic@1", "ecdsa-p256") == first
            assert client.resolve_signed("demo/arithmetic")[1] is not None


def test_a_version_is_signed_in_the_transaction_that_publishes_it(hub: Hub) -> None:
    with reading(hub.engine) as connection:
        kinds = connection.execute(select(catalog.SIGNATURES.c.kind, catalog.SIGNATURES.c.key_id)).all()
    assert {("ed25519", key_id(KEY.pem("ed25519"))), ("ecdsa-p256", key_id(KEY.pem("ecdsa-p256")))} <= set(map(tuple, kinds))


def test_an_attestation_of_another_version_is_noticed(hub: Hub, client: Client) -> None:
    other = client.signature("demo/arithmetic@2", "attestation")
    with writing(hub.engine) as connection:
        version_id = catalog.find_version_id(connection, AdapterName.parse("demo/arithmetic"), 1)
        is_it = (catalog.SIGNATURES.c.version_id == version_id) & (catalog.SIGNATURES.c.kind == "attestation")
        connection.execute(delete(catalog.SIGNATURES).where(is_it))
        catalog.add_signature(connection, version_id, "attestation", (other, key_id(KEY.pem("ed25519"))), NOW)
    with pytest.raises(SignatureInvalid, match="another version"):
        client.attestation("demo/arithmetic@1")
