"""The migrations make exactly the tables that the code uses, on SQLite and on PostgreSQL, and can be undone."""

from concurrent.futures import ThreadPoolExecutor

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, Table, inspect

from hub import catalog
from infra import auth
from infra.database import METADATA, make_engine, migration_config, upgrade
from orchestrator.ledger import federation_tables, tables

MODULES = (auth, catalog, tables, federation_tables)
TABLES = {table.name for module in MODULES for table in vars(module).values() if isinstance(table, Table)}


def differences(engine: Engine) -> object:
    """What Alembic would change to bring the database to the code."""
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA)


def test_upgrading_makes_what_the_code_uses(database_url: str) -> None:
    """Nothing more, nothing less; again is harmless."""
    engine = make_engine(database_url)
    for _ in range(2):
        upgrade(engine)
        assert differences(engine) == []
    assert set(inspect(engine).get_table_names()) == {*TABLES, "alembic_version"}
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
