"""What a revision means: ``main``, a version's number, an alias, a tag, or a commit of 40 hex digits."""

from __future__ import annotations

import re

from sqlalchemy import Connection

from hub import catalog
from hub.catalog import Repository
from hub.hf_views import EMPTY_COMMIT, MAIN
from hub.services import HubServices
from infra.database import reading
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterRef, VersionView
from wegeft.contracts.base_model_name import is_commit
from wegeft.contracts.errors import AdapterNotFound, AliasNotFound, VersionNotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_HINT = "main, a version's number, an alias, a tag, or a commit"


def resolve(services: HubServices, adapter: AdapterName, revision: str) -> VersionView | Repository:
    """Return what a revision means now, an adapter without versions where it has none yet; raises what :func:`find_version` does."""
    with reading(services.engine) as connection:
        try:
            return find_version(connection, adapter, revision)
        except AdapterNotFound:
            repository = catalog.find_repository(connection, adapter)
    if revision not in (MAIN, EMPTY_COMMIT):
        raise VersionNotFound(path=str(adapter), value=revision, hint="it has no version yet")
    return repository


def resolve_version(services: HubServices, adapter: AdapterName, revision: str) -> VersionView:
    """Return the version that a revision means now; raise :class:`VersionNotFound` also where there is none yet."""
    match resolve(services, adapter, revision):
        case VersionView() as version:
            return version
        case Repository():
            raise VersionNotFound(path=str(adapter), value=revision, hint="it has no version yet")


def find_version(connection: Connection, adapter: AdapterName, revision: str) -> VersionView:
    """Return the version that a revision means; raise :class:`AdapterNotFound`, :class:`VersionNotFound` or :class:`AliasNotFound`."""
    if is_commit(revision):
        return catalog.resolve_commit(connection, adapter, revision)
    if not _NAME.match(revision):
        catalog.find_adapter(connection, adapter)
        raise VersionNotFound(path=str(adapter), value=revision, hint=_HINT)
    try:
        return catalog.resolve(connection, AdapterRef(adapter=adapter, selector=LATEST if revision == MAIN else revision))
    except AliasNotFound as error:
        raise VersionNotFound(path=str(adapter), value=revision, hint=_HINT) from error
