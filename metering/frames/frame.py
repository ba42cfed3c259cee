"""What a frame declares: columns, key, laws; and the types that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import polars as pl

from metering.errors import FrameBroken

INSTANT: Final = pl.Datetime("us", "UTC")
#: Sums of quantities: Int64 would wrap silently.
SUM: Final = pl.Int128


@dataclass(frozen=True)
class Frame:
    """The declaration of a frame: columns with types, which may be null, the key, and laws on every row.

    >>> FRAME.conform(frame)   # every function of the core ends on this promise
    """

    name: str
    columns: Mapping[str, pl.DataType | type[pl.DataType]]
    key: tuple[str, ...] = ()
    nullable: frozenset[str] = frozenset()
    laws: Mapping[str, pl.Expr] = field(default_factory=dict)

    def empty(self) -> pl.DataFrame:
        """A frame of this shape without rows."""
        return pl.DataFrame(schema=dict(self.columns))

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return `frame` with the declared columns in order, sorted by the key, or raise FrameBroken by name."""
        missing = [name for name in self.columns if name not in frame.columns]
        if missing:
            raise FrameBroken(f"{self.name}: column {missing[0]} is missing; it has {frame.columns}")
        frame = frame.select(list(self.columns))
        schema = frame.schema
        for name, dtype in self.columns.items():
            if schema[name] != dtype:
                raise FrameBroken(f"{self.name}.{name}: is {schema[name]}, declared {dtype}")
            if name not in self.nullable and frame[name].null_count():
                row = frame.filter(pl.col(name).is_null()).row(0, named=True)
                raise FrameBroken(f"{self.name}.{name}: is null in {row}; it is not declared nullable")
        if self.key:
            twice = _repeats(frame, self.key)
            if twice is None:
                frame = frame.sort(self.key, nulls_last=False)
                twice = _repeats(frame, self.key)
            assert twice is not None, f"{self.name}: is not sorted by {self.key} after a sort"
            if len(twice):
                row = frame.row(twice[0], named=True)
                raise FrameBroken(f"{self.name}: the key {self.key} occurs twice: {row}")
        for law, holds in self.laws.items():
            if not frame.select(holds.all()).item():
                broken = frame.filter(~holds)
                raise FrameBroken(f"{self.name}: '{law}' does not hold for {broken.row(0, named=True)}")
        return frame

    def end_to_end(self, parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The rows of parts that `conform` returned, as `conform` would return them all.

        Parts that follow one another in the order of the key, as days do, are only looked at where they meet.
        """
        parts = [part for part in parts if part.height]
        rows = pl.concat([self.empty(), *parts])
        meet = (pl.concat([one.tail(1), two.head(1)]) for one, two in pairwise(parts))
        ascending = self.key and all(_is_empty(_repeats(both, self.key)) for both in meet)
        return rows if ascending else self.conform(rows)


def _is_empty(twice: pl.Series | None) -> bool:
    return twice is not None and twice.is_empty()


def _repeats(frame: pl.DataFrame, key: Sequence[str]) -> pl.Series | None:
    """The rows whose key is that of the row above; None where a key is less than the one above. Nulls first.

    Each column is compared only in the rows that the columns before it left tied, which costs a fraction of
    sorting or hashing whole keys.
    """
    tied = pl.int_range(1, frame.height, eager=True)
    above, below = pl.col("above"), pl.col("below")
    for name in key:
        pairs = pl.DataFrame({"above": frame[name].gather(tied - 1), "below": frame[name].gather(tied)})
        less = (below < above).fill_null(below.is_null() & above.is_not_null())
        if pairs.select(less.any()).item():
            return None
        tied = tied.filter(pairs.select(below.eq_missing(above)).to_series())
    return tied


SPAN: Final = {"effective_from": INSTANT, "effective_until": INSTANT}
SPAN_LAW: Final = {
    "ends after it starts": pl.col("effective_until").is_null()
    | (pl.col("effective_until") > pl.col("effective_from"))
}
