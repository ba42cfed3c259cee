"""A supplier's usage export: read strictly, by line and column; what is wrong is refused by name."""

import polars as pl
import pytest

from metering.bills.usage_export import Precision, Reading, UsageExport, pairs, read_usage_export
from metering.errors import BadInput
from tests.text_tables import check


def reading(text: str, **given: object) -> UsageExport:
    plain: dict[str, object] = {"columns": {}, "units": {}, "models": {}}
    content = "\n".join(line.strip() for line in text.strip().splitlines())
    return read_usage_export("theirs.csv", content.encode(), Reading(**(plain | given)))  # type: ignore[arg-type]


def test_lines_of_one_time_model_and_unit_are_added_up_under_our_names() -> None:
    export = reading(
        """
        Date,Model,Kind,Tokens,Cost,Project
        2026-03-01,gpt-x,input,1.5,0.10,a
        2026-03-01,gpt-x,input,0.5,0.05,b
        2026-03-03,gpt-x,output,2,,a
        """,
        columns=pairs("--columns", "day=Date,model=Model,unit=Kind,quantity=Tokens,amount=Cost"),
        units=pairs("--units", "input=total_input_tokens,output=total_output_tokens"),
        models=pairs("--models", "gpt-x=large"),
        per=1000,
    )
    check(
        export.theirs,
        """
        starts     | model | unit                | quantity | amount | currency
        2026-03-01 | large | total_input_tokens  | 2_000    | 0.15   | USD
        2026-03-03 | large | total_output_tokens | 2_000    | -      | -
        """,
    )
    # the day between is one of the file's: usage of ours there is theirs to explain
    assert export.buckets["time"].to_list() == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert (export.precision, export.lines) == (
        Precision({"total_input_tokens": 100, "total_output_tokens": 1000}, quanta=10**10),
        3,
    )


def test_a_file_may_have_a_column_for_each_unit() -> None:
    export = reading(
        """
        day,model,requests,prompt
        2026-03-01,large,3,1200
        2026-03-02,large,,1201
        """,
        columns={"total_input_tokens": "prompt"},
    )
    check(
        export.theirs,
        """
        starts     | unit               | quantity
        2026-03-01 | requests           |     3
        2026-03-01 | total_input_tokens | 1_200
        2026-03-02 | total_input_tokens | 1_201
        """,
    )


def test_hours_and_days_are_those_of_their_zone() -> None:
    hours = reading(
        """
        hour,model,unit,quantity
        2026-03-01T09:00+08:00,large,requests,1
        2026-03-01T03:00:00Z,large,requests,2
        """
    )
    check(hours.theirs, "starts | quantity\n 2026-03-01 01:00 | 1\n 2026-03-01 03:00 | 2")
    # a local day is 23 hours long when the clock goes forward
    days = reading(
        """
        day,model,unit,quantity
        2026-03-28,large,requests,1
        2026-03-29,large,requests,2
        """,
        zone="Europe/Berlin",
    )
    check(
        days.buckets,
        """
        time       | starts           | ends
        2026-03-28 | 2026-03-27 23:00 | 2026-03-28 23:00
        2026-03-29 | 2026-03-28 23:00 | 2026-03-29 22:00
        """,
    )


def test_round_numbers_are_rounded_to_what_they_have_in_common() -> None:
    export = reading(
        """
        day,model,unit,quantity
        2026-03-01,large,requests,12000
        2026-03-02,large,requests,13500
        2026-03-03,large,requests,100
        """
    )
    assert export.precision.quantities == {"requests": 100}
    assert (export.theirs["quantity"].sum(), pl.Int128) == (25_600, export.theirs.schema["quantity"])


