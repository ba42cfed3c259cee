"""Alembic migrations: numbered, readable, one step each."""
