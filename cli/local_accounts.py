"""Accounts of this machine's own service, without asking it: the administrator's token in the home, and work for the operator."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from cli.home import Home
from infra.settings import load_settings
from wegeft.contracts.errors import Unauthenticated

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def keep_token(engine: Engine, home: Home, now: datetime) -> None:
    """Make an administrator's token and keep it in the home, unless the one there is good."""
    from infra.auth import create_token
    from infra.database import writing

    if _has_good_token(engine, home, now):
        return
    with writing(engine) as connection:
        _, token = create_token(connection, f"home of {socket.gethostname()}"[:64], "admin", now)
        home.write_token(token)


def _has_good_token(engine: Engine, home: Home, now: datetime) -> bool:
    from infra.auth import authenticate
    from infra.database import reading

    kept = home.read_token()
    if not kept:
        return False
    try:
        with reading(engine) as connection:
            authenticate(connection, kept, now)
    except Unauthenticated:
        return False
    return True


@contextmanager
def local_accounts() -> Iterator[Connection]:
    """Open one transaction on the accounts of the database that the settings name; its tables are made where need be."""
    from infra.database import make_engine, upgrade, writing

    settings = load_settings()
    Home(settings.home).prepare()
    engine = make_engine(settings.database)
    try:
        upgrade(engine)
        with writing(engine) as connection:
            yield connection
    finally:
        engine.dispose()
