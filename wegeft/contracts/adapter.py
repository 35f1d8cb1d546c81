"""What an adapter is called and what a version of it holds: references, file entries and the manifest."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field

from wegeft.contracts.errors import InvalidInput, InvalidReference
from wegeft.contracts.visibility import Visibility

MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.wegeft.adapter.v1+json"
CONFIG_MEDIA_TYPE = "application/vnd.wegeft.adapter.config.v1+json"
SAFETENSORS_MEDIA_TYPE = "application/vnd.safetensors"
TITLE_ANNOTATION = "org.opencontainers.image.title"

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
JOB_FILE = "job.json"
METRICS_FILE = "metrics.json"
PUBLISHABLE_FILES = frozenset({CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, JOB_FILE, METRICS_FILE})
"""The only files that a version may hold; everything else, pickles above all, is refused."""
MAX_FILES = 64
"""A manifest that lists more is refused before its entries are read."""

LATEST = "latest"
RESERVED_NAMES = frozenset(
    [
        "api",
        "datasets",
        "spaces",
        "models",
        "kernels",
        "buckets",
        "settings",
        "login",
        "v2",
        "docs",
        "metrics",
        "healthz",
        "readyz",
        "static",
        "resolve",
        "tree",
        "raw",
        "blob",
        "refs",
        "commit",
        "revision",
        "openapi.json",
    ]
)

WRITTEN_SEGMENT = "[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_SEGMENT = re.compile(rf"{WRITTEN_SEGMENT}\Z")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}\Z")
_WRITTEN_DIGEST = "sha256:[0-9a-f]{64}"
_DIGEST = re.compile(rf"{_WRITTEN_DIGEST}\Z")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}\Z")


def check_segment(text: str, what: str = "name") -> str:
    """Return ``text`` if it can be a namespace or an adapter's name; raise :class:`InvalidReference` otherwise."""
    if not _SEGMENT.match(text) or "--" in text or ".." in text or text.endswith(".git") or text.lower() in RESERVED_NAMES:
        raise InvalidReference(
            f"not a valid {what}",
            path=what,
            value=text,
            hint="1 to 96 of A-Z a-z 0-9 . _ -, starting and ending with a letter or digit, no '--' or '..', and not a reserved word",
        )
    return text


def check_alias(text: str) -> str:
    """Return ``text`` if it can be an alias: it starts with a letter, so that it is never taken for a number."""
    if not _ALIAS.match(text):
        raise InvalidReference(
            "not a valid alias", path="alias", value=text, hint="a lower-case letter, then up to 63 of a-z 0-9 . _ -, as in 'production'"
        )
    return text


def check_digest(text: str) -> str:
    """Return ``text`` if it is ``sha256:`` and 64 lower-case hex digits."""
    if not _DIGEST.match(text):
        raise InvalidReference("not a digest", path="digest", value=text, hint="sha256: followed by 64 lower-case hex digits")
    return text


def is_digest(text: str) -> bool:
    """Return whether ``text`` is ``sha256:`` and 64 lower-case hex digits."""
    return bool(_DIGEST.match(text))


def digest_of(content: bytes | memoryview) -> str:
    """Return the ``sha256:…`` name of ``content``."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _as_value_error(text: str) -> str:
    try:
        return check_digest(text)
    except InvalidReference as error:
        raise ValueError(error.message) from error


Digest = Annotated[str, AfterValidator(_as_value_error), Field(json_schema_extra={"pattern": f"^{_WRITTEN_DIGEST}$"})]


class AdapterName(BaseModel):
    """``namespace/name``."""

    model_config = ConfigDict(frozen=True)

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``ns/name``; raise :class:`InvalidReference` when it is malformed."""
        namespace, slash, name = text.partition("/")
        if not slash or "/" in name:
            raise InvalidReference("not an adapter's name", path="adapter", value=text, hint="namespace/name, for example demo/arithmetic")
        return cls(namespace=check_segment(namespace, "namespace"), name=check_segment(name))

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class AdapterRef(BaseModel):
    """``namespace/name``, ``namespace/name@3`` or ``namespace/name@alias``; without a selector, the alias ``latest``."""

    model_config = ConfigDict(frozen=True)

    adapter: AdapterName
    selector: str = LATEST

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a reference; raise :class:`InvalidReference` when it is malformed."""
        name, at, selector = text.partition("@")
        adapter = AdapterName.parse(name)
        return cls(adapter=adapter, selector=check_selector(selector) if at else LATEST)

    @property
    def number(self) -> int | None:
        """The version's number, or None where the selector is an alias."""
        return int(self.selector) if _NUMBER.match(self.selector) else None

    def __str__(self) -> str:
        return f"{self.adapter}@{self.selector}"


def check_selector(text: str) -> str:
    """Return ``text`` if it is a version number or an alias."""
    return text if _NUMBER.match(text) else check_alias(text)


class FileEntry(BaseModel):
    """One file of a version: its path in the folder, and its bytes by digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    digest: Digest
    size: int = Field(ge=0)
    """Bytes."""

    @property
    def media_type(self) -> str:
        """The media type, by the file's ending."""
        match self.path.rpartition(".")[2]:
            case "safetensors":
                return SAFETENSORS_MEDIA_TYPE
            case "json":
                return "application/json"
            case "md":
                return "text/markdown"
            case _:
                return "application/octet-stream"


