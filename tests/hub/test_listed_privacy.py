"""Who sees what in lists and facets, while adapters are published, hidden, shown, signed and deleted, and members come and go."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import get_args

import pytest
from sqlalchemy import Connection, Engine, select

from hub import catalog
from hub.catalog.organisations import create_organisation, remove_member, set_member
from hub.catalog.repositories import create_repository, delete_adapter
from hub.catalog.search_plan import Wish, ways_to
from hub.catalog.visibility import seen_by, set_visibility
from hub.description import Description
from hub.provenance import publish_keys
from hub.signing import Signer
from infra.auth import Principal, Role, create_token
from infra.database import reading, writing
from infra.principals import Scope
from tests.databases import open_database
from tests.hub.cataloguing import NOW, keep_files, publication
from wegeft.contracts.adapter import AdapterName, AdapterRef
from wegeft.contracts.errors import WegeftError
from wegeft.contracts.signing_keys import SigningKey

STEPS, CHECKED_EVERY = 60, 5
NAMES = tuple(AdapterName(namespace=namespace, name=name) for namespace in ("Acme", "other", "open") for name in ("x", "y", "z"))
ADA, BOB, EVE = (Principal(name=name, role=Role.WRITE, token_id=name) for name in ("ada", "bob", "eve"))
ROOT = Principal(name="root", role=Role.ADMIN, token_id="root")
SCOPED = Principal(name="ada", role=Role.WRITE, token_id="scoped", scopes=(Scope(role=Role.READ, namespace="acme", name="x"),))
READERS: tuple[Principal | None, ...] = (None, ADA, BOB, EVE, ROOT, SCOPED)
WANTED = (
    catalog.AdapterFilter(),
    catalog.AdapterFilter(search="sums"),
    catalog.AdapterFilter(tags=("math",)),
    catalog.AdapterFilter(tags=("math",), metrics=(catalog.parse_bound("eval_loss<1"),), search="sum"),
)


class World:
    """A catalog, and what must be true of it."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.random = engine, random.Random(seed)
        self.private: dict[AdapterName, bool] = {}
        """Of every adapter that is listed."""
        self.made: dict[AdapterName, bool] = {}
        """Of every adapter that somebody has made and nobody has published to."""
        self.members = {"acme": {"ada"}, "other": {"bob"}, "open": set[str]()}
        self.count = self.hidden = 0
        publish_keys(engine, Signer(key=SigningKey(b"\x01" * 32)), NOW)
        with writing(engine) as connection:
            create_token(connection, "eve", Role.WRITE, NOW)
            create_organisation(connection, "Acme", ADA, NOW, is_private_by_default=True)
            create_organisation(connection, "other", BOB, NOW, is_private_by_default=False)

    def step(self) -> None:
        adapter = self.random.choice(NAMES)
        acts = (self.publish, self.publish, self.flip, self.flip, self.delete, self.make, self.move_member, self.sign)
        with writing(self.engine) as connection:
            self.random.choice(acts)(connection, adapter)

    def publish(self, connection: Connection, adapter: AdapterName) -> None:
        self.count += 1
        keep_files(connection)
        told = Description(tags=("math", "sums"), text="sums of numbers")
        catalog.publish(connection, publication(f"job:{self.count}", adapter, description=told), NOW)
        if adapter not in self.private:
            self.private[adapter] = self.made.pop(adapter, adapter.namespace == "Acme")

    def flip(self, connection: Connection, adapter: AdapterName) -> None:
        is_private = self.random.random() < 0.5
        if adapter in self.private and not (is_private and adapter.namespace == "open"):
            set_visibility(connection, adapter, NOW, is_private=is_private)
            self.private[adapter] = is_private

    def delete(self, connection: Connection, adapter: AdapterName) -> None:
        if self.private.pop(adapter, None) is not None:
            delete_adapter(connection, adapter, NOW + timedelta(days=1))

    def make(self, connection: Connection, adapter: AdapterName) -> None:
        if adapter not in self.private and adapter.namespace != "open":
            visibility = self.random.choice((None, "private", "public"))
            try:
                with connection.begin_nested():
                    create_repository(connection, adapter, "ada", NOW, visibility)
                self.made[adapter] = visibility == "private" if visibility else adapter.namespace == "Acme"
            except WegeftError as error:
                assert "already" in error.message  # noqa: PT017 - made before, and empty since

    def move_member(self, connection: Connection, _: AdapterName) -> None:
        if "eve" in self.members["acme"]:
            remove_member(connection, "acme", "eve", ADA)
            self.members["acme"].discard("eve")
        else:
            set_member(connection, "acme", "eve", Role.READ, ADA, NOW)
            self.members["acme"].add("eve")

    def sign(self, connection: Connection, adapter: AdapterName) -> None:
        if adapter in self.private:
            latest = catalog.resolve(connection, AdapterRef(adapter=adapter))
            version_id = connection.execute(select(catalog.VERSIONS.c.id).where(catalog.VERSIONS.c.source == latest.source)).scalar_one()
            catalog.add_signature(connection, version_id, "ed25519", ("{}", catalog.list_keys(connection).keys[0].id), NOW)

    def visible(self, reader: Principal | None) -> list[str]:
        return sorted((str(adapter) for adapter in self.private if self._sees(reader, adapter)), key=str.lower)

    def _sees(self, reader: Principal | None, adapter: AdapterName) -> bool:
        if not self.private[adapter] or reader is ROOT:
            return True
        is_theirs = reader is not None and reader.account in self.members[adapter.namespace.lower()]
        return is_theirs and (reader is not SCOPED or (adapter.namespace, adapter.name) == ("Acme", "x"))

    def check(self) -> None:
        self.hidden += len(self.private) - len(self.visible(None))
        with reading(self.engine) as connection:
            for reader in READERS:
                wanted, order = self.random.choice(WANTED), self.random.choice(get_args(catalog.Order))
                listed = catalog.list_adapters(connection, 50, wanted=wanted, order=order, reader=reader).adapters
                assert sorted((one.adapter for one in listed), key=str.lower) == self.visible(reader)
                assert catalog.count_facets(connection, wanted, reader=reader).counted == len(listed)
                # Whichever way the plan takes when there are more of them.
                selected = random.Random(self.count).choice(ways_to(connection, wanted, Wish(order=order))).select()
                found = connection.execute(selected.query(["key"]).where(seen_by(reader, selected.listed)).order_by(selected.key))
                assert list(found.scalars()) == [name.lower() for name in self.visible(reader)]
                told = {one.adapter: one.visibility == "private" for one in listed}
                assert told == {str(name): self.private[name] for name in self.private if str(name) in told}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


