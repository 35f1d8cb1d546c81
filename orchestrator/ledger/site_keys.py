"""Keys of sites over time: a site has one at any moment, and one that was replaced is never a site's again."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from infra.auth import hash_secret
from orchestrator.ledger.federation_tables import FORMER_KEYS, ROTATIONS, SITES
from wegeft.contracts.errors import Conflict, Unauthenticated
from wegeft.contracts.federation import Site, SiteState

_OWN_KEY = "a site makes a key of its own for each federation, and a new one each time"


def order_rotation(connection: Connection, site: Site, token: str, person: str, expires_at: datetime) -> None:
    """Let a site bind a new key once with ``token``, in place of any other order; raise :class:`Conflict` where it is revoked."""
    if site.state is SiteState.REVOKED:
        raise Conflict("the site was revoked", path="site", value=site.name, hint="invite another one")
    connection.execute(delete(ROTATIONS).where(ROTATIONS.c.pseudonym == site.pseudonym))
    values = {"pseudonym": site.pseudonym, "token_hash": hash_secret(token), "person": person, "expires_at": expires_at}
    connection.execute(insert(ROTATIONS).values(values))


def hold_ordered(connection: Connection, token: str, public_key: str) -> str:
    """Return the pseudonym of the site that may bind a key with ``token``, held until the transaction ends.

    Raises :class:`Unauthenticated` where the token is unknown, or was used for another key.
    """
    row = connection.execute(select(ROTATIONS).where(ROTATIONS.c.token_hash == hash_secret(token))).one_or_none()
    if row is None:
        raise Unauthenticated("the token is unknown", path="token", hint="ask for a new one: wgctl federation rotate")
    held = select(SITES.c.public_key).where(SITES.c.pseudonym == row.pseudonym).with_for_update()
    now_bound = connection.execute(held).scalar_one()
    used = connection.execute(select(ROTATIONS.c.used_at).where(ROTATIONS.c.token_hash == row.token_hash)).scalar_one_or_none()
    if used is not None and now_bound != public_key:
        raise Unauthenticated("the token was used for another key", path="token", hint="if this site has that key, nothing is left to do")
    return str(row.pseudonym)


def bind_key(connection: Connection, pseudonym: str, public_key: str, now: datetime) -> bool:
    """Let a held site have a new key from now on; return False where it has it already.

    Raises :class:`Unauthenticated` where the token that :func:`hold_ordered` took has expired, and :class:`Conflict` for a key that is or
    was a site's.
    """
    order = connection.execute(select(ROTATIONS).where(ROTATIONS.c.pseudonym == pseudonym)).one()
    old, state = connection.execute(select(SITES.c.public_key, SITES.c.state).where(SITES.c.pseudonym == pseudonym)).one()
    if old == public_key:
        return False
    if now >= order.expires_at:
        raise Unauthenticated("the token has expired", path="token", hint="ask for a new one: wgctl federation rotate")
    if state == SiteState.REVOKED.value:
        raise Conflict("the site was revoked", path="site", value=pseudonym)
    check_never_replaced(connection, public_key)
    try:
        connection.execute(update(SITES).where(SITES.c.pseudonym == pseudonym).values(public_key=public_key))
    except IntegrityError as error:
        raise Conflict("the key is enrolled already", path="public_key", hint=_OWN_KEY) from error
    connection.execute(insert(FORMER_KEYS).values(public_key=old, pseudonym=pseudonym, replaced_at=now))
    connection.execute(update(ROTATIONS).where(ROTATIONS.c.pseudonym == pseudonym).values(used_at=now))
    return True


def check_never_replaced(connection: Connection, public_key: str) -> None:
    """Raise :class:`Conflict` for a key that a site had and has no more."""
    if connection.execute(select(FORMER_KEYS.c.pseudonym).where(FORMER_KEYS.c.public_key == public_key)).first() is not None:
        raise Conflict("the key was replaced, and is no site's any more", path="public_key", hint=_OWN_KEY)


def check_current(connection: Connection, site: Site) -> None:
    """Raise :class:`Unauthenticated` unless a site's key is the one that ``site`` has; it stays so until the transaction ends."""
    held = select(SITES.c.public_key).where(SITES.c.pseudonym == site.pseudonym).with_for_update(read=True)
    if connection.execute(held).scalar_one() != site.public_key:
        message = "the site has a new key since this request was signed"
        raise Unauthenticated(message, path="wegeft-signature", hint="sign with the new key")


def list_former_keys(connection: Connection, job_id: str) -> dict[str, tuple[tuple[str, datetime], ...]]:
    """Return every replaced key and until when it was good, by pseudonym, oldest first."""
    query = select(FORMER_KEYS).join(SITES, SITES.c.pseudonym == FORMER_KEYS.c.pseudonym).where(SITES.c.job_id == job_id)
    found: dict[str, list[tuple[str, datetime]]] = defaultdict(list)
    for row in connection.execute(query.order_by(FORMER_KEYS.c.replaced_at)):
        found[row.pseudonym].append((row.public_key, row.replaced_at))
    return {pseudonym: tuple(keys) for pseudonym, keys in found.items()}
