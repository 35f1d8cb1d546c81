"""Publishing a folder as the next version of an adapter: bytes first, by digest, then one commit that names them."""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from wegeft.client.blobs import STORE_SECONDS, Progress, opened, upload
from wegeft.client.transport import Call, Transport, json_body
from wegeft.client.uploads import upload_file
from wegeft.contracts.adapter import CONFIG_FILE, PUBLISHABLE_FILES, WEIGHTS_FILE, AdapterName, VersionView
from wegeft.contracts.errors import AdapterNotFound, Conflict, InvalidData, Problem
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import ONE_REQUEST_BYTES

INLINE_BYTES = 64 << 10
"""Shorter files come in the commit itself."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """A version about to be made of a folder."""

    folder: Path
    adapter: AdapterName
    message: str
    parent: str | None = None
    """Commit that must be the newest version's; None puts the version on top of whatever is there."""


class _NewRepository(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    organization: str


class Committed(BaseModel):
    """What a commit has made."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    commitOid: str  # noqa: N815 - the Hugging Face Hub's spelling
    version: VersionView
    """The version that it is."""


def push(transport: Transport, wanted: Push, on_progress: Progress | None = None) -> Committed:
    """Publish the folder's files and return the commit; pushing the same again returns the version that is there.

    Files of other names stay where they are. Raises :class:`InvalidData` where the folder is no adapter, :class:`InvalidInput` with
    everything that the hub's gate refuses, and :class:`StaleParent` where the parent is not the newest version.
    """
    paths = files_of(wanted.folder)
    if any(path.stat().st_size > ONE_REQUEST_BYTES for path in paths):
        _create(transport, wanted.adapter)  # first, so that nobody sends much to where they may not publish
    lines = [_line("header", summary=wanted.message, **({"parentCommit": wanted.parent} if wanted.parent else {}))]
    lines += [_file_line(transport, wanted.adapter, path, on_progress) for path in paths]
    content = "".join(lines).encode()
    headers = {"Content-Type": "application/x-ndjson", "Content-Length": str(len(content))}
    if wanted.parent is None:
        # The answer to a try may be lost while others publish: the next try must be known for the same push.
        headers["Idempotency-Key"] = secrets.token_hex(16)
    path = f"//api/models/{wanted.adapter}/commit/main"
    commit = Call(method="POST", path=path, headers=headers, content=lambda: content, read_seconds=STORE_SECONDS)
    try:
        return transport.ask(commit, Committed)
    except AdapterNotFound:
        _create(transport, wanted.adapter)
        return transport.ask(commit, Committed)


def _file_line(transport: Transport, adapter: AdapterName, path: Path, on_progress: Progress | None) -> str:
    """Return the commit's line about a file: a short one is part of it, a longer one is sent first."""
    with opened(path) as file:
        content = file.read(INLINE_BYTES + 1)
    if len(content) <= INLINE_BYTES:
        return _line("file", path=path.name, content=b64encode(content).decode(), encoding="base64")
    blob = _upload(transport, adapter, path, on_progress)
    return _line("lfsFile", path=path.name, algo="sha256", oid=blob.digest.removeprefix("sha256:"))


def files_of(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that belong to an adapter; raise :class:`InvalidData` where it is none."""
    if not folder.is_dir():
        raise InvalidData("not a folder", path=str(folder), hint="the folder that save_pretrained wrote")
    found = tuple(sorted(path for path in folder.iterdir() if path.name in PUBLISHABLE_FILES and path.is_file()))
    problems = list(_missing(folder, {path.name for path in found}))
    if problems:
        raise InvalidData(f"{folder} is not an adapter", problems=problems)
    return found


def _missing(folder: Path, names: set[str]) -> Iterator[Problem]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            yield Problem(path=str(folder / name), message="the file is missing", hint="PEFT's save_pretrained writes it")


def _upload(transport: Transport, adapter: AdapterName, path: Path, on_progress: Progress | None) -> BlobView:
    if path.stat().st_size <= ONE_REQUEST_BYTES:
        return upload(transport, "/blobs", path, on_progress, adapter=adapter)
    return upload_file(transport, f"/adapters/{adapter}/uploads", path, on_progress)


def _create(transport: Transport, adapter: AdapterName) -> None:
    try:
        transport.tell(Call(method="GET", path=f"//api/models/{adapter}"))
    except AdapterNotFound:
        body = _NewRepository(name=adapter.name, organization=adapter.namespace)
        headers = {"Content-Type": "application/json"}
        with suppress(Conflict):  # it is there meanwhile, by an earlier try perhaps whose answer was lost
            transport.tell(Call(method="POST", path="//api/repos/create", headers=headers, content=json_body(body)))


def _line(key: str, **value: Any) -> str:
    return json.dumps({"key": key, "value": value}) + "\n"
