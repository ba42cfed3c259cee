"""Field types of catalog objects: names, instants, amounts. Numbers come as text, never through a float."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Final
from zoneinfo import available_timezones

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from metering.periods import floor_to_quarter

#: Same bound as the dimensions of an event, so that whatever an event can name the catalog can name.
NAME_BYTES_MAX: Final = 200
#: Prices, fees, ratios and weights have at most this many decimals: quantity x price stays exact in MONEY.
DECIMALS_MAX: Final = 6
#: Largest price per million, weight and amount: far above any real one, far below an overflow.
PRICE_MAX: Final = Decimal(10) ** 9
WEIGHT_MAX: Final = Decimal(10) ** 6
AMOUNT_MAX: Final = Decimal(10) ** 12
COUNT_MAX: Final = 10**9
QUANTITY_MAX: Final = 10**15
#: Exchange rates have as many decimals as MONEY.
RATE_DECIMALS_MAX: Final = 12
RATE_MAX: Final = Decimal(10) ** 9

PLAIN_NUMBER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME: Final = re.compile(r"([0-2]\d):([0-5]\d)")
_GROUPED: Final = re.compile(r"\d{1,3}(_\d{3})+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def refused(problem: str) -> PydanticCustomError:
    """The error of one field, in our own words."""
    return PydanticCustomError("catalog", "{problem}", {"problem": problem})


def decimal_text(amount: Decimal) -> str:
    """The one spelling of an amount: no exponent, no trailing zeros, so that 3.00 and 3.0 are the same."""
    text = format(amount, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def instant_text(instant: datetime) -> str:
    """The one spelling of an instant on a whole minute: 2026-01-01T00:00Z."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def _name(value: object) -> str:
    if isinstance(value, bool | Decimal | int):
        raise refused("must be text; put it in quotes")
    if not isinstance(value, str):
        raise refused("must be text")
    if not value or value != value.strip() or _CONTROL.search(value):
        raise refused("must be text that is not empty, without spaces around it or control characters")
    if len(value.encode()) > NAME_BYTES_MAX:
        raise refused(f"is longer than {NAME_BYTES_MAX} bytes; shorten it")
    return value


def _provider(value: object) -> str:
    name = _name(value)
    if "/" in name:
        raise refused("must not contain '/': it separates provider and model in a model's name")
    return name


def _read_instant(value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    text = value if isinstance(value, str) else ""
    try:
        if not text[:5].endswith("-"):
            raise ValueError
        read = datetime.fromisoformat(text + "T00:00" if _DATE.fullmatch(text) else text)
        instant = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError):
        raise refused("is not a date or time; write 2026-01-01 or 2026-01-01T06:15Z (UTC)") from None
    if not 1970 <= instant.year <= 9998:
        raise refused("lies outside the years 1970 to 9998")
    return instant


def _minute(value: object) -> datetime:
    instant = _read_instant(value)
    if instant != instant.replace(second=0, microsecond=0):
        raise refused("is not on a whole minute; leave the seconds out")
    return instant


def _instant(value: object) -> datetime:
    instant = _read_instant(value)
    if instant != floor_to_quarter(instant):
        raise refused("is not on a quarter hour; use minute 00, 15, 30 or 45")
    return instant


def _decimal(value: object, *, below: Decimal, what: str, decimals: int = DECIMALS_MAX) -> Decimal:
    if isinstance(value, str) and PLAIN_NUMBER.fullmatch(value):
        value = Decimal(value)
    if not isinstance(value, Decimal):
        raise refused(f"must be {what}: a plain decimal number such as 3.00, without exponent or separators")
    if value < 0:
        raise refused(f"must not be negative; {what} is 0 or more")
    if value > below:
        raise refused(f"is larger than {decimal_text(below)}; check the unit of {what}")
    exact = Decimal(decimal_text(value))
    if -int(exact.as_tuple().exponent) > decimals:
        raise refused(f"has more than {decimals} decimals; round {what} to at most {decimals}")
    return exact


def _price(value: object) -> Decimal:
    return _decimal(value, below=PRICE_MAX, what="a price per million")


def _amount(value: object) -> Decimal:
    return _decimal(value, below=AMOUNT_MAX, what="an amount")


def _fee_or_by_dimension(value: object) -> Decimal | dict[str, Decimal]:
    if not isinstance(value, dict):
        return _amount(value)
    if not value:
        raise refused("must not be empty; give one amount, or one for each dimension")
    fees = {}
    for dimension, amount in value.items():
        try:
            fees[_name(dimension)] = _amount(amount)
        except PydanticCustomError as error:
            raise refused(f"{dimension} {error.message()}") from None
    return fees


def _fee_text(fee: Decimal | dict[str, Decimal]) -> str | dict[str, str]:
    if isinstance(fee, dict):
        return {dimension: decimal_text(amount) for dimension, amount in fee.items()}
    return decimal_text(fee)


def _units(value: object) -> Decimal:
    return _decimal(value, below=Decimal(COUNT_MAX), what="a number of units")


def _rate(value: object) -> Decimal:
    rate = _decimal(value, below=RATE_MAX, what="an exchange rate", decimals=RATE_DECIMALS_MAX)
    if rate == 0:
        raise refused("must be more than 0: a rate of 0 would make every amount vanish")
    return rate


def _weight(value: object) -> Decimal:
    return _decimal(value, below=WEIGHT_MAX, what="a weight")


def _ratio(value: object) -> Decimal:
    ratio = _decimal(value, below=Decimal(100), what="a ratio")
    if ratio > 1:
        raise refused("is larger than 1; a ratio is 0..1, so 20 percent is 0.20")
    return ratio


def _count(value: object) -> int:
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refused("must be a whole number, without quotes, decimals or separators")
    if not 0 <= value <= COUNT_MAX:
        raise refused(f"must lie between 0 and {COUNT_MAX}")
    return value


