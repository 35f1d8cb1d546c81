"""Signed statements about a version: the OpenSSF model-signing format, and how a version was trained.

A statement (in-toto, version 1) names the version and the sha256 of each of its files. It is signed in a DSSE envelope inside a Sigstore
bundle, as OpenSSF model signing 1.0 has it, so that its own verifier reads it. What is ours stands in ``predicate.wegeft``, which others
ignore: adapter, number and manifest digest, so that a signature of one version never passes for another's. A derived format is signed in
the same form, under a name of its own, so that it never passes for its version either.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wegeft.contracts.adapter import Digest, FileEntry, Manifest
from wegeft.contracts.errors import SignatureInvalid, UntrustedKey, WegeftError
from wegeft.contracts.formats import DerivedFormat, StoredDtype
from wegeft.contracts.signing_keys import Algorithm, SigningKey, is_signature, key_id

SIGNATURE_FILE = "model.sig"
"""Where a bundle lies beside the files that it signs."""
ATTESTATION_FILE = "attestation.sigstore.json"
"""Where the attestation of a version's training lies beside them."""
IGNORED_NAMES = (SIGNATURE_FILE, ATTESTATION_FILE, ".git", ".gitattributes", ".github", ".gitignore", ".cache")
"""What may lie beside a version's files without being signed."""
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://model_signing/signature/v1.0"
TRAINING_TYPE = "https://slsa.dev/provenance/v1"
MAX_BUNDLE_BYTES = 4 << 20

BundleKind = Literal["ed25519", "ecdsa-p256", "attestation"]
"""The signature that our clients check, the same for the OpenSSF's verifier, and how the version was trained."""

_PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _KeyHint(_Part):
    hint: str


class _Material(_Part):
    publicKey: _KeyHint  # noqa: N815 - Sigstore's spelling


class _EnvelopeSignature(_Part):
    sig: str


class _Envelope(_Part):
    payload: str
    payloadType: str  # noqa: N815 - DSSE's spelling
    signatures: tuple[_EnvelopeSignature, ...] = Field(min_length=1, max_length=1)


class _Bundle(_Part):
    mediaType: str  # noqa: N815 - Sigstore's spelling
    verificationMaterial: _Material  # noqa: N815 - Sigstore's spelling
    dsseEnvelope: _Envelope  # noqa: N815 - Sigstore's spelling


class _Subject(_Part):
    name: str
    digest: dict[str, str]


class _Resource(_Part):
    name: str
    algorithm: Literal["sha256"]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class VersionClaim(_Part):
    """Which version a signature is of."""

    adapter: str
    version: int
    manifest: Digest


class FormatClaim(VersionClaim):
    """Which derived format of a version a signature is of, and what was told where it was made."""

    format: DerivedFormat
    dtype: StoredDtype
    base_model: str
    largest_error: float
    made_by: str


class _SignaturePredicate(_Part):
    resources: tuple[_Resource, ...] = Field(max_length=1000)
    wegeft: VersionClaim


class _FormatPredicate(_SignaturePredicate):
    wegeft: FormatClaim


class _Statement(_Part):
    subject: tuple[_Subject, ...] = Field(min_length=1, max_length=1)
    predicateType: str  # noqa: N815 - in-toto's spelling
    predicate: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SignedVersion:
    """What a good signature says."""

    claim: VersionClaim
    files: Mapping[str, str]
    """``sha256:…`` by path."""
    key: str
    """Id of the key."""

    @property
    def ref(self) -> str:
        """``namespace/name@version``."""
        return f"{self.claim.adapter}@{self.claim.version}"

    @property
    def subject(self) -> str:
        """What the statement calls it."""
        return self.ref


@dataclass(frozen=True, kw_only=True)
class SignedFormat(SignedVersion):
    """What a good signature of a derived format says."""

    claim: FormatClaim

    @property
    def subject(self) -> str:
        """``namespace/name@version/format/dtype``, which is no version's name."""
        return f"{self.ref}/{self.claim.format}/{self.claim.dtype}"


def format_statement(claim: FormatClaim, files: tuple[FileEntry, ...]) -> dict[str, Any]:
    """Return the statement that the files of a version's derived format are these."""
    return _files_statement(SignedFormat(claim=claim, files={entry.path: entry.digest for entry in files}, key=""))


