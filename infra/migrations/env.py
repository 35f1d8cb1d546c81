"""Alembic's entry: runs our migrations over the connection that ``infra.database`` hands in."""

from alembic import context

from infra.database import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=connection.dialect.name == "sqlite", compare_type=True)
with context.begin_transaction():
    context.run_migrations()
