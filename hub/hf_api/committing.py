"""A commit becomes a version: it passes the same gate as every other publication, and one of two on the same parent wins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hub import catalog
from hub.catalog import Repository
from hub.description import describe
from hub.hf_api.commit_lines import Content
from hub.hf_api.commit_request import CommitReader, CommitRequest
from hub.hf_api.revisions import find_version, resolve
from hub.hf_views import EMPTY_COMMIT, MAIN, commit_of
from hub.intake import check_kept
from hub.objects import HELD_BYTES, Readable, read_verified
from hub.publication import Publication
from hub.services import HubServices
from hub.strict_json import parse_object
from hub.validate import MAX_TEXT_BYTES, AdapterFacts, check_version
from infra.auth import Principal
from infra.database import reading, writing
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, FileEntry, VersionView
from wegeft.contracts.errors import Broken, Conflict, InvalidInput, NotFound, StaleParent, TooLarge

_TRIES = 8
"""How often a commit without a parent is put on top of what others published meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Committer:
    """Commits what one caller sends to one adapter."""

    services: HubServices
    adapter: AdapterName
    caller: Principal

    def read(self, source: Readable, key: str | None = None) -> CommitRequest:
        """Return the commit that a body describes, and store its files; ``key`` is what the sender calls this very request.

        Raises what :meth:`CommitReader.read` does, and :class:`QuotaExceeded` where the namespace is full: before anything is read where
        there is no ``key``, else once it is known that the request is not one whose answer was lost.
        """
        if key is None:
            with reading(self.services.engine) as connection:
                catalog.check_room(connection, self.adapter)
        reader = CommitReader(store=self._store, find=self._find, max_file_bytes=self.services.max_blob_bytes)
        return replace(reader.read(source), key=key)

    def _store(self, content: Content) -> FileEntry:
        intake, digest = self.services.intake, content.digest
        if self._is_there(content):
            return FileEntry(path="", digest=digest, size=content.size)
        sender = self.services.sender(self.caller, self.adapter.namespace)
        intake.store_bytes(digest, content.open(), content.size, sender)
        with writing(self.services.engine) as connection:
            is_kept = intake.own_staged(connection, digest, content.size, sender)
        check_kept(digest, is_kept=is_kept)
        return FileEntry(path="", digest=digest, size=content.size)

    def _is_there(self, content: Content) -> bool:
        """Whether the caller has sent these bytes lately and they are whole still; asked of short ones, most of which come again."""
        if content.size > HELD_BYTES:
            return False
        with reading(self.services.engine) as connection:
            is_kept = catalog.is_kept(connection, self._holder, content.digest, self.services.intake.renewed_before)
        try:
            return is_kept and len(read_verified(self.services.store, content.digest, content.size)) == content.size
        except (Broken, NotFound, TooLarge):
            return False

    def _find(self, digest: str) -> FileEntry | None:
        with reading(self.services.engine) as connection:
            may_know = digest in catalog.find_had(connection, self._holder, [digest], self.caller)
        size = self.services.store.has(digest) if may_know else None
        return None if size is None else FileEntry(path="", digest=digest, size=size)

    @property
    def _holder(self) -> str:
        return catalog.upload_of(self.caller.token_id)

    def commit(self, request: CommitRequest) -> VersionView:
        """Publish the next version and return it, the one that is there already where nothing changes or the request is repeated.

        Raises :class:`StaleParent` where the parent is not the newest version, :class:`InvalidInput` where the gate refuses, and
        :class:`Conflict` where others publish faster than we can check.
        """
        for _ in range(_TRIES):
            head = resolve(self.services, self.adapter, MAIN)
            if made := self._made_before(request, head):
                return made
            _check_parent(request, head)
            files = request.apply(_files_of(head))
            if isinstance(head, VersionView) and files == head.manifest.files:
                return head
            if made := self._publish(request, head, self._publication(request, head, files)):
                return made
        raise Conflict("others publish to this adapter all the time", path=str(self.adapter), hint="try again")

    def _made_before(self, request: CommitRequest, head: VersionView | Repository) -> VersionView | None:
        """Return what this very request has made, whose answer was lost: on its parent, by its key, or just now."""
        source, parent = f"commit:{self._fingerprint(request)}:", request.header.parentCommit
        if parent is None and request.key is None:
            return head if isinstance(head, VersionView) and head.source.startswith(source) else None
        with reading(self.services.engine) as connection:
            number = catalog.find_made(connection, self.adapter, source + (parent or ""))
            return None if number is None else find_version(connection, self.adapter, str(number))

    def _fingerprint(self, request: CommitRequest) -> str:
        return request.fingerprint(str(self.adapter).lower(), self.caller.token_id)

    def _publication(self, request: CommitRequest, head: VersionView | Repository, files: tuple[FileEntry, ...]) -> Publication:
        facts = check_version(self.services.store, files)
        parent = head if isinstance(head, VersionView) else None
        return Publication(
            adapter=self.adapter,
            files=files,
            source=f"commit:{self._fingerprint(request)}:{_commit_of(head)}",
            base_model=parent.base_model if parent and _are_same(parent, files, [CONFIG_FILE]) else self._base_model(facts, files),
            method=facts.method,
            rank=facts.rank,
            created_by=self.caller.name,
            description=describe(self.services.store, files),
            edited=parent.source if parent else None,
            metrics=parent.metrics if parent and _are_same(parent, files, [CONFIG_FILE, WEIGHTS_FILE]) else {},
        )

    def _base_model(self, facts: AdapterFacts, files: tuple[FileEntry, ...]) -> str:
        """Return the base model as it is published, with the revision that the configuration pins, if any."""
        if facts.base_model is None:
            path = f"{CONFIG_FILE}: base_model_name_or_path"
            raise InvalidInput("the base model is not named", path=path, hint="the id of the model that the adapter belongs to")
        entry = next(entry for entry in files if entry.path == CONFIG_FILE)
        revision = parse_object(read_verified(self.services.store, entry.digest, MAX_TEXT_BYTES[CONFIG_FILE])).get("revision")
        return f"{facts.base_model}@{revision}" if revision else facts.base_model

    def _publish(self, request: CommitRequest, head: VersionView | Repository, publication: Publication) -> VersionView | None:
        """Publish on top of ``head``; return None where there is a newer version meanwhile."""
        number = head.version if isinstance(head, VersionView) else 0
        with writing(self.services.engine) as connection:
            if catalog.lock_latest(connection, self.adapter) != number:
                return None
            if not number:
                catalog.find_repository(connection, self.adapter)  # nobody must publish to what was deleted just now
            published = catalog.publish(connection, publication, self.services.clock(), self.services.signer)
            header = request.header
            catalog.add_message(connection, self.adapter, published.version, header.summary, header.description)
            return find_version(connection, self.adapter, str(published.version))


def _check_parent(request: CommitRequest, head: VersionView | Repository) -> None:
    parent, newest = request.header.parentCommit, _commit_of(head)
    if parent is not None and not newest.startswith(parent):
        raise StaleParent(path="parentCommit", value=parent, hint=f"the newest is {newest}")


def _commit_of(head: VersionView | Repository) -> str:
    return commit_of(head) if isinstance(head, VersionView) else EMPTY_COMMIT


def _files_of(head: VersionView | Repository) -> tuple[FileEntry, ...]:
    return head.manifest.files if isinstance(head, VersionView) else ()


def _are_same(parent: VersionView, files: Iterable[FileEntry], paths: Iterable[str]) -> bool:
    """Whether these files are what they were in the parent."""
    before, after = ({entry.path: entry.digest for entry in entries} for entries in (parent.manifest.files, files))
    return all(before.get(path) == after.get(path) for path in paths)
