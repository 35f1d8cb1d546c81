"""Who may take part in a federation: invitations, enrolled sites, and the nonces of their requests.

A token is used once and kept as a hash; a private key never comes here. A site is known by its pseudonym wherever a member can look.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from infra import audit
from infra.auth import hash_secret
from orchestrator.ledger.federation_tables import INVITATIONS, NONCES, SITES
from orchestrator.ledger.site_keys import check_never_replaced
from wegeft.contracts.errors import Conflict, NotFound, Unauthenticated
from wegeft.contracts.federation import Site, SiteState
from wegeft.contracts.signatures import CLOCK_TOLERANCE

_MOVES = {
    (SiteState.PENDING, SiteState.APPROVED),
    (SiteState.PENDING, SiteState.REVOKED),
    (SiteState.APPROVED, SiteState.REVOKED),
}


def invite(
    connection: Connection, job_id: str, name: str, token: str, times: tuple[datetime, datetime], *, is_approval: bool = False
) -> None:
    """Let one site of this name enrol once with ``token``; ``times``: now, and when it expires. A new invitation replaces an unused one.

    ``is_approval`` says that the site which takes it up needs no other approval. Raises :class:`Conflict` where a site of that name has
    enrolled.
    """
    is_theirs = (INVITATIONS.c.job_id == job_id) & (INVITATIONS.c.name == name)
    row = connection.execute(select(INVITATIONS.c.used_at).where(is_theirs)).one_or_none()
    if row is not None and row.used_at is not None:
        raise Conflict("a site of this name has enrolled already", path="name", value=name, hint="revoke it, or choose another name")
    connection.execute(delete(INVITATIONS).where(is_theirs))
    values = {"job_id": job_id, "name": name, "token_hash": hash_secret(token), "is_approval": is_approval}
    connection.execute(insert(INVITATIONS).values(**values, invited_at=times[0], expires_at=times[1]))


def withdraw(connection: Connection, job_id: str, name: str) -> None:
    """Make an unused invitation worthless; raise :class:`NotFound` where there is none, and :class:`Conflict` where it was used."""
    is_theirs = (INVITATIONS.c.job_id == job_id) & (INVITATIONS.c.name == name)
    if connection.execute(delete(INVITATIONS).where(is_theirs, INVITATIONS.c.used_at.is_(None))).rowcount == 1:
        return
    if connection.execute(select(INVITATIONS.c.name).where(is_theirs)).first() is None:
        raise NotFound("there is no such invitation", path="name", value=name)
    raise Conflict("the site has enrolled already", path="name", value=name, hint="revoke the site")


def find_invited_job(connection: Connection, token: str) -> str | None:
    """Return the job that an invitation is for, used or not; None where it is unknown."""
    query = select(INVITATIONS.c.job_id).where(INVITATIONS.c.token_hash == hash_secret(token))
    return connection.execute(query).scalar_one_or_none()


def find_invitation(connection: Connection, token: str, now: datetime) -> tuple[str, str, bool]:
    """Return job, name and whether taking it up is approval enough; raise :class:`Unauthenticated` where it cannot be taken up."""
    row = connection.execute(select(INVITATIONS).where(INVITATIONS.c.token_hash == hash_secret(token))).one_or_none()
    if row is None or (row.used_at is None and now >= row.expires_at):
        raise Unauthenticated("the invitation is unknown or has expired", hint="ask for a new one")
    return row.job_id, row.name, row.is_approval


def enrol(connection: Connection, token: str, candidate: tuple[str, str, int], now: datetime) -> tuple[str, Site]:
    """Return the job and the new site, which waits for approval unless its invitation was one.

    ``candidate``: its pseudonym, public key and most examples. The token is used up; the same token and key again give the same site, so
    that a lost answer can be asked for once more. Raises :class:`Unauthenticated` for a token that is unknown, expired or used with another
    key, and :class:`Conflict` for a known key.
    """
    pseudonym, public_key, max_examples = candidate
    row = connection.execute(select(INVITATIONS).where(INVITATIONS.c.token_hash == hash_secret(token))).one_or_none()
    if row is None or (row.used_at is None and now >= row.expires_at):
        raise Unauthenticated("the invitation is unknown or has expired", hint="ask for a new one")
    if row.used_at is not None:
        return row.job_id, _same_site(connection, row, public_key)
    check_never_replaced(connection, public_key)
    used = update(INVITATIONS).where(INVITATIONS.c.token_hash == row.token_hash, INVITATIONS.c.used_at.is_(None)).values(used_at=now)
    if connection.execute(used).rowcount != 1:
        raise Unauthenticated("the invitation was used a moment ago")
    values = {"pseudonym": pseudonym, "job_id": row.job_id, "name": row.name, "public_key": public_key, "max_examples": max_examples}
    state = SiteState.APPROVED if row.is_approval else SiteState.PENDING
    try:
        connection.execute(insert(SITES).values(**values, state=state.value, enrolled_at=now, seen_at=now))
    except IntegrityError as error:
        raise Conflict(
            "the key is enrolled already", path="public_key", hint="a site makes a key of its own for each federation"
        ) from error
    audit.note(connection, "site.enrol", f"{row.job_id}/{row.name}", now, site=pseudonym, public_key=public_key)
    return row.job_id, find_site(connection, pseudonym)


def _same_site(connection: Connection, invitation: Row[tuple[object, ...]], public_key: str) -> Site:
    is_theirs = (SITES.c.job_id == invitation.job_id) & (SITES.c.name == invitation.name) & (SITES.c.public_key == public_key)
    row = connection.execute(select(SITES).where(is_theirs)).one_or_none()
    if row is None:
        raise Unauthenticated("the invitation was used by another key", hint="ask for a new one")
    return _site(row)


def find_site(connection: Connection, pseudonym: str) -> Site:
    """Return a site; raise :class:`NotFound`."""
    row = connection.execute(select(SITES).where(SITES.c.pseudonym == pseudonym)).one_or_none()
    if row is None:
        raise NotFound("there is no such site", path="site", value=pseudonym)
    return _site(row)


def find_job_of(connection: Connection, pseudonym: str) -> str:
    """Return the job whose federation a site is in; raise :class:`NotFound`."""
    job_id: str | None = connection.execute(select(SITES.c.job_id).where(SITES.c.pseudonym == pseudonym)).scalar_one_or_none()
    if job_id is None:
        raise NotFound("there is no such site", path="site", value=pseudonym)
    return job_id


def find_member(connection: Connection, job_id: str, pseudonym: str) -> Site | None:
    """Return a site of a federation; None where there is none."""
    row = connection.execute(select(SITES).where(SITES.c.job_id == job_id, SITES.c.pseudonym == pseudonym)).one_or_none()
    return None if row is None else _site(row)


def find_site_named(connection: Connection, job_id: str, name: str) -> Site:
    """Return a site by what its members call it; raise :class:`NotFound`."""
    row = connection.execute(select(SITES).where(SITES.c.job_id == job_id, SITES.c.name == name)).one_or_none()
    if row is None:
        raise NotFound("there is no such site in this federation", path="site", value=name)
    return _site(row)


def list_seen(connection: Connection, job_id: str) -> dict[str, datetime]:
    """Return when each site's last request came, by pseudonym."""
    rows = connection.execute(select(SITES.c.pseudonym, SITES.c.seen_at).where(SITES.c.job_id == job_id))
    return {row.pseudonym: row.seen_at for row in rows}