LONG = "day,model,unit,quantity,amount,currency\n"


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        ("", {}, "theirs.csv: is empty; give a CSV file with a header"),
        ("day,model,unit,quantity\n", {}, "theirs.csv: holds no line of usage"),
        ("model,unit,quantity\na,b,1", {}, "has no column 'day' or 'hour'; map its columns with --columns"),
        ("day,hour,model,unit,quantity\n", {}, "has both a column 'day' and a column 'hour'"),
        ("day,unit,quantity\n", {}, "has no column 'model'"),
        ("day,model,quantity\n", {}, "has no column 'unit'"),
        ("day,model,tokens\n", {}, "has no column 'unit', nor a column for each unit (requests, "),
        ("day,model,requests,amount\n", {}, "an amount belongs to one unit"),
        ("day,day,model,requests\n", {}, "has two columns 'day'; rename one"),
        ("day,model,requests\n", {"columns": {"model": "name"}}, "has no column 'name' (--columns model=name)"),
        ("day,model,requests\n", {"columns": {"modell": "model"}}, "--columns: 'modell' is not a column"),
        (f"{LONG}2026-03-01,large,requests", {}, "line 2: has 3 columns, the header 6"),
        (f"{LONG}1.3.2026,large,requests,1,,", {}, "line 2, column day: '1.3.2026' is not a day"),
        (f"{LONG}9999-12-31,large,requests,1,,", {}, "line 2, column day: '9999-12-31' lies outside the years"),
        ("hour,model,requests\n0001-01-01T00:00+09:00,a,1", {}, "'0001-01-01T00:00+09:00' lies outside the years"),
        (f"{LONG}2026-03-01,,requests,1,,", {}, "line 2, column model: '' is empty"),
        (f"{LONG}2026-03-01,large,words,1,,", {}, "column unit: 'words' is not a unit; say which it is with"),
        (f"{LONG}2026-03-01,large,requests,'1,,", {}, "column quantity: ''1' is not a number"),
        (f"{LONG}2026-03-01,large,requests,1.5,,", {}, "'1.5' is not a whole number of units; with --per 1000"),
        (f"{LONG}2026-03-01,large,requests,{'9' * 19},,", {}, "is beyond 1,000,000,000,000,000,000"),
        (f"{LONG}2026-03-01,large,requests,1,1e3,", {}, "column amount: '1e3' is not an amount"),
        (f"{LONG}2026-03-01,large,requests,1,{'9' * 15},", {}, "is beyond 100,000,000,000,000"),
        (f"{LONG}2026-03-01,large,requests,1,1,usd", {}, "column currency: 'usd' is not a currency"),
        (
            f"{LONG}2026-03-01,large,requests,1,1,EUR\n2026-03-01,large,requests,1,1,USD",
            {},
            "line 3, column amount: '1' is in another currency than an earlier line",
        ),
        (
            "hour,model,requests\n2026-03-01T10:00,large,1",
            {},
            "line 2, column hour: '2026-03-01T10:00' is a local time without a zone; say whose it is with --zone",
        ),
        ("hour,model,requests\n2026-03-01T10:05Z,large,1", {}, "does not begin on a quarter hour"),
        (
            "hour,model,requests\n2026-03-01T10:00Z,large,1\n2026-03-01T10:30Z,large,1",
            {},
            "2026-03-01T10:30Z does not lie whole hours after 2026-03-01T10:00Z",
        ),
        ("hour,model,requests\n2026-10-25T02:00,a,1", {"zone": "Europe/Berlin"}, "occurs twice in Europe/Berlin"),
        ("hour,model,requests\n2026-03-29T02:00,a,1", {"zone": "Europe/Berlin"}, "does not exist in Europe/Berlin"),
        ("day,model,requests\n2026-03-01,a,1", {"zone": "Mars"}, "--zone 'Mars' is not a time zone"),
        ('day,model,requests\n2026-03-01,"a,1', {}, "line 2: unexpected end of data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line_and_column(
    text: str, given: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput) as refused:
        reading(text, **given)
    assert says in str(refused.value)


def test_bytes_that_are_no_text_and_pairs_that_are_none_are_refused() -> None:
    plain = Reading({}, {}, {})
    with pytest.raises(BadInput, match="byte 4 is not UTF-8"):
        read_usage_export("theirs.csv", b"day,\xff", plain)
    with pytest.raises(BadInput, match="NUL"):
        read_usage_export("theirs.csv", b"day,\0", plain)
    with pytest.raises(BadInput, match="'day' is not NAME=NAME"):
        pairs("--columns", "day")
    with pytest.raises(BadInput, match="names 'a' twice"):
        pairs("--units", "a=b,a=c")
