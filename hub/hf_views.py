"""Adapters and versions in the shapes that Hugging Face's clients read.

Source: the answers that huggingface_hub 2.4 parses (``hf_api.py``: ``ModelInfo``, ``RepoFile``, ``GitRefs``). Only fields that we
know are given; ``xetHash`` never is, because it would send clients to a content store that we do not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hub.catalog import Commit, Repository
from wegeft.contracts.adapter import LATEST, AdapterView, FileEntry, VersionView

MAIN = "main"
"""The branch that follows the newest version."""
EMPTY_COMMIT = "0" * 40
"""What names an adapter that has no version yet: git's word for no commit."""

_POINTER = "version https://git-lfs.github.com/spec/v1\noid {digest}\nsize {size}\n"

View = dict[str, Any]


def commit_of(version: VersionView) -> str:
    """Return the 40 hex digits that name a version for ever."""
    return commit_of_digest(version.manifest_digest)


def commit_of_digest(manifest_digest: str) -> str:
    """Return the 40 hex digits that a manifest's digest begins with."""
    return manifest_digest.removeprefix("sha256:")[:40]


def hex_of(entry: FileEntry) -> str:
    """Return the file's sha256 in hex."""
    return entry.digest.removeprefix("sha256:")


def tags_of(view: AdapterView | VersionView) -> list[str]:
    """Return the tags that follow from what an adapter is."""
    base = view.base_model.partition("@")[0]
    rank = [f"rank:{view.rank}"] if view.rank else []
    return ["peft", view.method, *rank, f"base_model:{base}", f"base_model:adapter:{base}"]


def listed_model(adapter: AdapterView) -> View:
    """Return an adapter as a list shows it."""
    return _model(adapter) | {"createdAt": _moment(adapter.created_at), "lastModified": _moment(adapter.updated_at)}


def model_info(version: VersionView, beside: Sequence[FileEntry] = (), *, with_blobs: bool) -> View:
    """Return what a client asks for first: the version's commit and its files, with those that lie ``beside`` them."""
    shown = _model(version) | {"createdAt": _moment(version.created_at), "lastModified": _moment(version.created_at)}
    siblings = [{"rfilename": entry.path} | (_blob(entry) if with_blobs else {}) for entry in (*version.manifest.files, *beside)]
    config = {"peft": {"base_model_name_or_path": version.base_model}}
    return shown | {"sha": commit_of(version), "siblings": siblings, "config": config, "usedStorage": version.size, "disabled": False}


def empty_model(repository: Repository) -> View:
    """Return what a client asks for first, where there is no version yet."""
    moment = _moment(repository.created_at)
    named = _named(repository.adapter, is_private=repository.is_private) | {"tags": ["peft"], "createdAt": moment, "lastModified": moment}
    return named | {"sha": EMPTY_COMMIT, "siblings": [], "usedStorage": 0, "disabled": False}


def only(model: View, names: Sequence[str]) -> View:
    """Return what is asked for of a model, and what it is called; all of it where nothing is asked for."""
    return {name: value for name, value in model.items() if name in ("_id", "id", *names)} if names else model


def tree_entry(entry: FileEntry, version: VersionView, *, is_expanded: bool) -> View:
    """Return a file as a listing of a folder shows it."""
    pointer = _pointer(entry)
    lfs = {"oid": hex_of(entry), "size": entry.size, "pointerSize": len(pointer)}
    shown: View = {"type": "file", "oid": _git_name(pointer), "size": entry.size, "path": entry.path, "lfs": lfs}
    if is_expanded:
        shown["lastCommit"] = {"id": commit_of(version), "title": version.ref, "date": _moment(version.created_at)}
    return shown


def refs_view(branches: Mapping[str, str], tags: Mapping[str, str]) -> View:
    """Return branches and tags, given the commit behind each name; ``latest`` is the branch ``main``."""
    main = _ref("heads", MAIN, branches[LATEST])
    others = [_ref("heads", name, commit) for name, commit in branches.items() if name != LATEST]
    return {
        "branches": [main, *others],
        "converts": [],
        "tags": [_ref("tags", *named) for named in tags.items()],
        "pullRequests": [],
    }


def empty_refs() -> View:
    """Return the branches of an adapter that has no version yet."""
    return refs_view({LATEST: EMPTY_COMMIT}, {})


def _ref(kind: str, name: str, commit: str) -> View:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


def commit_view(commit: Commit) -> View:
    """Return a version as a step of a history."""
    return {
        "id": commit_of_digest(commit.manifest_digest),
        "title": commit.summary,
        "message": commit.description,
        "authors": [{"user": commit.created_by}],
        "date": _moment(commit.created_at),
    }


def git_hash(chunks: Iterable[bytes], size: int) -> str:
    """Return git's name for a file of ``size`` bytes."""
    sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        sha1.update(chunk)
    return sha1.hexdigest()


def _model(view: AdapterView | VersionView) -> View:
    return _named(view.adapter, is_private=view.visibility == "private") | {"tags": tags_of(view)}


def _named(adapter: str, *, is_private: bool) -> View:
    return {
        "_id": hashlib.sha256(adapter.encode()).hexdigest()[:24],
        "id": adapter,
        "modelId": adapter,
        "author": adapter.partition("/")[0],
        "private": is_private,
        "gated": False,
        "library_name": "peft",
    }


def _blob(entry: FileEntry) -> View:
    pointer = _pointer(entry)
    lfs = {"sha256": hex_of(entry), "size": entry.size, "pointerSize": len(pointer)}
    return {"size": entry.size, "blobId": _git_name(pointer), "lfs": lfs}


def _pointer(entry: FileEntry) -> bytes:
    """The text that git-lfs keeps in the place of a file; every file of ours counts as one of git-lfs."""
    return _POINTER.format(digest=entry.digest, size=entry.size).encode()


def _git_name(content: bytes) -> str:
    return git_hash([content], len(content))


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
