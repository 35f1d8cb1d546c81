"""Settings: every ``WEGEFT_…`` variable, its unit and its default; all wrong ones are reported at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from wegeft.contracts.errors import InvalidSetting, Problem, shorten

PREFIX = "WEGEFT_"


def _check_home(path: Path) -> Path:
    return path.expanduser().absolute()


def _check_server(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError("must be http://host:port or https://host, with no path and no password in it")
    return f"{parts.scheme}://{parts.netloc}"


def _check_database(secret: SecretStr) -> SecretStr:
    if not re.match(r"sqlite:///.|postgresql\+psycopg://.", secret.get_secret_value()):
        raise ValueError("must be sqlite:///path or postgresql+psycopg://user:password@host/name")
    return secret


def _check_key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[0-9a-f]{64}", secret.get_secret_value()):
        raise ValueError("must be 64 lower-case hex digits")
    return secret


def _check_store(text: str) -> str:
    parts = _split(text)
    is_folder = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    if not is_folder and not (parts.scheme == "s3" and parts.netloc):
        raise ValueError("must be file:///absolute/folder or s3://bucket/prefix")
    return text


def _check_endpoint(text: str) -> str:
    parts = _split(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.username:
        raise ValueError("must be http://host:port or https://host")
    return f"{parts.scheme}://{parts.netloc}"


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from error
    return parts


class Settings(BaseSettings):
    """What the environment and the options of a command decide; read once, where the parts are put together."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    home: Annotated[Path, AfterValidator(_check_home)] = Field(default=Path("~/.wegeft"), validate_default=True)
    """Folder of the service on this machine: its database, blobs, logs, token and lock; readable by its owner alone."""

    server: Annotated[str, AfterValidator(_check_server)] | None = None
    """URL of the service that commands talk to; by default the one that `wgctl up` runs."""
    token: SecretStr | None = None
    """Token for that service; needed where server is set."""

    host: str = "127.0.0.1"
    """Address that `wgctl serve` listens on; 0.0.0.0 is every one of the machine's."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """TCP port that the service listens on; 0 takes the one that it had last, or a free one."""
    public_url: Annotated[str, AfterValidator(_check_server)] | None = None
    """URL at which workers reach the service; by default made of host and port."""
    database_url: Annotated[SecretStr, AfterValidator(_check_database)] | None = None
    """`sqlite:///path` or `postgresql+psycopg://user:password@host/name`; by default SQLite in the home folder."""
    store: Annotated[str, AfterValidator(_check_store)] | None = None
    """Where blobs are kept, `file:///absolute/folder` or `s3://bucket/prefix`; by default a folder in the home folder."""
    s3_endpoint: Annotated[str, AfterValidator(_check_endpoint)] = "https://s3.amazonaws.com"
    """URL of the S3 server, for a store in S3; plain http:// is not encrypted."""
    s3_public_endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    """URL at which clients reach the S3 server; with it, long files go between them and that server, by addresses that expire."""
    direct_from_bytes: Annotated[int, Field(ge=0)] = 8 << 20
    """Files of this length and longer, in bytes, go directly between clients and the S3 server, where s3_public_endpoint is set."""
    s3_region: str = "us-east-1"
    """Region of the S3 bucket."""
    s3_access_key: str | None = None
    """Access key of the S3 server; needed for a store in S3."""
    s3_secret_key: SecretStr | None = None
    """Secret key of the S3 server; needed for a store in S3."""
    max_upload_bytes: Annotated[int, Field(ge=1)] = 4 << 30
    """Largest data set or file that can be uploaded, in bytes."""
    max_staged_bytes: Annotated[int, Field(ge=1)] = 64 << 30
    """Bytes that one account may have sent that no version names yet; the byte quota of the namespace of its name may allow less."""
    downloads_at_once: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Downloads of files that one account may have open at once; its next ones wait."""
    least_download_rate: Annotated[int, Field(ge=0)] = 4096
    """Bytes a second that a reader must take, looked at every half minute; slower ones are cut off. 0 lets them be as slow as they are."""
    allow_local_models: bool = False
    """Whether a job may name a folder or file of the worker's machine as base model; always so under `wgctl up`."""
    allow_remote_code: bool = False
    """Whether a job may run code that comes with a base model."""
    new_adapters: Literal["private", "public"] = "private"
    """Who sees new adapters in a namespace that gets its owner from now on: those who share the namespace, or everybody who may read."""
    federation_key: Annotated[SecretStr, AfterValidator(_check_key)] | None = None
    """Ed25519 private key that signs receipts for sites, 64 hex digits; by default one is made and kept in the home folder."""
    signing_key: Annotated[SecretStr, AfterValidator(_check_key)] | None = None
    """Ed25519 private key that signs versions, 64 hex digits; by default one is made and kept in the home folder."""

    recent_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 64 << 20
    """Memory for the short files that were pulled lately, up to 2 MiB each, so that they are not read from the store again; 0 is none."""
    keep_seconds: Annotated[float, Field(ge=600, le=366 * 86_400)] = 86_400
    """How long bytes stay that nothing names: uploads before a job names them, data and checkpoint of a job after its end, in seconds."""
    collect_seconds: Annotated[float, Field(ge=0, le=86_400)] = 600
    """Time between two collections of bytes that nothing needs, in seconds; 0 is never."""

    pool: Literal["ray", "inline"] = "ray"
    """Where jobs run: workers on Ray, or threads of the service itself, which is for tests and small trials."""
    ray_address: str | None = None
    """`host:port` of a Ray cluster to run jobs on; by default a local Ray is started."""
    max_concurrent_jobs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Jobs that run at once at most; by default 64 on a Ray cluster, and 1 on this machine."""
    lease_seconds: Annotated[float, Field(gt=0, le=86_400)] = 15
    """Time after which a worker that was not heard from is given up and its job started again, in seconds."""
    heartbeat_seconds: Annotated[float, Field(gt=0, le=3600)] = 2
    """Time between two signs of life of a worker, in seconds; a third of the lease at most. A cancellation travels with them."""

    log_format: Literal["console", "json"] = "console"
    """How the service writes its log."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important messages that the service logs."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        clashes = []
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            clashes.append(("heartbeat_seconds", f"must be a third of lease_seconds ({self.lease_seconds:g}) at most"))
        if self.store and self.store.startswith("s3:"):
            missing = [name for name in ("s3_access_key", "s3_secret_key") if getattr(self, name) is None]
            clashes += [(name, "needed for a store in S3") for name in missing]
        if self.s3_public_endpoint and not (self.store or "").startswith("s3:"):
            clashes.append(("s3_public_endpoint", "only for a store in S3"))
        if self.ray_address and not self.public_url:
            clashes.append(("public_url", "needed with ray_address: the cluster's workers must reach the service"))
        if clashes:
            raise PydanticCustomError("clash", "settings do not go together", {"clashes": clashes})
        return self

    @property
    def jobs_at_once(self) -> int:
        """Jobs that run at once at most."""
        return self.max_concurrent_jobs or (64 if self.pool == "ray" and self.ray_address else 1)

    @property
    def database(self) -> str:
        """The database's URL, which may hold a password."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'hub.db'}"

    @property
    def direct_from(self) -> int | None:
        """From how many bytes on files go directly between clients and the store; None where none do."""
        return self.direct_from_bytes if self.s3_public_endpoint else None

    @property
    def store_url(self) -> str:
        """The object store's URL."""
        return self.store or (self.home / "blobs").as_uri()


