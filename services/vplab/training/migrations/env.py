"""Runs the migrations on the connection and in the transaction that ``runtime.migrations`` opened."""

from alembic import context

from vplab.training.backends.sql_schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite cannot alter most things in place; later migrations rebuild the table instead.
    render_as_batch=True,
)
context.run_migrations()
