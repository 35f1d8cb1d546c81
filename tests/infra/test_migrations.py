"""The migrations make exactly the tables that the code uses, on SQLite and on PostgreSQL, and can be undone."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, func, inspect, make_url, select

from hub import catalog
from infra import audit, auth
from infra.database import METADATA, MIGRATION_LOCK, make_engine, migration_config, upgrade
from orchestrator.ledger import federation_tables, tables
from tests.servers import PostgresServer

MODULES = (audit, auth, catalog, tables, federation_tables)
TABLES = {table.name for module in MODULES for table in vars(module).values() if isinstance(table, Table)}


def differences(engine: Engine) -> object:
    """What Alembic would change to bring the database to the code."""
    with engine.connect() as connection:
        options = {"compare_type": True, "include_name": lambda name, *_: not is_full_text(name)}
        return compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)


def is_full_text(name: str | None) -> bool:
    """Whether a table or index is of full text, of which each database has its own kind; the tests of the search show what it does."""
    return (name or "").startswith(("listing_words", "ix_listings_words"))


def tables_of(engine: Engine) -> set[str]:
    return {name for name in inspect(engine).get_table_names() if not is_full_text(name)}


def test_upgrading_makes_what_the_code_uses(database_url: str) -> None:
    """Nothing more, nothing less; again is harmless."""
    engine = make_engine(database_url)
    for _ in range(2):
        upgrade(engine)
        assert differences(engine) == []
    assert tables_of(engine) == {*TABLES, "alembic_version"}
    engine.dispose()


def test_every_step_can_be_undone_and_done_again(database_url: str) -> None:
    """One by one down to nothing, and up again."""
    engine = make_engine(database_url)
    upgrade(engine)
    for _ in list(ScriptDirectory.from_config(migration_config()).walk_revisions()):
        with engine.connect().execution_options(writer=True) as connection, connection.begin():
            command.downgrade(migration_config(connection), "-1")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    upgrade(engine)
    assert differences(engine) == []
    engine.dispose()


def test_the_steps_are_a_line() -> None:
    """One head, one base, in the order of their names."""
    revisions = [script.revision for script in ScriptDirectory.from_config(migration_config()).walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)
    assert len(ScriptDirectory.from_config(migration_config()).get_heads()) == 1


def test_several_processes_may_upgrade_at_once(database_url: str) -> None:
    """As services do that start together."""
    engines = [make_engine(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(upgrade, engines)) == [None] * 4
    assert differences(engines[0]) == []
    for engine in engines:
        engine.dispose()


def test_what_was_stored_before_is_held_as_it_is_named(database_url: str) -> None:
    """Versions, data sets, checkpoints and deliveries of the time before holds stay where they are needed."""
    engine = make_engine(database_url)
    with engine.connect().execution_options(writer=True) as connection, connection.begin():
        command.upgrade(migration_config(connection), "0005")
        _insert_old_rows(connection)
    upgrade(engine)
    with engine.connect() as connection:
        held = {(digest[7:8], holder) for digest, holder in connection.execute(select(catalog.HOLDS.c.digest, catalog.HOLDS.c.holder))}
        sizes = {digest[7:8]: size for digest, size in connection.execute(select(catalog.BLOBS.c.digest, catalog.BLOBS.c.size))}
        opened = connection.execute(select(tables.JOBS.c.adapter_key, tables.JOBS.c.namespace_key, tables.JOBS.c.checkpoint_step)).one()
        is_private = connection.execute(select(catalog.ADAPTERS.c.is_private)).scalar_one()
    assert held == {("a", "version:job:1"), ("b", "job:1"), ("c", "checkpoint:1"), ("c", "delivery:1"), ("d", "delivery:1")}
    assert sizes == {"a": 3, "b": None, "c": 5, "d": None}
    assert (is_private, *opened) == (False, "local/n", "local", 4)
    engine.dispose()


def _insert_old_rows(connection: Connection) -> None:
    a, b, c, d = (f"sha256:{letter * 64}" for letter in "abcd")
    manifest = json.dumps({"layers": [{"digest": a, "size": 3}]})
    spec = json.dumps({"datasets": [{"path": b}], "test_datasets": [{"path": "left.jsonl"}]})
    moment = "'2026-01-01 00:00:00+00:00'" if connection.dialect.name == "postgresql" else "'2026-01-01 00:00:00'"
    statements = [
        "INSERT INTO adapters (id, key, namespace, name, latest_number, next_number, created_at, updated_at)"
        f" VALUES (1, 'a/b', 'a', 'b', 1, 2, {moment}, {moment})",
        f"INSERT INTO versions VALUES (1, 1, 1, 'job:1', '{manifest}', '{a}', 'm', 'wegeft', 1, 3, '{{}}', {moment}, 'ada')",
        "INSERT INTO jobs (id, name, owner, token_id, state, priority, queue_rank, spec, request_digest, created_at, run_after, attempt,"
        " restarts, preemptions, lease_token, step, last_sequence, resume_from) VALUES ('1', 'n', 'o', 't', 'running', 1, -1,"
        f" '{spec}', 'd', {moment}, {moment}, 1, 0, 0, 1, 0, 0, '{json.dumps({'step': 4, 'files': [{'digest': c, 'size': 5}]})}')",
        *(f"INSERT INTO job_blobs VALUES ('1', '{digest}')" for digest in (c, d)),
    ]
    for statement in statements:
        connection.exec_driver_sql(statement)


def test_upgrading_outlasts_the_time_that_a_role_gives_to_statements(postgres_server: PostgresServer) -> None:
    """Else a hub whose requests are bounded so could never start again after an upgrade of a large catalog; here another one upgrades."""
    url = make_url(postgres_server.new_database()).update_query_dict({"options": "-c statement_timeout=300"})
    engine = make_engine(url.render_as_string(hide_password=False))
    with ThreadPoolExecutor() as threads:
        with engine.begin() as other:
            other.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            upgraded = threads.submit(upgrade, engine)
            time.sleep(0.6)
        upgraded.result()
    assert tables_of(engine) == {*TABLES, "alembic_version"}
    engine.dispose()
