"""How Alembic runs inside the server: on the connection, and in the transaction, that `Database.migrate` opened."""

from __future__ import annotations

from alembic import context

from holdfast_server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
