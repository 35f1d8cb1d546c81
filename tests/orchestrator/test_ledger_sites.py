"""Invitations, sites and nonces, on SQLite and PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import Engine, select

from infra.database import reading, writing
from orchestrator.ledger import sites
from orchestrator.ledger.federation_tables import INVITATIONS, NONCES
from tests.orchestrator.samples import add_job, at
from wegeft.contracts.errors import Conflict, NotFound, Unauthenticated
from wegeft.contracts.federation import Site, SiteState
from wegeft.contracts.signatures import public_key_of

KEY, OTHER = public_key_of(bytes(32)), public_key_of(bytes([1]) * 32)


def invite(engine: Engine, job: str, name: str = "site-a", token: str = "t1", now: datetime = at(0)) -> None:  # noqa: B008 - a constant
    with writing(engine) as connection:
        sites.invite(connection, job, name, token, (now, at(3600)))


def enrol(engine: Engine, token: str = "t1", pseudonym: str = "s-1", key: str = KEY, seconds: float = 1) -> Site:
    with writing(engine) as connection:
        return sites.enrol(connection, token, (pseudonym, key, 100), at(seconds))[1]


def test_an_invited_site_enrols_once_and_waits_for_approval(engine: Engine) -> None:
    job = add_job(engine)
    invite(engine, job)
    site = enrol(engine)
    assert (site.name, site.pseudonym, site.state, site.max_examples) == ("site-a", "s-1", SiteState.PENDING, 100)
    with reading(engine) as connection:
        assert sites.list_sites(connection, job) == (site,)
        assert "t1" not in str(connection.execute(select(INVITATIONS)).all())


def test_a_lost_answer_can_be_asked_for_once_more_but_only_with_the_same_key(engine: Engine) -> None:
    invite(engine, add_job(engine))
    first = enrol(engine)
    assert enrol(engine, pseudonym="s-2", seconds=9) == first
    with pytest.raises(Unauthenticated, match="another key"):
        enrol(engine, key=OTHER)


@pytest.mark.parametrize(("token", "seconds"), [("wrong", 1), ("t1", 3600), ("t1", 9999)])
def test_unknown_and_expired_invitations_are_refused(engine: Engine, token: str, seconds: float) -> None:
    invite(engine, add_job(engine))
    with pytest.raises(Unauthenticated, match="unknown or has expired"):
        enrol(engine, token, seconds=seconds)


def test_a_new_invitation_replaces_an_unused_one_and_never_a_used_one(engine: Engine) -> None:
    job = add_job(engine)
    invite(engine, job, token="t1")
    invite(engine, job, token="t2")
    with pytest.raises(Unauthenticated):
        enrol(engine, "t1")
    enrol(engine, "t2")
    with pytest.raises(Conflict, match="enrolled already"):
        invite(engine, job, token="t3")


def test_one_key_is_one_site(engine: Engine) -> None:
    """A Sybil cannot enrol under two names with one key; the second invitation stays unused."""
    job = add_job(engine)
    invite(engine, job, "site-a", "t1")
    invite(engine, job, "site-b", "t2")
    enrol(engine, "t1")
    with pytest.raises(Conflict, match="enrolled already"):
        enrol(engine, "t2", "s-2")
    assert enrol(engine, "t2", "s-2", OTHER).name == "site-b"


def test_two_enrolments_at_once_make_one_site(engine: Engine) -> None:
    job = add_job(engine)
    invite(engine, job)

    def attempt(index: int) -> str:
        try:
            return enrol(engine, pseudonym=f"s-{index}", key=public_key_of(bytes([index]) * 32)).pseudonym
        except Unauthenticated:
            return ""

    with ThreadPoolExecutor(4) as pool:
        made = [name for name in pool.map(attempt, range(4)) if name]
    with reading(engine) as connection:
        assert [site.pseudonym for site in sites.list_sites(connection, job)] == made
    assert len(made) == 1


@pytest.mark.parametrize(
    ("path", "legal"),
    [
        ([SiteState.APPROVED], True),
        ([SiteState.REVOKED], True),
        ([SiteState.APPROVED, SiteState.APPROVED], True),
        ([SiteState.APPROVED, SiteState.REVOKED, SiteState.REVOKED], True),
        ([SiteState.REVOKED, SiteState.APPROVED], False),
        ([SiteState.APPROVED, SiteState.PENDING], False),
    ],
)
def test_a_site_is_approved_and_revoked_and_never_comes_back(engine: Engine, path: list[SiteState], legal: bool) -> None:
    invite(engine, add_job(engine))
    enrol(engine)
    for state in path[:-1]:
        with writing(engine) as connection:
            assert sites.move_site(connection, "s-1", state).state is state
    with writing(engine) as connection:
        if legal:
            assert sites.move_site(connection, "s-1", path[-1]).state is path[-1]
        else:
            with pytest.raises(Conflict, match="cannot become"):
                sites.move_site(connection, "s-1", path[-1])


def test_a_site_that_is_not_there_is_not_found(engine: Engine) -> None:
    with reading(engine) as connection, pytest.raises(NotFound):
        sites.find_site(connection, "nobody")


def use(engine: Engine, nonce: str, seconds: float, site: str = "s-1") -> bool:
    try:
        with writing(engine) as connection:
            sites.use_nonce(connection, site, nonce, at(seconds))
    except Unauthenticated:
        return False
    return True


def test_a_request_passes_once(engine: Engine) -> None:
    job = add_job(engine)
    invite(engine, job, "site-a", "t1")
    invite(engine, job, "site-b", "t2")
    enrol(engine, "t1")
    enrol(engine, "t2", "s-2", OTHER)
    assert [use(engine, "n1", 1), use(engine, "n1", 2), use(engine, "n2", 3), use(engine, "n1", 4, "s-2")] == [True, False, True, True]
    assert not use(engine, "n1", 600)  # as long as its time could still pass
    assert use(engine, "n9", 700)
    with reading(engine) as connection:
        assert [row.nonce for row in connection.execute(select(NONCES)).all()] == ["n9"]


def test_of_copies_of_a_request_at_once_one_passes(engine: Engine) -> None:
    invite(engine, add_job(engine))
    enrol(engine)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: use(engine, "n1", 1), range(4))) == 1