def test_nobody_sees_what_is_not_for_them(engine: Engine) -> None:
    world = World(engine, seed=1)
    for step in range(STEPS):
        world.step()
        if step % CHECKED_EVERY == 0:
            world.check()
    assert world.hidden > STEPS // CHECKED_EVERY


def test_a_tag_is_found_whole_and_as_it_is(engine: Engine) -> None:
    """Neither a part of one, nor two in a row, nor none."""
    with writing(engine) as connection:
        keep_files(connection)
        for number, tags in enumerate((("math", "maths"), ("math-2",), ())):
            adapter = AdapterName(namespace="demo", name=f"n{number}")
            catalog.publish(connection, publication(f"job:{number}", adapter, description=Description(tags=tags, text="sums")), NOW)
    expected = {"math": ["demo/n0"], "maths": ["demo/n0"], "mat": [], "math-2": ["demo/n1"], "": [], "-2": [], "MATH": ["demo/n0"]}
    with reading(engine) as connection:
        for tag, names in expected.items():
            for others in ({}, {"search": "sums"}, {"rank": 8, "method": "wegeft"}):
                wanted = catalog.AdapterFilter(tags=(tag,), **others)
                assert [one.adapter for one in catalog.list_adapters(connection, 9, wanted=wanted).adapters] == names, tag
