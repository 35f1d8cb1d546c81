"""The service, for people and scripts: jobs, blobs and adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from wegeft.client import downloads
from wegeft.client.access import AccessCalls
from wegeft.client.blobs import Progress, upload
from wegeft.client.formats import FormatCalls
from wegeft.client.jobs import JobCalls
from wegeft.client.publishing import Push, push
from wegeft.client.transport import Answer, Call, Transport, json_body
from wegeft.client.trust import TrustStore, check_version, fetch_keys, trusted_keys
from wegeft.contracts.accounts import Identity
from wegeft.contracts.adapter import (
    AdapterFacets,
    AdapterName,
    AdapterPage,
    AdapterRef,
    AdapterView,
    AliasMove,
    VersionPage,
    VersionView,
    check_alias,
    digest_of,
)
from wegeft.contracts.aliases import AliasProtection
from wegeft.contracts.bundles import BundleKind, SignedVersion, key_of_bundle, open_training_bundle
from wegeft.contracts.card import CardEdit, CardView
from wegeft.contracts.collection import Collected, CollectionPlan
from wegeft.contracts.comparison import ComparisonView
from wegeft.contracts.engines import EngineReport
from wegeft.contracts.errors import DigestMismatch, SignatureInvalid, UnexpectedAnswer
from wegeft.contracts.provenance import EvaluationList, EvaluationReport, EvaluationView, LineageView
from wegeft.contracts.signing_keys import KeySet
from wegeft.contracts.training import BlobView

_JSON = {"Content-Type": "application/json"}


Wanted = str | int | Sequence[str] | None
"""A parameter of an address; several of one name come as a sequence."""


class _Health(BaseModel):
    model_config = ConfigDict(extra="allow")


class Client(AccessCalls, FormatCalls, JobCalls):
    """A WeGeFT service; safe to use from several threads, and a context manager that closes its connections.

    Calls that fail in a way that may pass are tried again for ``patience_seconds``; submitting is safe to repeat. ``trust`` pins the keys
    that versions must be signed with; by default those that the service shows first are trusted as long as the client lives.
    """

    def __init__(
        self, server: str, token: str, *, timeout_seconds: float = 30.0, patience_seconds: float = 5.0, trust: TrustStore | None = None
    ) -> None:
        self._transport = Transport(server, token, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)
        self._timeout_seconds = timeout_seconds
        self._trust = trust or TrustStore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    # Blobs

    def upload(self, source: Path | bytes, on_progress: Progress | None = None) -> BlobView:
        """Store a file or bytes unless they are there already; return their digest and size.

        ``on_progress`` is called with the bytes sent and the bytes in all. Raises :class:`InvalidData` where the file cannot be read.
        """
        return upload(self._transport, "/blobs", source, on_progress)

    # Adapters

    def adapters(self, *, limit: int = 50, after: str | None = None, **wanted: Wanted) -> AdapterPage:
        """Return adapters that a filter selects; ``wanted`` is what ``GET /adapters`` takes, as ``method``, ``tag`` or ``order``.

        Raises :class:`InvalidRequest` with everything that is wrong with it.
        """
        return self._get("/adapters", AdapterPage, {"limit": limit, "after": after, **wanted})

    def facets(self, **wanted: Wanted) -> AdapterFacets:
        """Return what the adapters that a filter selects are, counted; ``wanted`` as in :meth:`adapters`."""
        return self._get("/adapters/facets", AdapterFacets, wanted)

    def adapter(self, name: str) -> AdapterView:
        """Return an adapter by ``namespace/name``; raise :class:`AdapterNotFound`."""
        return self._get(f"/adapters/{AdapterName.parse(name)}", AdapterView)

    def versions(self, name: str) -> tuple[VersionView, ...]:
        """Return every version of an adapter, newest first."""
        found: list[VersionView] = []
        after: str | None = None
        while True:
            page = self._get(f"/adapters/{AdapterName.parse(name)}/versions", VersionPage, {"limit": 100, "after": after})
            found += page.versions
            if page.next_cursor is None or page.next_cursor == after:
                return tuple(found)
            after = page.next_cursor

    def resolve(self, ref: str) -> VersionView:
        """Return the version that ``ns/name``, ``ns/name@3`` or ``ns/name@alias`` names now."""
        parsed = AdapterRef.parse(ref)
        return self._get(f"/adapters/{parsed.adapter}/versions/{parsed.selector}", VersionView)

    def download(self, ref: str, folder: Path, *, overwrite: bool = False) -> VersionView:
        """Write a version to ``folder`` as PEFT and others load it; return which version it was.

        The hub's signature and every file are verified, and the folder is whole or not there. Raises :class:`InvalidSetting` where there
        is something already, :class:`SignatureInvalid`, :class:`UntrustedKey`, :class:`DigestMismatch`, and :class:`StorageFull`.
        """
        parsed = AdapterRef.parse(ref)
        pulled = downloads.begin(self._transport, _version_path(ref))
        _check_answer(pulled.version, parsed)
        check_version(self._transport, self._trust, pulled.version, pulled.view.keys)
        downloads.download(self._transport, pulled, folder, overwrite=overwrite)
        return pulled.version

    def push(
        self, folder: Path, name: str, *, message: str = "Upload adapter", parent: str | None = None, on_progress: Progress | None = None
    ) -> VersionView:
        """Publish a folder that PEFT wrote as the next version of an adapter; the same push again returns the version that is there.

        ``parent`` is the commit that must be the newest version's. Raises :class:`InvalidData` where the folder is no adapter,
        :class:`InvalidInput` with everything that the hub's gate refuses, and :class:`StaleParent`.
        """
        adapter = AdapterName.parse(name)
        made = push(self._transport, Push(folder=folder, adapter=adapter, message=message, parent=parent), on_progress)
        if made.version.adapter.lower() != str(adapter).lower() or not _has_commit(made.version, made.commitOid):
            raise UnexpectedAnswer("the server answers with a commit that it does not have", path=name, value=made.commitOid)
        return made.version

    def resolve_signed(self, ref: str) -> tuple[VersionView, SignedVersion | None]:
        """Return the version that a reference names now, and what its signature says, once it holds; None where the hub never signs.

        Raises :class:`SignatureInvalid` and :class:`UntrustedKey`.
        """
        version = self.resolve(ref)
        _check_answer(version, AdapterRef.parse(ref))
        return version, check_version(self._transport, self._trust, version)

    def delete_alias(self, name: str, alias: str) -> None:
        """Forget an alias; the version that it pointed to stays. Raises :class:`AliasNotFound`."""
        path = f"/adapters/{AdapterName.parse(name)}/aliases/{check_alias(alias)}"
        self._transport.tell(Call(method="DELETE", path=path))

    def set_alias(self, name: str, alias: str, version: int, *, expected: int | None = None) -> AdapterView:
        """Let an alias point to a version, by compare-and-set; return the adapter.

        ``expected`` is where it must point now: a number, 0 for nowhere yet, None for anywhere. Raises :class:`AliasMoved`.
        """
        path = f"/adapters/{AdapterName.parse(name)}/aliases/{check_alias(alias)}"
        move = AliasMove(version=version, expected=expected)
        return self._transport.ask(Call(method="PUT", path=path, headers=_JSON, content=json_body(move)), AdapterView)

    def protect_alias(self, name: str, alias: str, *, is_protected: bool) -> AdapterView:
        """Let only admins move and delete an alias, or everybody who may publish; return the adapter. Raises :class:`AliasNotFound`."""
        path = f"/adapters/{AdapterName.parse(name)}/aliases/{check_alias(alias)}/protection"
        body = json_body(AliasProtection(is_protected=is_protected))
        return self._transport.ask(Call(method="PUT", path=path, headers=_JSON, content=body), AdapterView)

    # What is known about versions

    def signature(self, ref: str, kind: BundleKind = "ed25519") -> str:
        """Return a signed bundle of a version, unchecked: its signature for us or for OpenSSF's verifier, or how it was trained."""
        call = Call(method="GET", path=f"{_version_path(ref)}/signature", params={"kind": kind})

        def once() -> str:
            with self._transport.open(call) as response:
                return self._transport.read(response).decode(errors="replace")

        return self._transport.retry(once)

    def attestation(self, ref: str) -> dict[str, Any]:
        """Return how a version was trained, a predicate of SLSA provenance, once its signature holds; raise as a download does."""
        version, _ = self.resolve_signed(ref)
        bundle = self.signature(version.ref, "attestation")
        claim, predicate = open_training_bundle(bundle, trusted_keys(self._transport, self._trust, key_of_bundle(bundle)))
        if (claim.adapter, claim.version, claim.manifest) != (version.adapter, version.version, version.manifest_digest):
            raise SignatureInvalid("the attestation is of another version", path=version.ref, value=f"{claim.adapter}@{claim.version}")
        return predicate

    def lineage(self, ref: str) -> LineageView:
        """Return where a version comes from, and what came of it."""
        return self._get(f"{_version_path(ref)}/lineage", LineageView)

    def compare(self, first: str, second: str) -> ComparisonView:
        """Return how the second version differs from the first."""
        return self._get(f"{_version_path(first)}/diff", ComparisonView, {"other": str(AdapterRef.parse(second))})

    def evaluations(self, ref: str) -> EvaluationList:
        """Return what was measured of a version."""
        return self._get(f"{_version_path(ref)}/evaluations", EvaluationList)

    def report_evaluation(self, ref: str, report: EvaluationReport) -> EvaluationView:
        """Report what was measured of a version; again on the same data, the new value stands."""
        call = Call(method="POST", path=f"{_version_path(ref)}/evaluations", headers=_JSON, content=json_body(report))
        return self._transport.ask(call, EvaluationView)

    def card(self, name: str) -> CardView:
        """Return an adapter's card."""
        return self._get(f"/adapters/{AdapterName.parse(name)}/card", CardView)

    def edit_card(self, name: str, edit: CardEdit) -> CardView:
        """Replace an adapter's card; raise :class:`InvalidInput` with all that is wrong with it, :class:`Conflict` where it has changed."""
        call = Call(method="PUT", path=f"/adapters/{AdapterName.parse(name)}/card", headers=_JSON, content=json_body(edit))
        return self._transport.ask(call, CardView)

    def reset_card(self, name: str) -> None:
        """Forget an adapter's edited card, so that the latest version's own is shown."""
        self._transport.tell(Call(method="DELETE", path=f"/adapters/{AdapterName.parse(name)}/card"))

    def loads_on(self, ref: str) -> EngineReport:
        """Return which engines load a version, and how."""
        return self._get(f"{_version_path(ref)}/engines", EngineReport)

    def trusted_keys(self, wanted: str | None = None) -> dict[str, str]:
        """Return the keys that are trusted for the service, PEM by id; where it is met for the first time, those that it shows.

        ``wanted``: a key that may have taken over from one of them.
        """
        return trusted_keys(self._transport, self._trust, wanted)

    @property
    def server(self) -> str:
        """URL of the service."""
        return self._transport.server

    def keys(self) -> KeySet:
        """Return the public keys that the service shows, trusted or not."""
        return fetch_keys(self._transport)

    # The service itself

    def health(self) -> dict[str, Any]:
        """Return what ``/healthz`` says: that the process answers, and its version."""
        return self._transport.ask(Call(method="GET", path="//healthz"), _Health).model_dump()

    def whoami(self) -> Identity:
        """Return who the token belongs to; raise :class:`Unauthenticated`."""
        return self._get("/whoami", Identity)

    # What is stored, for an administrator

    def plan_collection(self) -> CollectionPlan:
        """Return what is stored, and what nobody needs of it."""
        return self._get("/collection", CollectionPlan)

    def collect(self, *, formats: Literal["unused", "all"] = "unused") -> Collected:
        """Delete some of what nobody needs, first derived formats unused for long, or all; call it again until it is done."""
        return self._transport.ask(Call(method="POST", path="/collection", params={"formats": formats}), Collected)

    def _get(self, path: str, answer: type[Answer], params: Mapping[str, Wanted] | None = None) -> Answer:
        given = {key: value for key, value in (params or {}).items() if value is not None}
        return self._transport.ask(Call(method="GET", path=path, params=given), answer)


def _version_path(ref: str) -> str:
    parsed = AdapterRef.parse(ref)
    return f"/adapters/{parsed.adapter}/versions/{parsed.selector}"


def _has_commit(version: VersionView, commit: str) -> bool:
    return version.manifest_digest.removeprefix("sha256:").startswith(commit)


def _check_answer(version: VersionView, wanted: AdapterRef) -> None:
    if version.adapter.lower() != str(wanted.adapter).lower() or (wanted.number or version.version) != version.version:
        raise UnexpectedAnswer("the server answers with another version", path=str(wanted), value=version.ref)
    if digest_of(version.manifest.to_bytes()) != version.manifest_digest:
        raise DigestMismatch("the manifest does not match its digest", path=version.ref)