def _quantity(value: object) -> int:
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, str) and _GROUPED.fullmatch(value):
        value = int(value.replace("_", ""))
    if isinstance(value, bool) or not isinstance(value, int):
        raise refused("must be a whole number, without quotes or decimals; 1_000_000 is one too")
    if not 0 <= value <= QUANTITY_MAX:
        raise refused(f"must lie between 0 and {QUANTITY_MAX}")
    return value


def _anchor_day(value: object) -> int:
    day = _count(value)
    if not 1 <= day <= 31:
        raise refused("must be a day of the month, 1 to 31; in a shorter month its last day is taken")
    return day


@cache
def _zones() -> frozenset[str]:
    # what a machine calls its own time, or none, is no zone that two machines agree on
    return frozenset(available_timezones()) - {"localtime", "Factory"}


def _zone(value: object) -> str:
    name = _name(value)
    if name not in _zones():
        near = get_close_matches(name, _zones(), 1)
        hint = f"did you mean {near[0]}?" if near else "write one such as Europe/Berlin or UTC"
        raise refused(f"is not a time zone; {hint}")
    return name


def _time_of_day(value: object) -> int:
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    minute = int(found[1]) * 60 + int(found[2]) if found else -1
    if found is None or minute > 1440 or int(found[2]) > 59:
        raise refused('must be a time of the day in quotes, "00:00" to "24:00"')
    if minute % 15:
        raise refused("is not on a quarter hour; use minute 00, 15, 30 or 45")
    return minute


def _time_text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _currency(value: object) -> str:
    if not (isinstance(value, str) and re.fullmatch(r"[A-Z]{3}", value)):
        raise refused("must be a currency of three capital letters, such as USD")
    return value


def _written(what: str, *, whole: bool = False) -> WithJsonSchema:
    """How an editor should take a number: plain, quoted or not. What it must be is checked by `check`."""
    number = {"type": "integer" if whole else "number", "minimum": 0}
    text = {"type": "string", "pattern": f"^{PLAIN_NUMBER.pattern}$"}
    return WithJsonSchema({"anyOf": [number] if whole else [number, text], "description": what})


def _moment(what: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}", "description": what})


_AS_TEXT = PlainSerializer(decimal_text, return_type=str, when_used="json")
_AS_INSTANT = PlainSerializer(instant_text, return_type=str, when_used="json")
Name = Annotated[
    str,
    BeforeValidator(_name),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": NAME_BYTES_MAX}),
]
Provider = Annotated[
    str,
    BeforeValidator(_provider),
    WithJsonSchema({"type": "string", "pattern": "^[^/]+$", "maxLength": NAME_BYTES_MAX}),
]
Currency = Annotated[
    str,
    BeforeValidator(_currency),
    WithJsonSchema(
        {"type": "string", "pattern": "^[A-Z]{3}$", "description": "three capital letters, such as USD"}
    ),
]
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    _AS_INSTANT,
    _moment("date or time in UTC, on a quarter hour: 2026-01-01 or 2026-01-01T06:15Z"),
]
#: The edges of what is set aside: whole minutes; all other edges are quarter hours.
Minute = Annotated[
    datetime,
    BeforeValidator(_minute),
    _AS_INSTANT,
    _moment("date or time in UTC, on a whole minute: 2026-01-01 or 2026-01-01T06:17Z"),
]
#: Per million units of a meter.
Price = Annotated[Decimal, BeforeValidator(_price), _AS_TEXT, _written("price per million units")]
Amount = Annotated[Decimal, BeforeValidator(_amount), _AS_TEXT, _written("amount of money")]
#: What a supplier is paid, per whatever the field says: one amount, or one for each dimension that has one.
FeeByDimension = Annotated[
    Decimal | dict[str, Decimal],
    PlainValidator(_fee_or_by_dimension),
    PlainSerializer(_fee_text, return_type=str | dict[str, str], when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": ["number", "string"]}, {"type": "object"}],
            "description": "amount of money, or one for each dimension",
        }
    ),
]
#: Units of a pool, a part of a unit included.
Units = Annotated[Decimal, BeforeValidator(_units), _AS_TEXT, _written("number of units")]
Rate = Annotated[Decimal, BeforeValidator(_rate), _AS_TEXT, _written("exchange rate")]
Weight = Annotated[Decimal, BeforeValidator(_weight), _AS_TEXT, _written("weight of one unit")]
Ratio = Annotated[Decimal, BeforeValidator(_ratio), _AS_TEXT, _written("ratio, 0..1: 20 percent is 0.20")]
Count = Annotated[int, BeforeValidator(_count), _written("whole number", whole=True)]
#: Units of a meter, or of several together.
Quantity = Annotated[
    int,
    BeforeValidator(_quantity),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": f"^{_GROUPED.pattern}$"},
            ],
            "description": "whole number of units: 1000000 or 1_000_000",
        }
    ),
]
AnchorDay = Annotated[
    int,
    BeforeValidator(_anchor_day),
    WithJsonSchema(
        {"type": "integer", "minimum": 1, "maximum": 31, "description": "day of the month, 1 to 31"}
    ),
]
#: A name of the time zone database.
Zone = Annotated[
    str,
    BeforeValidator(_zone),
    WithJsonSchema({"type": "string", "minLength": 1, "description": "time zone, such as Europe/Berlin"}),
]
#: Minutes since local midnight, on a quarter hour; "24:00" is the end of the day.
TimeOfDay = Annotated[
    int,
    BeforeValidator(_time_of_day),
    PlainSerializer(_time_text, return_type=str, when_used="json"),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_TIME.pattern}$", "description": 'time of the day: "22:00"'}
    ),
]
