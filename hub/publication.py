"""A version about to be published: the one thing that the catalog takes in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from hub.description import Description
from wegeft.contracts.adapter import (
    CONFIG_FILE,
    MAX_FILES,
    PUBLISHABLE_FILES,
    WEIGHTS_FILE,
    AdapterName,
    FileEntry,
    Manifest,
    make_manifest,
)
from wegeft.contracts.errors import InvalidInput, Problem, shorten
from wegeft.contracts.visibility import Visibility

_MAX_TEXT = {"base_model": 4200, "method": 40, "source": 200, "created_by": 200}
_MAX_METRICS = 500


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A version about to be published; its blobs are stored and checked already."""

    adapter: AdapterName
    files: tuple[FileEntry, ...]
    """Of :data:`PUBLISHABLE_FILES`; configuration and weights must be there."""
    source: str
    """What made it, unique: ``job:<id>``, ``round:<id>:<number>`` of a federated one, or ``commit:<fingerprint>:<parent>``."""
    base_model: str
    method: str
    rank: int
    """0 where the method has none."""
    created_by: str
    metrics: dict[str, float] = field(default_factory=dict)
    visibility: Visibility | None = None
    """Of an adapter that is new; None: as its namespace has it."""
    measured_on: str | None = None
    """Digest of the one data set that the metrics were measured on; None where there are several, or none is known."""
    started_from: tuple[str, ...] = ()
    """Digests of the weights that training began with, where it did not begin afresh."""
    edited: str | None = None
    """Source of the version that this one changes files of."""
    description: Description = field(default_factory=Description)
    """For whoever looks for it, as :func:`hub.description.describe` reads it from the files."""

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise InvalidInput("the version cannot be published as described", problems=problems)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def manifest(self, created_at: datetime) -> Manifest:
        """Return the manifest that lists the files and says where they come from."""
        annotations = {
            "org.opencontainers.image.created": created_at.isoformat(),
            "org.wegeft.base-model": self.base_model,
            "org.wegeft.method": self.method,
            "org.wegeft.rank": str(self.rank),
            "org.wegeft.source": self.source,
        }
        return make_manifest(self.files, annotations)


def _problems(publication: Publication) -> Iterator[Problem]:
    for name, limit in _MAX_TEXT.items():
        text: str = getattr(publication, name)
        if not text or len(text) > limit or not text.isprintable():
            yield Problem(path=name, message="not a printable text of a fitting length", value=shorten(text), hint=f"1 to {limit} long")
    if not 0 <= publication.rank < 2**31:
        yield Problem(path="rank", message="not a rank", value=shorten(publication.rank))
    yield from file_problems(publication.files)
    yield from _metric_problems(publication.metrics)


def _metric_problems(metrics: dict[str, float]) -> Iterator[Problem]:
    if len(metrics) > _MAX_METRICS:
        yield Problem(path="metrics", message="too many metrics", value=str(len(metrics)), hint=f"at most {_MAX_METRICS}")
        return
    for name, value in metrics.items():
        if not math.isfinite(value) or not name.isprintable() or not 0 < len(name) <= 100:
            shown = shorten(name if name.isprintable() else ascii(name))
            yield Problem(path=f"metrics.{shown}", message="not a finite number under a printable name", value=str(value))


def file_problems(files: tuple[FileEntry, ...]) -> Iterator[Problem]:
    """Yield what is wrong with the list of a version's files, without looking at their bytes."""
    paths = [entry.path for entry in files]
    if len(paths) > MAX_FILES:
        yield Problem(path="files", message="too many files", value=str(len(paths)), hint=f"at most {MAX_FILES}")
        return
    for path in (CONFIG_FILE, WEIGHTS_FILE):
        if path not in paths:
            yield Problem(path=path, message="the file is missing")
    for entry in files:
        if entry.path not in PUBLISHABLE_FILES:
            allowed = ", ".join(sorted(PUBLISHABLE_FILES))
            yield Problem(path="files", message="not a publishable file", value=shorten(entry.path), hint=f"a version holds {allowed}")
        elif paths.count(entry.path) > 1:
            yield Problem(path="files", message="named more than once", value=entry.path)
