"""What a commit asks for: a message, files to add and to delete, and what it stands on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hub.hf_api.commit_lines import Content, Line, read_lines
from hub.objects import Readable
from hub.signature_files import KINDS
from wegeft.contracts.adapter import CONFIG_FILE, PUBLISHABLE_FILES, WEIGHTS_FILE, FileEntry
from wegeft.contracts.errors import FileNotFoundInVersion, InvalidRequest, Problem, shorten

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*\z")]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Header(_Value):
    """The first line."""

    summary: Annotated[Text, Field(min_length=1, max_length=1000)]
    description: Annotated[Text, Field(max_length=20_000)] = ""
    parentCommit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{5,40}\z")] | None = None  # noqa: N815 - the clients' spelling


class _File(_Value):
    path: str
    content: str
    encoding: Literal["base64"]


class _LfsFile(_Value):
    path: str
    algo: Literal["sha256"] = "sha256"
    oid: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class _Deleted(_Value):
    path: str


@dataclass(frozen=True, kw_only=True)
class CommitRequest:
    """A commit, read; the bytes of its files are stored."""

    header: Header
    added: dict[str, FileEntry]
    deleted: tuple[str, ...]
    """Files that must be there."""
    deleted_folders: tuple[str, ...]
    """Without slashes; an empty one is everything."""
    key: str | None = None
    """What the sender calls this very request, however often it comes; None where it has no name for it."""

    def fingerprint(self, adapter: str, sender: str) -> str:
        """Return what tells this very request of this sender from every other one, whatever it stands on."""
        added = sorted((path, entry.digest) for path, entry in self.added.items())
        said = [adapter, sender, self.header.summary, self.header.description, added, self.deleted, self.deleted_folders]
        if self.key is not None:
            said.append(self.key)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def apply(self, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        """Return what becomes of a version's files; raise :class:`FileNotFoundInVersion` where one to delete is not there."""
        left = {entry.path: entry for entry in files}
        for path in self.deleted:
            # The hub lists a signature beside the files, so whoever deletes them all names it too; it is not theirs to delete.
            if left.pop(path, None) is None and path not in KINDS:
                raise _not_there(path)
        for folder in self.deleted_folders:
            inside = [path for path in left if not folder or path.startswith(f"{folder}/")]
            if not inside:
                raise _not_there(f"{folder}/")
            for path in inside:
                del left[path]
        left |= self.added
        return tuple(left[path] for path in sorted(left))


def _not_there(path: str) -> FileNotFoundInVersion:
    # The words that the clients look for, to explain what a folder's path looks like.
    return FileNotFoundInVersion("A file with this name doesn't exist", path="deleted", value=path)


Store = Callable[[Content], FileEntry]
"""Stores a file's bytes; the entry's path is still empty."""
Find = Callable[[str], FileEntry | None]
"""Returns an entry for bytes that the sender may name by their digest, its path still empty, or None."""


@dataclass(kw_only=True)
class CommitReader:
    """Reads a commit line by line and stores its files as they come."""

    store: Store
    find: Find
    max_file_bytes: int
    _header: Header | None = None
    _added: dict[str, FileEntry] = field(default_factory=dict)
    _deleted: list[str] = field(default_factory=list)
    _folders: list[str] = field(default_factory=list)
    _problems: list[Problem] = field(default_factory=list)

    def read(self, source: Readable) -> CommitRequest:
        """Return the commit; raise :class:`InvalidRequest` with every problem, or :class:`TooLarge`."""
        with closing(read_lines(source, self.max_file_bytes)) as lines:
            for line in lines:
                try:
                    self._take(line)
                except ValidationError as error:
                    self._problems += _line_problems(line, error)
                    if self._header is None:
                        break
        if self._problems:
            raise InvalidRequest("the commit cannot be read", problems=self._problems)
        if self._header is None:
            raise InvalidRequest("the commit is empty", path="body", hint='it begins with a line {"key": "header", …}')
        return CommitRequest(header=self._header, added=self._added, deleted=tuple(self._deleted), deleted_folders=tuple(self._folders))

    def _take(self, line: Line) -> None:
        key, value = line.value.get("key"), line.value.get("value")
        if (key == "header") is not (self._header is None):
            raise InvalidRequest("the header is the first line, and only the first", path=f"line {line.number}", value=shorten(key))
        match key:
            case "header":
                self._header = Header.model_validate(value)
            case "file":
                self._add_file(line, _File.model_validate(value))
            case "lfsFile":
                self._add_known(_LfsFile.model_validate(value))
            case "deletedFile":
                self._deleted.append(_Deleted.model_validate(value).path)
            case "deletedFolder":
                folder = _Deleted.model_validate(value).path.strip("/")
                self._folders.append("" if folder == "." else folder)
            case _:
                raise InvalidRequest("not a kind of line", path=f"line {line.number}", value=shorten(key))

    def _add_file(self, line: Line, file: _File) -> None:
        if self._may_add(file.path):
            content = line.content(file.content, self.max_file_bytes)
            try:
                self._added[file.path] = self.store(content).model_copy(update={"path": file.path})
            finally:
                content.close()

    def _add_known(self, file: _LfsFile) -> None:
        if not self._may_add(file.path):
            return
        entry = self.find(f"sha256:{file.oid}")
        if entry is None:
            hint = "send them in the commit itself, or to /api/v1/blobs first"
            self._problems.append(Problem(path=file.path, message="you have not sent bytes of this digest", value=file.oid, hint=hint))
        else:
            self._added[file.path] = entry.model_copy(update={"path": file.path})

    def _may_add(self, path: str) -> bool:
        problems = list(path_problems(path))
        if path in self._added:
            problems.append(Problem(path=path, message="named more than once in one commit"))
        self._problems += problems
        return not problems


def path_problems(path: str) -> Iterator[Problem]:
    """Yield why a version cannot hold a file of this name; a name is right or wrong as it stands, to the letter."""
    if path in PUBLISHABLE_FILES:
        return
    shown = shorten(path if path.isprintable() and path.isascii() else ascii(path))
    if path.lower().endswith(PICKLES):
        yield Problem(path=shown, message="a pickle runs code when it is loaded", hint=f"save as safetensors: {WEIGHTS_FILE}")
    else:
        hint = f"leave it out (--exclude, ignore_patterns); a version holds {', '.join(sorted(PUBLISHABLE_FILES))}"
        yield Problem(path=shown, message="not a file that this hub serves", hint=hint)


def weights_problems(path: str, head: bytes) -> Iterator[Problem]:
    """Yield why the first bytes of weights cannot be those of safetensors, so that nobody sends gigabytes in vain."""
    if path == WEIGHTS_FILE and len(head) > 8 and head[8:9] != b"{":
        yield Problem(path=path, message="not safetensors, a pickle perhaps", hint="save with safe_serialization=True")
    if path == CONFIG_FILE and head and not head.lstrip().startswith(b"{"):
        yield Problem(path=path, message="not a JSON object")


def _line_problems(line: Line, error: ValidationError) -> list[Problem]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join([f"line {line.number}", *(shorten(str(step)) for step in item["loc"])]) for item in found]
    return [Problem(path=place, message=item["msg"]) for place, item in zip(places, found, strict=True)]
