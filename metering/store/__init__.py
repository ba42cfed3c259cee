"""Postgres: the only hall that speaks SQL."""
