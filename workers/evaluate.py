"""Evaluate: what the rules find in complete data opens and resolves alerts, each with its message, once.

A change is judged twice: live, and again as of a watermark that is pinned for it, so that its numbers never
change. The entries of `alerts` and their rows in the outbox commit together. If the process dies before, the
next evaluation finds the same; if two evaluate at once, the (rule, scope, sequence) of the second is taken
and it writes nothing.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import polars as pl
import structlog
from sqlalchemy import Connection

from metering.core.alerting import STATES, changes, judged_periods, margin_findings, messages
from metering.core.summary import on_floor_basis, summarise
from metering.delivery.messages import CHAIN_HEADS, DIGEST_ALERTS_MAX, PARTS_MAX, REVENUE_OF
from metering.delivery.report import instant
from metering.settings import Settings
from metering.store import outbox, postgres
from metering.store.outbox import DIGEST_SCOPE, DIGEST_SEQUENCE, AlertEntry
from metering.store.published import heads
from metering.store.rollups import open_interval
from metering.store.watermarks import read_knowledge
from workers import loop
from workers.fold import pin
from workers.month_to_date import MonthMargin, MonthToDate

Facts = dict[str, Any]

log = structlog.get_logger(worker="evaluate")


@dataclass(frozen=True)
class Judged:
    """What a rule found, the period in which a scope that it did not find is clear, and what is behind it.

    `describe` takes alerting.CHANGES and returns the facts of each scope in them, for people.
    """

    findings: pl.DataFrame
    period: str
    describe: Callable[[pl.DataFrame], Mapping[str, Facts]]


@dataclass(frozen=True)
class Rule:
    """One rule: its name in `alerts`, and how it judges (None: there is nothing complete to judge yet)."""

    name: str
    judge: Callable[[Connection, Settings, int | None, MonthToDate], Judged | None]


def judge_margins(
    connection: Connection, settings: Settings, as_of: int | None, months: MonthToDate
) -> Judged | None:
    """Margin of every customer against its floor, in the months that money alerts judge, to their cut."""
    knowledge = read_knowledge(connection, as_of, settings=settings)
    periods = judged_periods(knowledge.complete_until)
    if not periods:
        return None
    reports = {period.name: months.margin(connection, settings, period, as_of) for period in periods}
    months.forget(min(period.start for period in periods))
    band = settings.margin_resolve_band_ratio
    found = pl.concat(
        [margin_findings(on_floor_basis(report.summary), name, band) for name, report in reports.items()]
    )
    return Judged(found, periods[-1].name, lambda changed: describe_margins(reports, changed))


#: The rules in force. A rule that does not wait for complete data simply does not cut its periods.
RULES: Final = (Rule("margin_breach", judge_margins),)


def describe_margins(reports: Mapping[str, MonthMargin], changed: pl.DataFrame) -> dict[str, Facts]:
    """Facts of each changed customer in the period of its change: the numbers, and the largest costs."""
    facts = {}
    for (name,), entries in changed.group_by("period"):
        period = str(name)
        report = reports[period]
        scopes = entries["scope"].implode()
        summary = on_floor_basis(report.summary.filter(pl.col("customer").is_in(scopes)))
        rows = {row["customer"]: row for row in summary.iter_rows(named=True)}
        parts = _parts(report, scopes)
        for scope, impact in entries.select("scope", "impact").iter_rows():
            facts[scope] = {
                "name": scope,
                "period": period,
                "cut_until": instant(report.provenance.cut.until),
                "whole": report.provenance.whole,
                "catalog_revision": report.provenance.catalog_revision,
                "currency": report.currency,
                "below_floor": _exact(impact),
                **_numbers(rows.get(scope)),
                "parts": parts.get(scope, []),
                "command": f"metering report margin --period {period} --by customer,product",
            }
    return facts


def _numbers(row: Mapping[str, Any] | None) -> Facts:
    """The numbers of a row of the margin by customer; none for a customer that has none."""
    names = ("revenue", "cost", "margin", "margin_ratio", "floor_ratio")
    if row is None:
        return {**dict.fromkeys(names), "charge_unrated": False, "cost_unrated": False}
    return {
        **({"name": row["name"]} if row["name"] is not None else {}),
        **{name: _exact(row[name]) for name in names},
        **({"floor_basis": "loaded"} if row["floor_basis"] == "loaded" else {}),
        **({"kind": row["kind"]} if row["kind"] != "paying" else {}),
        **_made_of(row),
        "charge_unrated": row["charge_unrated"],
        "cost_unrated": row["cost_unrated"],
    }


def _made_of(row: Mapping[str, Any]) -> Facts:
    """What revenue is made of where charges are not all of it."""
    amounts = {name: _exact(row[name]) for name in REVENUE_OF if row[name]}
    return {"revenue_of": amounts} if amounts.keys() - {"charge"} else {}


def _parts(report: MonthMargin, scopes: pl.Series) -> dict[str, list[Facts]]:
    """The largest costs of each customer: by product, model and pool."""
    lines = report.lines().filter(pl.col("customer").is_in(scopes))
    by = ["customer", "line", "product", "model_served", "pool"]
    largest = (
        summarise(lines, by, report.books)
        .filter(pl.col("cost") > 0)
        .sort(["cost", *by], descending=[True, *[False] * len(by)])
        .group_by("customer", maintain_order=True)
        .head(PARTS_MAX)
    )
    parts: dict[str, list[Facts]] = {}
    for row in largest.iter_rows(named=True):
        what = [row["product"] or row["line"], row["model_served"], row["pool"] or "on demand"]
        part = {
            "what": [word for word in what if word],
            "cost": _exact(row["cost"]),
            "revenue": _exact(row["revenue"]),
        }
        parts.setdefault(row["customer"], []).append(part)
    return parts


def _exact(amount: Decimal | None) -> str | None:
    """Every digit, without an exponent."""
    return None if amount is None else f"{amount.normalize():f}"


def step(settings: Settings, months: MonthToDate) -> bool:
    """Judge every rule; where something changed pin a watermark, judge again as of it, append.

    True when something was appended. `months` remembers what the last step computed.
    """
    with postgres.reading(settings) as connection:
        states = {rule.name: _states(connection, rule) for rule in RULES}
        changed = [
            rule for rule in RULES if _changed(connection, settings, rule, None, states[rule.name], months)
        ]
    if not changed:
        return False
    with postgres.connect(settings, "fold") as connection:
        pinned = pin(connection, settings, f"alert: {', '.join(rule.name for rule in changed)}")
    assert pinned.watermark_id is not None
    with postgres.reading(settings) as connection:
        confirmed = {
            rule.name: _changed(connection, settings, rule, pinned.watermark_id, states[rule.name], months)
            for rule in changed
        }
    with postgres.connect(settings, "evaluate") as connection, connection.begin():
        appended = sum(
            append(connection, settings, rule, pinned.watermark_id, *found)
            for rule, found in confirmed.items()
            if found is not None
        )
    return appended > 0


def tell_heads(settings: Settings) -> bool:
    """Put the heads of all chains as of the last watermark into the outbox, once a day; True when it did.

    Where they stand outside of the database, nobody can rewrite what is before them unseen.
    """
    with postgres.connect(settings, "evaluate") as connection, connection.begin():
        last = open_interval(connection) - 1
        if not last:
            return False
        facts = heads(connection, last)
        told = {chain: facts[chain] for chain in ("catalog", "interventions")}
        watermark = {name: facts["watermark"][name] for name in ("watermark_id", "pinned_at", "head")}
        message = {"rule": CHAIN_HEADS, "watermark": watermark, **told}
        return outbox.append_once_a_day(connection, CHAIN_HEADS, message)


def _states(connection: Connection, rule: Rule) -> pl.DataFrame:
    rows = [row[1:] for row in outbox.read_states(connection) if row[0] == rule.name]
    return STATES.conform(pl.DataFrame(rows, schema=dict(STATES.columns), orient="row"))


def _changed(
    connection: Connection,
    settings: Settings,
    rule: Rule,
    as_of: int | None,
    states: pl.DataFrame,
    months: MonthToDate,
) -> tuple[pl.DataFrame, Mapping[str, Facts]] | None:
    """The entries to append (alerting.CHANGES) and their facts; None when there are none."""
    judged = rule.judge(connection, settings, as_of, months)
    if judged is None:
        return None
    entries = changes(judged.findings, states, judged.period)
    return (entries, judged.describe(entries)) if entries.height else None


def append(
    connection: Connection,
    settings: Settings,
    rule: str,
    watermark_id: int,
    entries: pl.DataFrame,
    facts: Mapping[str, Facts],
) -> int:
    """Append the entries that nobody else has written, with their messages, and return how many.

    The caller commits.
    """
    told: dict[str, Facts] = {}
    for entry in entries.sort("scope").iter_rows(named=True):
        fact = facts[entry["scope"]]
        fact = {
            "alert": f"{rule}/{entry['scope']}/{entry['sequence']}",
            "watermark_id": watermark_id,
            **fact,
            "command": f"{fact['command']} --as-of {watermark_id}",
        }
        new = AlertEntry(
            rule, entry["scope"], entry["sequence"], entry["state"], entry["period"], watermark_id, fact
        )
        if outbox.append_alert(connection, new):
            told[entry["scope"]] = fact
            log.info(entry["state"], alert=fact["alert"], period=entry["period"], watermark_id=watermark_id)
        else:
            log.info("already told by another evaluator", alert=fact["alert"])
    written = entries.filter(pl.col("scope").is_in(list(told)))
    for part in messages(written, settings.alerts_per_rule_max):
        _put(connection, rule, part, [told[scope] for scope in part["scope"]])
    return len(told)


def _put(connection: Connection, rule: str, part: pl.DataFrame, facts: Sequence[Facts]) -> None:
    scope, sequence, state, _, _ = part.row(0)
    digest = len(facts) > 1
    shown = [{**fact, "parts": []} for fact in facts[:DIGEST_ALERTS_MAX]] if digest else list(facts)
    impact = sum((Decimal(impact) for impact in part["impact"]), Decimal(0))
    message = {
        "rule": rule,
        "state": state,
        "count": len(facts),
        "impact": _exact(impact),
        "currency": facts[0]["currency"],
        "alerts": shown,
    }
    scope, sequence = (DIGEST_SCOPE, DIGEST_SEQUENCE) if digest else (scope, sequence)
    outbox.append_message(connection, rule, scope, sequence, message)


@contextmanager
def opened(settings: Settings) -> Iterator[loop.Step]:
    """Connections are opened for each evaluation and closed after it: once a minute is seldom.

    What an evaluation computed of the months that it judges is kept in memory for the next.
    """
    months = MonthToDate()

    def evaluate() -> bool:
        changed = step(settings, months)
        told = settings.chain_heads_daily and tell_heads(settings)
        return changed or told

    yield evaluate


def run(settings: Settings, *, until_idle: bool = False) -> None:
    """Evaluate every `evaluate_interval_seconds` until stopped; with `until_idle` until nothing changes."""
    loop.run(
        "evaluate",
        lambda: opened(settings),
        settings=settings,
        interval_seconds=settings.evaluate_interval_seconds,
        until_idle=until_idle,
    )


if __name__ == "__main__":
    from metering.cli import main

    main(["work", "evaluate", *sys.argv[1:]])
