"""Small integers for what repeats: sources, projects, seats and series, each written once."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import psycopg

from metering.frames.usage import DIMENSIONS

#: The small tables of texts and the name of their column; the id is `<column>_id`. Id 0 means none.
_TABLES: Final = {"sources": "source", "projects": "project", "seats": "seat"}


class Names:
    """What one worker remembers of the small tables. Bounded; what it forgets it asks again.

    Every row is written in a short transaction of its own, before the batch that points at it, in sorted
    order. A row that no batch came to point at is harmless: it names a combination and counts nothing.
    """

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], entries_max: int) -> None:
        """`connection` is in autocommit; `entries_max` bounds each table's memory."""
        self._connection = connection
        self._entries_max = entries_max
        self._texts: dict[str, dict[str, int]] = {table: {} for table in _TABLES}
        self._series: dict[bytes, int] = {}

    def ids(self, table: str, texts: Iterable[str]) -> Mapping[str, int]:
        """The id of every text, made where there is none."""
        known = self._texts[table]
        wanted = set(texts)
        missing = sorted(text for text in wanted if text not in known)
        if missing:
            if len(known) + len(missing) > self._entries_max:
                known.clear()
                missing = sorted(wanted)
            column = _TABLES[table]
            select = f"SELECT {column}, {column}_id FROM {table} WHERE {column} = ANY(%s)"
            found = dict(self._connection.execute(select, (missing,)).fetchall())
            absent = [text for text in missing if text not in found]
            if absent:
                with self._connection.transaction():
                    self._connection.execute(
                        f"INSERT INTO {table} ({column}) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING",
                        (absent,),
                    )
                found.update(self._connection.execute(select, (absent,)).fetchall())
            known.update(found)
        return known

    def known_series(self, digests: Iterable[bytes]) -> Mapping[bytes, int]:
        """The ids of those series that exist already."""
        known = self._series
        wanted = set(digests)
        missing = [digest for digest in wanted if digest not in known]
        if missing:
            if len(known) + len(missing) > self._entries_max:
                known.clear()
                missing = list(wanted)
            known.update(self._lookup(missing))
        return known

    def make_series(self, rows: Mapping[bytes, tuple[Any, ...]]) -> Mapping[bytes, int]:
        """Make the series of `rows`: digest -> values in the order of frames.DIMENSIONS."""
        ordered = sorted(rows)
        columns = [[rows[digest][place] for digest in ordered] for place in range(len(DIMENSIONS))]
        arrays = ", ".join(
            "%s::int[]" if name == "context_breakpoint" else "%s::text[]" for name in DIMENSIONS
        )
        with self._connection.transaction():
            self._connection.execute(
                f"INSERT INTO series (series_digest, {', '.join(DIMENSIONS)}) "
                f"SELECT encode(digest, 'hex')::uuid, {', '.join(DIMENSIONS)} "
                f"FROM unnest(%s::bytea[], {arrays}) AS new (digest, {', '.join(DIMENSIONS)}) ON CONFLICT DO NOTHING",
                (ordered, *columns),
            )
        self._series.update(self._lookup(ordered))
        return self._series

    def _lookup(self, digests: list[bytes]) -> dict[bytes, int]:
        rows = self._connection.execute(
            "SELECT decode(replace(series_digest::text, '-', ''), 'hex'), series_id FROM series "
            "WHERE series_digest = ANY(SELECT encode(digest, 'hex')::uuid FROM unnest(%s::bytea[]) AS digest)",
            (digests,),
        ).fetchall()
        return {bytes(digest): series_id for digest, series_id in rows}