GROUPS: dict[str, tuple[str, ...]] = {
    "Everywhere": ("home",),
    "Commands that talk to a service": ("server", "token"),
    "The service": (
        "host",
        "port",
        "public_url",
        "database_url",
        "store",
        "s3_endpoint",
        "s3_public_endpoint",
        "direct_from_bytes",
        "s3_region",
        "s3_access_key",
        "s3_secret_key",
    ),
    "What the service allows": (
        "max_upload_bytes",
        "max_staged_bytes",
        "downloads_at_once",
        "least_download_rate",
        "allow_local_models",
        "allow_remote_code",
        "new_adapters",
        "federation_key",
        "signing_key",
    ),
    "What the service keeps": ("recent_bytes", "keep_seconds", "collect_seconds"),
    "Where jobs run": ("pool", "ray_address", "max_concurrent_jobs", "lease_seconds", "heartbeat_seconds"),
    "Logs of the service": ("log_format", "log_level"),
}
"""The settings by who reads them, in the order of the documentation."""


def load_settings(**options: object) -> Settings:
    """Return the settings of the environment, with the options of a command (None is not given) before them.

    Raises :class:`InvalidSetting` with every one that is wrong or unknown; no secret is shown.
    """
    given = {name: value for name, value in options.items() if value is not None}
    problems = unknown_variables(os.environ)
    try:
        settings = Settings(**given)  # type: ignore[arg-type]  # what click read is checked here
    except ValidationError as error:
        problems += [problem for details in error.errors(include_url=False) for problem in _explain(details, given)]
    if problems:
        count = len(problems)
        raise InvalidSetting(f"{count} setting{'s' if count != 1 else ''} cannot be used", problems=problems)
    return settings


def unknown_variables(environment: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each ``WEGEFT_`` variable that is not a setting; its value is not shown."""
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    problems = []
    for name in sorted(key for key in environment if key.upper().startswith(PREFIX) and key.upper() not in names):
        close = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.6)
        problems.append(
            Problem(path=name, message="unknown setting", hint=f"did you mean {close[0]}?" if close else "see docs/settings.md")
        )
    return problems


def _explain(details: ErrorDetails, given: Mapping[str, object]) -> list[Problem]:
    if details["type"] == "clash":
        return [Problem(path=_shown_name(name, given), message=message) for name, message in details["ctx"]["clashes"]]
    name = str(details["loc"][0])
    context = details.get("ctx", {})
    message = str(context["error"]) if details["type"] == "value_error" else details["msg"].replace("Input should be", "must be")
    message = "must be true or false" if details["type"] == "bool_parsing" else message
    is_secret = "Secret" in str(Settings.model_fields[name].annotation) or "@" in str(details["input"])
    return [Problem(path=_shown_name(name, given), message=message, value=None if is_secret else shorten(details["input"]))]


def _shown_name(name: str, given: Mapping[str, object]) -> str:
    return f"--{name.replace('_', '-')}" if name in given else PREFIX + name.upper()
