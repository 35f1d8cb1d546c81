"""A version in an address of the hub's own API: by its number, an alias or a tag."""

from typing import Annotated

from fastapi import Path

from hub import catalog
from hub.services import HubServices
from infra.database import reading
from wegeft.contracts.adapter import AdapterName, AdapterRef, VersionView, check_selector

Selector = Annotated[str, Path(description="A version's number, or an alias.")]


def resolve_named(services: HubServices, adapter: AdapterName, selector: str) -> VersionView:
    """Return the version that an address names; raise :class:`InvalidRequest` for no selector, and where there is none to be seen."""
    with reading(services.engine) as connection:
        return catalog.resolve(connection, AdapterRef(adapter=adapter, selector=check_selector(selector)))
