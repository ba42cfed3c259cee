"""Instants as producers write them: RFC 3339 text with a zone, read a column at a time."""

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

_DATE_AND_TIME: Final = 19  # bytes of 2026-10-31T23:59:59
_TEXT_BYTES_MAX: Final = 64
_DIGITS: Final = np.array([0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18])
_MONTH_DAYS: Final = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_DAY_US: Final = 86_400_000_000
#: 0001-01-01 and 10000-01-01 UTC: no Python instant lies outside.
_FIRST_US: Final = -62_135_596_800_000_000
_END_US: Final = 253_402_300_800_000_000

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.signedinteger]
Mask = npt.NDArray[np.bool_]


def byte_table(texts: pl.Series, width: int) -> Bytes:
    """The UTF-8 bytes of texts that are all `width` bytes long, as an (n, width) table."""
    joined = "".join(texts.to_list()).encode()
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), width)


def parse_instants(texts: pl.Series) -> pl.Series:
    """RFC 3339 texts -> instants (UTC, microseconds); null where a text is not one.

    A zone is required (`Z` or +hh:mm). Finer fractions are floored to the microsecond. A leap second (:60)
    is refused, for a moment must have one place on the time line; so is what lies outside of the years 1 to
    9999 in UTC.
    """
    micros = np.zeros(len(texts), dtype=np.int64)
    valid = np.zeros(len(texts), dtype=np.bool_)
    widths = texts.str.len_bytes().fill_null(0).to_numpy()
    for width in np.unique(widths).tolist():
        if not _DATE_AND_TIME < width <= _TEXT_BYTES_MAX:
            continue
        rows = np.flatnonzero(widths == width)
        same = texts if len(rows) == len(texts) else texts.gather(rows)
        table = byte_table(same, width)
        zulu = np.equal(table[:, -1] | 0x20, ord("z"))
        for zone_width, chosen in ((1, zulu), (6, ~zulu)):
            if width - zone_width < _DATE_AND_TIME or not chosen.any():
                continue
            part = table if chosen.all() else table[chosen]
            places = rows if chosen.all() else rows[chosen]
            micros[places], valid[places] = _parse_table(part, zone_width)
    valid &= (micros >= _FIRST_US) & (micros < _END_US)
    instants = pl.Series(texts.name, micros).cast(pl.Datetime("us", "UTC"))
    return instants if valid.all() else instants.zip_with(pl.Series(valid), instants.clear(len(texts)))


def _number(digits: Integers, start: int, until: int) -> Integers:
    number: Integers = digits[start]
    for place in range(start + 1, until):
        number = number * 10 + digits[place]
    return number


def _parse_table(table: Bytes, zone_width: int) -> tuple[Integers, Mask]:
    """Read texts of one width and one form of zone: microseconds since 1970, and which rows are valid."""
    # one row for each place of the text, and no wider numbers than there have to be
    places = np.ascontiguousarray(table.T)
    found = places[_DIGITS] - np.uint8(ord("0"))
    valid = (found <= 9).all(axis=0)
    for place, sign in ((4, "-"), (7, "-"), (13, ":"), (16, ":")):
        valid &= places[place] == ord(sign)
    valid &= (places[10] | 0x20) == ord("t")
    digits = np.where(valid, found, 1).astype(np.int32)
    year, month, day = _number(digits, 0, 4), _number(digits, 4, 6), _number(digits, 6, 8)
    hour, minute, second = _number(digits, 8, 10), _number(digits, 10, 12), _number(digits, 12, 14)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    month_days = _MONTH_DAYS[np.where(month <= 12, month, 0)] - ((month == 2) & ~leap)
    valid &= (year >= 1) & (day >= 1) & (day <= month_days) & (hour <= 23) & (minute <= 59) & (second <= 59)
    months = np.where(valid, year * 12 + month - 1 - 1970 * 12, 0)
    first = int(months.min(initial=0))
    known = np.arange(first, int(months.max(initial=0)) + 1)
    month_starts = known.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    days = month_starts[months - first] + (day - 1)
    micros = days * _DAY_US + (hour * 3600 + minute * 60 + second) * np.int64(1_000_000)

    fraction = places[_DATE_AND_TIME : len(places) - zone_width]
    if len(fraction):
        parts = fraction[1:] - np.uint8(ord("0"))
        valid &= (fraction[0] == ord(".")) & (len(parts) > 0) & (parts <= 9).all(axis=0)
        kept = parts[:6].astype(np.int32)
        if len(kept):
            micros = micros + _number(kept, 0, len(kept)) * np.int64(10 ** (6 - len(kept)))
    if zone_width == 6:
        offset, offset_valid = _parse_offset(table[:, -6:])
        micros, valid = micros - offset, valid & offset_valid
    return micros, valid


def _parse_offset(zone: Bytes) -> tuple[Integers, Mask]:
    found = zone.T[[1, 2, 4, 5]] - np.uint8(ord("0"))
    digits = found.astype(np.int64)
    hours, minutes = _number(digits, 0, 2), _number(digits, 2, 4)
    behind = zone[:, 0] == ord("-")
    valid = (behind | (zone[:, 0] == ord("+"))) & (zone[:, 3] == ord(":"))
    valid &= (found <= 9).all(axis=0) & (hours <= 23) & (minutes <= 59)
    offset: Integers = (hours * 60 + minutes) * 60_000_000
    return np.where(behind, -offset, offset), valid