def list_sites(connection: Connection, job_id: str) -> tuple[Site, ...]:
    """Return all sites of a federation, by pseudonym."""
    rows: Sequence[Row[tuple[object, ...]]] = connection.execute(
        select(SITES).where(SITES.c.job_id == job_id).order_by(SITES.c.pseudonym)
    ).all()
    return tuple(_site(row) for row in rows)


def move_site(connection: Connection, pseudonym: str, state: SiteState) -> Site:
    """Approve or revoke a site; again is harmless. Raises :class:`Conflict` for what cannot be: nobody comes back from being revoked."""
    site = find_site(connection, pseudonym)
    if site.state is not state and (site.state, state) not in _MOVES:
        raise Conflict(f"a site that is {site.state} cannot become {state}", path="state", value=str(site.state))
    connection.execute(update(SITES).where(SITES.c.pseudonym == pseudonym).values(state=state.value))
    return find_site(connection, pseudonym)


def use_nonce(connection: Connection, pseudonym: str, nonce: str, now: datetime) -> None:
    """Remember a request, and that its site lives; raise :class:`Unauthenticated` where the same request has come before.

    Nonces are kept for twice the clocks' tolerance, after which the request's time alone refuses it.
    """
    connection.execute(delete(NONCES).where(NONCES.c.seen_at < now - 2 * CLOCK_TOLERANCE - timedelta(seconds=1)))
    try:
        connection.execute(insert(NONCES).values(pseudonym=pseudonym, nonce=nonce, seen_at=now))
    except IntegrityError as error:
        raise Unauthenticated("this very request has come before", path="nonce", hint="sign each request with a new nonce") from error
    connection.execute(update(SITES).where(SITES.c.pseudonym == pseudonym).values(seen_at=now))


def _site(row: Row[tuple[object, ...]]) -> Site:
    return Site(
        name=row.name,
        pseudonym=row.pseudonym,
        public_key=row.public_key,
        state=SiteState(row.state),
        max_examples=row.max_examples,
        enrolled_at=row.enrolled_at,
    )
