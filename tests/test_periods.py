"""Periods: spans as a person writes them; what is no period is refused with what would be one."""

from datetime import timedelta

import pytest

from metering.errors import BadInput
from metering.periods import parse_period


@pytest.mark.parametrize(
    ("text", "start", "until"),
    [
        ("2026-12", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("2024-02-29", "2024-02-29T00:00", "2024-03-01T00:00"),
        ("2026-10-31..2026-11-01T06:15", "2026-10-31T00:00", "2026-11-01T06:15"),
        ("2026-10-25T02:00+02:00..2026-10-25T02:00+01:00", "2026-10-25T00:00", "2026-10-25T01:00"),
        ("9998-12-31", "9998-12-31T00:00", "9999-01-01T00:00"),
    ],
)
def test_a_period_is_a_half_open_span_of_utc(text: str, start: str, until: str) -> None:
    period = parse_period(text)
    assert (f"{period.start:%Y-%m-%dT%H:%M}", f"{period.until:%Y-%m-%dT%H:%M}") == (start, until)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-13", "there is no such month"),
        ("2026-02-30", "'2026-02-30' is not a date or time"),
        ("9999-12-31", "lies outside the years 1970 to 9998"),
        ("0001-01-01T00:00+05:00..2026-01-01", "lies outside the years 1970 to 9998"),
        ("2026-01-02..2026-01-01", "it ends at or before its start"),
        ("2026-01-01..2026-01-01T00:07", "'2026-01-01T00:07' is not on a quarter hour"),
        ("yesterday", r"give a month \(2026-10\)"),
    ],
)
def test_what_is_no_period_is_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=f"'{text.replace('+', '[+]')}' is not a period.*{says}"):
        parse_period(text)


def test_the_runs_of_a_period_touch_and_are_the_whole_of_it() -> None:
    october = parse_period("2026-10")
    runs = list(october.runs(timedelta(days=7)))
    assert [(run.until - run.start).days for run in runs] == [7, 7, 7, 7, 3]
    assert [run.start for run in runs] == [october.start, *(run.until for run in runs[:-1])]
    assert runs[-1].until == october.until
    empty = october.cut_at(None)
    assert list(empty.runs(timedelta(days=7))) == [empty]