def signature_statement(claim: VersionClaim, files: tuple[FileEntry, ...]) -> dict[str, Any]:
    """Return the statement that a version's files are these."""
    return _files_statement(SignedVersion(claim=claim, files={entry.path: entry.digest for entry in files}, key=""))


def _files_statement(meant: SignedVersion) -> dict[str, Any]:
    resources = [{"name": path, "algorithm": "sha256", "digest": _hex(digest)} for path, digest in sorted(meant.files.items())]
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": True, "ignore_paths": list(IGNORED_NAMES)}
    predicate = {"serialization": serialization, "resources": resources, "wegeft": meant.claim.model_dump()}
    return _statement(meant, SIGNATURE_TYPE, predicate)


def training_statement(claim: VersionClaim, files: tuple[FileEntry, ...], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statement of how a version came about; ``predicate`` is one of SLSA provenance 1."""
    meant = SignedVersion(claim=claim, files={entry.path: entry.digest for entry in files}, key="")
    return _statement(meant, TRAINING_TYPE, dict(predicate) | {"wegeft": claim.model_dump()})


def _statement(meant: SignedVersion, kind: str, predicate: dict[str, Any]) -> dict[str, Any]:
    subject = {"name": meant.subject, "digest": {"sha256": _root_of(meant.files)}}
    return {"_type": STATEMENT_TYPE, "subject": [subject], "predicateType": kind, "predicate": predicate}


def claim_of(adapter: str, version: int, manifest_digest: str) -> VersionClaim:
    """Return which version is meant."""
    return VersionClaim(adapter=adapter, version=version, manifest=manifest_digest)


def make_bundle(statement: Mapping[str, Any], key: SigningKey, algorithm: Algorithm = "ed25519") -> str:
    """Return the bundle of a statement, signed; JSON text."""
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    signature = key.sign(algorithm, _pre_authentication(payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": key_id(key.pem(algorithm))}, "tlogEntries": []}
    return json.dumps({"mediaType": BUNDLE_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}, separators=(",", ":"))


def _pre_authentication(payload: bytes) -> bytes:
    """DSSE 1.0, protocol.md: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def key_of_bundle(text: str | bytes) -> str:
    """Return the id of the key that a bundle says it is signed by; raise :class:`SignatureInvalid` where it is no bundle."""
    return _read_bundle(text).verificationMaterial.publicKey.hint


def ignored_names(text: str | bytes) -> frozenset[str]:
    """Return the names that a version's signature says may lie beside its files; raise :class:`SignatureInvalid` where it is no bundle.

    The signature itself is not checked.
    """
    try:
        predicate = json.loads(base64.b64decode(_read_bundle(text).dsseEnvelope.payload, validate=True))["predicate"]
        return frozenset(map(str, predicate["serialization"]["ignore_paths"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureInvalid("the signed statement is not one of ours", path="payload") from error


def open_version_bundle(text: str | bytes, trusted: Mapping[str, str]) -> SignedVersion:
    """Return what a version's signature says; ``trusted`` are PEM keys by id.

    Raises :class:`UntrustedKey` where the key is none of them, and :class:`SignatureInvalid` where the signature does not hold or does not
    say what a version's signature says.
    """
    signed = open_files_bundle(text, trusted)
    if isinstance(signed, SignedFormat):
        raise SignatureInvalid("the signature is of a derived format, and not of the version", path="subject", value=signed.subject)
    return signed


def open_format_bundle(text: str | bytes, trusted: Mapping[str, str]) -> SignedFormat:
    """Return what the signature of a derived format says; raise as :func:`open_version_bundle` does."""
    signed = open_files_bundle(text, trusted)
    if not isinstance(signed, SignedFormat):
        raise SignatureInvalid("the signature is of the version, and not of a derived format", path="subject", value=signed.subject)
    return signed


def open_files_bundle(text: str | bytes, trusted: Mapping[str, str]) -> SignedVersion | SignedFormat:
    """Return what a signature of files says, whether they are a version's own or a derived format's; raise as those above do."""
    statement, key = _open(text, trusted)
    if statement.predicateType != SIGNATURE_TYPE:
        raise SignatureInvalid("the bundle is not a signature of files", path="predicateType", value=statement.predicateType)
    claim = statement.predicate.get("wegeft")
    kind = _FormatPredicate if isinstance(claim, dict) and "format" in claim else _SignaturePredicate
    try:
        predicate = kind.model_validate(statement.predicate)
    except ValidationError as error:
        raise SignatureInvalid("the signed statement is not one of ours", path="predicate") from error
    files = {resource.name: f"{resource.algorithm}:{resource.digest}" for resource in predicate.resources}
    if len(files) != len(predicate.resources) or statement.subject[0].digest.get("sha256") != _root_of(files):
        raise SignatureInvalid("the signed statement contradicts itself", path="subject")
    told = predicate.wegeft
    if isinstance(told, FormatClaim):
        signed: SignedVersion = SignedFormat(claim=told, files=files, key=key)
    else:
        signed = SignedVersion(claim=told, files=files, key=key)
    if statement.subject[0].name != signed.subject:
        raise SignatureInvalid("the signed statement names two versions", path="subject", value=statement.subject[0].name)
    return signed


def open_training_bundle(text: str | bytes, trusted: Mapping[str, str]) -> tuple[VersionClaim, dict[str, Any]]:
    """Return which version an attestation is of, and its SLSA predicate; raise as :func:`open_version_bundle` does."""
    statement, _ = _open(text, trusted)
    if statement.predicateType != TRAINING_TYPE:
        raise SignatureInvalid("the bundle is not an attestation of training", path="predicateType", value=statement.predicateType)
    try:
        claim = VersionClaim.model_validate(statement.predicate.get("wegeft"))
    except ValidationError as error:
        raise SignatureInvalid("the signed statement is not one of ours", path="predicate") from error
    return claim, {name: value for name, value in statement.predicate.items() if name != "wegeft"}


def _open(text: str | bytes, trusted: Mapping[str, str]) -> tuple[_Statement, str]:
    bundle = _read_bundle(text)
    key = bundle.verificationMaterial.publicKey.hint
    if key not in trusted:
        raise UntrustedKey(path="key", value=key, hint="wgctl adapters trust shows and changes what is trusted")
    try:
        payload = base64.b64decode(bundle.dsseEnvelope.payload, validate=True)
        signature = base64.b64decode(bundle.dsseEnvelope.signatures[0].sig, validate=True)
    except binascii.Error as error:
        raise SignatureInvalid("the signature is not base64", path="dsseEnvelope") from error
    if bundle.mediaType != BUNDLE_TYPE or bundle.dsseEnvelope.payloadType != _PAYLOAD_TYPE:
        raise SignatureInvalid("the bundle is of another format", path="mediaType", value=bundle.mediaType)
    if not is_signature(trusted[key], _pre_authentication(payload), signature):
        raise SignatureInvalid(path="signature", value=key)
    try:
        return _Statement.model_validate_json(payload), key
    except ValidationError as error:
        raise SignatureInvalid("the signed statement is not one of in-toto", path="payload") from error


def _read_bundle(text: str | bytes) -> _Bundle:
    if len(text) > MAX_BUNDLE_BYTES:
        raise SignatureInvalid("the bundle is too long", path="bundle", hint=f"at most {MAX_BUNDLE_BYTES} bytes")
    try:
        return _Bundle.model_validate_json(text)
    except ValidationError as error:
        raise SignatureInvalid("not a signature bundle", path="bundle", hint="a Sigstore bundle, version 0.3, of one signature") from error


def check_signed(signed: SignedVersion, version: str, manifest: Manifest, manifest_digest: str) -> None:
    """Raise :class:`SignatureInvalid` unless the signature is of this version, ``ns/name@3``, with this manifest."""
    found: WegeftError | None = None
    if signed.ref.lower() != version.lower():
        found = SignatureInvalid("the signature is of another version", path=version, value=signed.ref)
    elif signed.claim.manifest != manifest_digest or dict(signed.files) != {entry.path: entry.digest for entry in manifest.files}:
        found = SignatureInvalid("the signature is of other files", path=version, value=signed.claim.manifest)
    if found is not None:
        raise found


def _root_of(files: Mapping[str, str]) -> str:
    digests = b"".join(bytes.fromhex(_hex(digest)) for _, digest in sorted(files.items()))
    return hashlib.sha256(digests).hexdigest()


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