class Descriptor(BaseModel):
    """An OCI content descriptor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mediaType: str  # noqa: N815 - the OCI specification's spelling
    digest: Digest
    size: int
    annotations: dict[str, str] = Field(default_factory=dict)


class Manifest(BaseModel):
    """A valid OCI 1.1 image manifest that lists a version's files (OCI image-spec, manifest.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schemaVersion: Literal[2] = 2  # noqa: N815 - the OCI specification's spelling
    mediaType: str = MANIFEST_MEDIA_TYPE  # noqa: N815 - the OCI specification's spelling
    artifactType: str = ARTIFACT_TYPE  # noqa: N815 - the OCI specification's spelling
    config: Descriptor
    # The first wrong one only: a problem for each of a million takes longer than reading them.
    layers: Annotated[tuple[Descriptor, ...], FailFast(), Field(max_length=MAX_FILES)]
    annotations: dict[str, str] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the one canonical serialisation; its sha256 is the manifest's digest."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files, sorted by path."""
        entries = [FileEntry(path=layer.annotations[TITLE_ANNOTATION], digest=layer.digest, size=layer.size) for layer in self.layers]
        return tuple(sorted(entries, key=lambda entry: entry.path))


def make_manifest(files: tuple[FileEntry, ...], annotations: dict[str, str]) -> Manifest:
    """Return the manifest of ``files``; raise :class:`InvalidInput` where there is no ``adapter_config.json`` among them."""
    ordered = sorted(files, key=lambda entry: entry.path)
    config = next((entry for entry in ordered if entry.path == CONFIG_FILE), None)
    if config is None:
        raise InvalidInput("the file is missing", path=CONFIG_FILE)
    layers = tuple(
        Descriptor(mediaType=entry.media_type, digest=entry.digest, size=entry.size, annotations={TITLE_ANNOTATION: entry.path})
        for entry in ordered
    )
    return Manifest(
        config=Descriptor(mediaType=CONFIG_MEDIA_TYPE, digest=config.digest, size=config.size), layers=layers, annotations=annotations
    )


class VersionView(BaseModel):
    """A published version, as the hub answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    adapter: str
    """``namespace/name``."""
    version: int
    manifest_digest: Digest
    manifest: Manifest
    aliases: tuple[str, ...] = ()
    """Aliases that point here now."""
    source: str
    """What made it, unique: ``job:<id>``, ``round:<id>:<number>`` of a federated one, or ``commit:<fingerprint>:<parent>``."""
    base_model: str
    method: str
    rank: int
    """0 where the method has none."""
    metrics: dict[str, float] = Field(default_factory=dict)
    created_at: datetime
    size: int
    """Bytes of all files."""
    visibility: Visibility = "public"
    """Of the adapter."""
    signature: str | None = None
    """The hub's signature, a Sigstore bundle as JSON text; only where one version is asked for, and None where the hub does not sign."""

    @property
    def ref(self) -> str:
        """``namespace/name@version``."""
        return f"{self.adapter}@{self.version}"


class AdapterView(BaseModel):
    """An adapter, as the hub lists it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    adapter: str
    latest_version: int
    aliases: dict[str, int]
    protected_aliases: tuple[str, ...] = ()
    """Those of them that only admins move, sorted."""
    base_model: str
    method: str
    rank: int
    """0 where the method has none."""
    task: str | None = None
    """For example ``causal_lm``; None where the version does not say."""
    license: str | None = None
    """As its card says; None where it does not."""
    tags: tuple[str, ...] = ()
    """As its card says, sorted."""
    created_at: datetime
    updated_at: datetime
    size: int
    """Bytes of the latest version."""
    visibility: Visibility = "public"


class AdapterPage(BaseModel):
    """Adapters, by name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    adapters: tuple[AdapterView, ...]
    next_cursor: str | None
    """Pass it as ``after`` for the next page; None at the end."""


class FacetValue(BaseModel):
    """A value that adapters have, and how many of them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: str
    count: int


class AdapterFacets(BaseModel):
    """What the adapters of a list are, counted by each of their properties."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    counted: int
    """Adapters counted: all that the filter selects, or the last published of them."""
    is_complete: bool
    """Whether these are all that the filter selects."""
    facets: dict[str, tuple[FacetValue, ...]]
    """By the name of the filter: ``base_model``, ``method``, ``rank``, ``task``, ``license``, ``format``, ``signed``, ``namespace`` and
    ``tag``; each with its most frequent values, the most frequent first."""


class VersionPage(BaseModel):
    """Versions of one adapter, newest first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    versions: tuple[VersionView, ...]
    next_cursor: str | None
    """Pass it as ``after`` for the next page; None at the end."""


class AliasMove(BaseModel):
    """Let an alias point to a version, by compare-and-set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1, le=999_999_999)
    expected: int | None = Field(default=None, ge=0, le=999_999_999)
    """Where the alias must point now: a version's number, 0 for nowhere yet, None for anywhere."""
