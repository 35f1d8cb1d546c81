"""The audit log: what an entry says, and how a reader finds out that one was changed, removed, inserted or moved.

Each entry's hash covers the entry and the hash of the one before, so that no entry can be touched without every later one. Who can write
every entry anew can also make a new chain: a hash that was noted elsewhere shows that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from wegeft.contracts.errors import Problem, shorten
from wegeft.contracts.json_names import collect_unique

FIRST_HASH = "0" * 64
"""What the first entry follows."""


class AuditEntry(BaseModel):
    """One change: who made it, when, and to what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int
    """1, 2, 3 …, with no gap."""
    at: datetime | None
    actor: str
    """The account that asked for it, or ``service`` where nobody did."""
    token_id: str | None
    request_id: str | None
    action: str
    """Such as ``version.publish``."""
    subject: str
    """What was changed."""
    details: dict[str, JsonValue]
    previous: str
    """The hash of the entry before."""
    hash: str = ""
    """Of everything else in this entry."""

    @property
    def content(self) -> bytes:
        """The one serialisation that the hash is made of."""
        return json.dumps(self.model_dump(mode="json", exclude={"hash"}), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    def sealed(self) -> AuditEntry:
        """Return the entry with its hash."""
        return self.model_copy(update={"hash": self.computed_hash})

    @property
    def computed_hash(self) -> str:
        """The hash that the entry must have."""
        return hashlib.sha256(self.content).hexdigest()


class AuditHead(BaseModel):
    """Where the log ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int
    """Of the last entry; 0 where there is none."""
    hash: str


class AuditEnd(BaseModel):
    """The last line of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: AuditHead


class AuditPage(BaseModel):
    """Entries of the log, in their order."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    entries: tuple[AuditEntry, ...]
    head: AuditHead
    """Where the log ended when this was read."""


class ChainCheck:
    """Reads a log from its first entry on, one entry at a time, and gathers what is wrong with it."""

    def __init__(self) -> None:
        self.head = AuditHead(sequence=0, hash=FIRST_HASH)
        """The last entry that was read."""
        self.hashes: set[str] = set()

    def read(self, entry: AuditEntry) -> Iterator[Problem]:
        """Yield what is wrong with the next entry."""
        path, expected = f"entry {entry.sequence}", self.head.sequence + 1
        hint = f"entry {expected} should come here"
        if entry.sequence > expected:
            yield Problem(
                path=path, message=f"{entry.sequence - expected} before it are missing", hint=f"entry {expected} should come here"
            )
        elif entry.sequence < expected:
            yield Problem(path=path, message="stands where it does not belong", hint=hint)
        if entry.hash != entry.computed_hash:
            yield Problem(path=path, message="was changed", value=entry.hash, hint=f"its content has the hash {entry.computed_hash}")
        if entry.previous != self.head.hash and entry.sequence == expected:
            hint = f"that has the hash {self.head.hash}"
            yield Problem(path=path, message="does not follow the one before it", value=entry.previous, hint=hint)
        self.hashes.add(entry.computed_hash)
        self.head = AuditHead(sequence=entry.sequence, hash=entry.computed_hash)

    def end(self, head: AuditHead | None, noted: str | None = None) -> Iterator[Problem]:
        """Yield what is wrong with where the log ends; ``noted`` is a hash that it must hold."""
        if head is None:
            yield Problem(path="end", message="the line that says where the log ends is missing")
        elif head != self.head:
            shown, hint = f"entry {head.sequence}, hash {head.hash}", f"entry {self.head.sequence} is its last"
            yield Problem(path="end", message="the log does not end where it says", value=shown, hint=hint)
        if noted is not None and noted not in self.hashes:
            yield Problem(path="end", message="the hash that you noted is not in the log", value=noted)


def check_export(lines: Iterable[str], noted: str | None = None) -> tuple[AuditHead, tuple[Problem, ...]]:
    """Return where an export ends and everything that is wrong with it; nothing else than its lines is asked."""
    chain, problems, head = ChainCheck(), [], None
    for number, line in enumerate(lines, start=1):
        if head is not None:
            problems.append(Problem(path="end", message="something stands behind the end", line=number))
            break
        found = _parse(line)
        match found:
            case AuditEntry():
                problems += [problem.model_copy(update={"line": number}) for problem in chain.read(found)]
            case AuditEnd():
                head = found.head
            case None:
                problems.append(Problem(path="line", message="not a line of an audit log", value=shorten(line), line=number))
    return chain.head, (*problems, *chain.end(head, noted))


def _parse(line: str) -> AuditEntry | AuditEnd | None:
    for kind in (AuditEntry, AuditEnd):
        try:
            return kind.model_validate(json.loads(line, object_pairs_hook=collect_unique))
        except (ValidationError, ValueError, RecursionError):
            continue
    return None
