"""An adapter's card: the latest version's own, until somebody writes a better one."""

from __future__ import annotations

from typing import Any

from hub import catalog
from hub.objects import read_verified
from hub.services import HubServices
from infra import audit
from infra.database import reading, writing
from wegeft.contracts.adapter import CARD_FILE, AdapterName, AdapterRef, VersionView, digest_of
from wegeft.contracts.card import CardEdit, CardView, check_card, license_of, read_front_matter, tags_of
from wegeft.contracts.errors import Conflict, InvalidInput


def show_card(services: HubServices, adapter: AdapterName) -> CardView:
    """Return an adapter's card; raise :class:`AdapterNotFound`. A version without a card has an empty one."""
    with reading(services.engine) as connection:
        latest = catalog.resolve(connection, AdapterRef(adapter=adapter))
        row = catalog.find_card(connection, adapter)
    if row is not None:
        return _view(latest.adapter, row.markdown, is_edited=True, updated_at=row.updated_at)
    return _view(latest.adapter, _own_card(services, latest), is_edited=False, updated_at=latest.created_at)


def _own_card(services: HubServices, version: VersionView) -> str:
    entry = next((entry for entry in version.manifest.files if entry.path == CARD_FILE), None)
    return "" if entry is None else read_verified(services.store, entry.digest, entry.size).decode(errors="replace")


def _view(adapter: str, markdown: str, **told: Any) -> CardView:
    try:
        data = read_front_matter(markdown)
    except InvalidInput:  # a version's own card may have come with any front matter, and is shown nevertheless
        data = {}
    digest = digest_of(markdown.encode())
    return CardView(adapter=adapter, markdown=markdown, digest=digest, license=license_of(data), tags=tags_of(data), **told)


def edit_card(services: HubServices, adapter: AdapterName, edit: CardEdit, by: str) -> CardView:
    """Keep a new card and return it.

    Raises :class:`InvalidInput` with everything that is wrong with its front matter, and :class:`Conflict` where the card is not the one
    any more that it replaces.
    """
    data = check_card(edit.markdown)
    current = show_card(services, adapter)
    now = services.clock()
    card = {"markdown": edit.markdown, "digest": digest_of(edit.markdown.encode()), "license": license_of(data)}
    with writing(services.engine) as connection:
        adapter_id = catalog.lock_adapter_id(connection, adapter)
        row = catalog.find_card(connection, adapter)
        found = row.digest if row is not None else current.digest
        if edit.expected is not None and edit.expected != found and card["digest"] != found:
            raise Conflict("the card was changed meanwhile", path="expected", value=edit.expected, hint=f"it is {found} now")
        catalog.put_card(connection, adapter_id, card, (by, now))
        audit.note(connection, "card.set", current.adapter, now, digest=card["digest"])
    return _view(current.adapter, edit.markdown, is_edited=True, updated_at=now)


def drop_card(services: HubServices, adapter: AdapterName) -> None:
    """Forget an adapter's edited card; harmless where it has none. Raises :class:`AdapterNotFound`."""
    with writing(services.engine) as connection:
        named = catalog.find_adapter(connection, adapter).adapter
        audit.note(connection, "card.delete", named)
        catalog.drop_card(connection, catalog.lock_adapter_id(connection, adapter))
