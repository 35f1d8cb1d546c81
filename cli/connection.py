"""The service that a command talks to: the one that is configured, or the one that runs on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cli.home import Home
from infra.settings import Settings, load_settings
from wegeft.client import Client
from wegeft.client.trust import TrustStore
from wegeft.contracts.errors import InvalidSetting, ServiceUnreachable


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where a service is, and the token for it."""

    server: str
    token: str = field(repr=False)
    is_remote: bool
    """Whether it may run on another machine."""
    trust_file: Path | None = None
    """Where the keys are pinned that versions must be signed with."""

    def connect(self) -> Client:
        """Return a client; nothing is sent yet."""
        return Client(self.server, self.token, trust=TrustStore(self.trust_file))


def find_service(settings: Settings) -> Service | None:
    """Return the configured service, or else the one that runs in the home folder; None where there is neither.

    Raises :class:`InvalidSetting` where the token for it is missing.
    """
    record = Home(settings.home).running()
    server = settings.server or (record.server if record else None)
    if server is None:
        return None
    is_ours = record is not None and record.server == server
    token = settings.token.get_secret_value() if settings.token else Home(settings.home).read_token() if is_ours else None
    if token is None:
        raise InvalidSetting(f"there is no token for {server}", path="WEGEFT_TOKEN", hint="an admin makes one: wgctl tokens create NAME")
    return Service(server=server, token=token, is_remote=not is_ours, trust_file=Home(settings.home).trust_file)


def require_service() -> Service:
    """Return the service that is there; raise :class:`ServiceUnreachable` where there is none."""
    service = find_service(load_settings())
    if service is None:
        hint = "wgctl up --detach starts one; or set WEGEFT_SERVER and WEGEFT_TOKEN"
        raise ServiceUnreachable("no service is configured, and none runs on this machine", hint=hint)
    return service


def connect() -> Client:
    """Return a client of the service that is there; raise as :func:`require_service` does."""
    return require_service().connect()
