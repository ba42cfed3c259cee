"""Alerts as people read them: from the facts in the outbox to a Slack message in Block Kit."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import accumulate
from typing import Any, Final

from metering.delivery.slack import Post
from metering.money import round_to_minor_unit

#: Slack's limits, in characters after escaping.
HEADER_MAX: Final = 150
SECTION_MAX: Final = 3000
FIELD_MAX: Final = 2000
TEXT_MAX: Final = 3000
#: Slack takes 50; header, numbers, command and context need their own.
LIST_BLOCKS_MAX: Final = 40
#: Customers whose numbers stand in one digest; the others are counted.
DIGEST_ALERTS_MAX: Final = 40
#: Cost lines that explain a breach.
PARTS_MAX: Final = 5
NAME_MAX: Final = 80

#: What revenue is the sum of, promotional credits taken off, as people say it.
REVENUE_OF: Final = {
    "charge": "charges",
    "fee": "fees",
    "top_up": "top-up to the minimum",
    "overage_premium": "overage premium",
    "shortfall": "shortfall",
    "breakage": "breakage",
    "promotional_credit": "less promotional credits",
}

#: The rule of the message that carries the heads of the chains out of the house.
CHAIN_HEADS: Final = "chain_heads"

#: What Slack reads as its own marks; a backtick would end a piece of code.
_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "'"}

Facts = Mapping[str, Any]


def compose(outbox_id: int, message: Facts) -> Post:
    """The Slack message for one row of the outbox.

    `message` holds `rule`, `state` (opened | resolved), `count`, `currency`, `impact` and `alerts`, a list of
    facts: the largest of them, where `count` is more; that of rule CHAIN_HEADS holds `day`, `watermark`, `catalog`
    and `interventions`. Amounts are decimal strings; they are rounded here,
    half-even to the minor unit. Every text that came from outside is escaped: it cannot mention, link or
    format. The outbox id stands in the message: the same number again is the same message.
    """
    if message.get("rule") == CHAIN_HEADS:
        return _heads(outbox_id, message)
    alerts = message["alerts"]
    if message["count"] == 1:
        return _one(outbox_id, message, alerts[0])
    return _digest(outbox_id, message, alerts)


def escape(text: str, limit: int) -> str:
    """`text` on one line of at most `limit` characters for Slack: `& < >` as entities, none cut in two."""
    shown = [_ENTITIES.get(character, character if character.isprintable() else " ") for character in text]
    if sum(map(len, shown)) <= limit:
        return "".join(shown)
    room = accumulate(map(len, shown))
    return "".join(piece for piece, until in zip(shown, room, strict=True) if until < limit) + "…"


def amount(text: str, currency: str) -> str:
    """`USD -1,234.50`: rounded half-even to the minor unit, for people."""
    return f"{escape(currency, 3)} {round_to_minor_unit(Decimal(text)) + 0:,}"


def share(text: str | None) -> str:
    """A ratio as people say it: `12.5 %`; a hyphen where it is not defined."""
    if text is None:
        return "-"
    percent = (Decimal(text) * 100).quantize(Decimal("0.1"), rounding=ROUND_HALF_EVEN)
    return f"{percent + 0:,} %"


def _name(facts: Facts) -> str:
    return escape(str(facts["name"]), NAME_MAX)


def _period(facts: Facts) -> str:
    cut = "complete" if facts["whole"] else f"cut at {facts['cut_until']}"
    return f"{escape(str(facts['period']), 60)}, {cut}"


def _one(outbox_id: int, message: Facts, facts: Facts) -> Post:
    title, sentence = _headline(message["rule"], message["state"], facts)
    blocks = [_header(title), _section(sentence)]
    if facts.get("revenue") is not None:
        blocks.append(_numbers(facts))
    if facts.get("revenue_of"):
        blocks.append(_section(f"*Revenue is made of*\n{_made_of(facts)}"))
    if facts.get("parts"):
        blocks.append(_section(f"*Largest costs*\n{_parts(facts)}"))
    blocks.extend(_incomplete([facts]))
    blocks.append(_section(f"See more: `{facts['command']}`"))
    blocks.append(
        _context(
            f"alert {facts['alert']}",
            f"watermark {facts['watermark_id']}, catalog revision {facts['catalog_revision']}",
            _repeat(outbox_id),
        )
    )
    return Post(_within(f"{title} · {sentence}", TEXT_MAX), blocks)


def _heads(outbox_id: int, message: Facts) -> Post:
    """The heads of the chains of a day, whole: who keeps this message can hold the database against it."""
    watermark, catalog, interventions = message["watermark"], message["catalog"], message["interventions"]
    lines = [f"watermark {watermark['watermark_id']} `{escape(str(watermark['head']), 64)}`"]
    if catalog:
        lines.append(f"catalog revision {catalog['catalog_revision']} `{escape(str(catalog['head']), 64)}`")
    if interventions:
        lines.append(
            f"intervention {interventions['intervention_id']} `{escape(str(interventions['head']), 64)}`"
        )
    title = f"Chain heads of {escape(str(message['day']), 40)}"
    blocks = [
        _section(f"*{title}*: {' · '.join(lines)}"),
        _context(
            f"watermark pinned at {watermark['pinned_at']}; its head covers those of every intake",
            f"to compare: metering watermark show {watermark['watermark_id']}, metering verify",
            _repeat(outbox_id),
        ),
    ]
    return Post(_within(f"{title}: {' · '.join(lines)}", TEXT_MAX), blocks)


def _headline(rule: str, state: str, facts: Facts) -> tuple[str, str]:
    """Title and first sentence, both escaped."""
    name, period = _name(facts), _period(facts)
    if rule != "margin_breach":
        return f"{escape(rule, 40)} {state}: {name}", f"*{name}* · {period}"
    if state == "resolved":
        if facts.get("revenue") is not None and (facts["floor_ratio"] is None or "kind" in facts):
            return (
                f"No margin floor to keep: {name}",
                f"*{name}* has no margin floor to keep any more · {period}",
            )
        why = (
            "has its margin back at the floor"
            if facts.get("revenue") is not None
            else "has no floor to keep, or no usage"
        )
        return f"Margin back at its floor: {name}", f"*{name}* {why} · {period}"
    if Decimal(facts["revenue"]) <= 0:
        credited = facts.get("revenue_of", {}).get("promotional_credit")
        if credited is not None and Decimal(facts["revenue"]) + Decimal(credited) > 0:
            given = f"*{name}* costs money and earns nothing beyond its promotional credits"
            return f"Cost without revenue: {name}", f"{given} · {period}"
        return f"Cost without revenue: {name}", f"*{name}* costs money and earns none · {period}"
    verb = "loses money" if Decimal(facts["margin"]) < 0 else "earns less than its margin floor"
    return f"Margin below its floor: {name}", f"*{name}* {verb} · {period}"


def _numbers(facts: Facts) -> dict[str, Any]:
    currency = facts["currency"]
    pairs = [
        ("Revenue", amount(facts["revenue"], currency)),
        ("Cost", amount(facts["cost"], currency)),
        ("Margin", amount(facts["margin"], currency)),
        ("Margin ratio", share(facts["margin_ratio"])),
        ("Floor", share(facts["floor_ratio"]) + (", idle included" if "floor_basis" in facts else "")),
    ]
    if Decimal(facts["below_floor"]) > 0:
        pairs.append(("Below the floor by", amount(facts["below_floor"], currency)))
    return {"type": "section", "fields": [_text(f"*{label}*\n{value}", FIELD_MAX) for label, value in pairs]}


def _made_of(facts: Facts) -> str:
    said = facts["revenue_of"]
    lines = [
        f"• {text}: {amount(said[name], facts['currency'])}"
        for name, text in REVENUE_OF.items()
        if name in said
    ]
    if not facts["whole"] and not {"fee", "top_up"}.isdisjoint(said):
        lines.append("Of fees and minimums it is the part of the days so far.")
    return "\n".join(lines)


def _parts(facts: Facts) -> str:
    lines = []
    for part in facts["parts"][:PARTS_MAX]:
        what = " · ".join(escape(str(word), NAME_MAX) for word in part["what"])
        cost, revenue = amount(part["cost"], facts["currency"]), amount(part["revenue"], facts["currency"])
        lines.append(f"• {what}: cost {cost}, revenue {revenue}")
    return "\n".join(lines)


def _incomplete(alerts: Iterable[Facts]) -> list[dict[str, Any]]:
    """What is unrated is missing from the numbers; the reader is told on which side."""
    alerts = list(alerts)
    notes = []
    if any(facts.get("charge_unrated") for facts in alerts):
        notes.append("part of the usage has no price: revenue and margin are higher than shown")
    if any(facts.get("cost_unrated") for facts in alerts):
        notes.append("part of the usage has no cost: cost is higher and margin lower than shown")
    if not notes:
        return []
    return [_section(f":warning: {'; '.join(notes)}. `metering report unrated` shows what is missing.")]


def _digest(outbox_id: int, message: Facts, alerts: Sequence[Facts]) -> Post:
    count, currency = message["count"], message["currency"]
    opened = message["state"] == "opened"
    if message["rule"] == "margin_breach":
        title = (
            f"{count:,} customers fell below their margin floor"
            if opened
            else (f"{count:,} customers have their margin back at the floor")
        )
    else:
        title = f"{escape(message['rule'], 40)} {message['state']}: {count:,}"
    together = f"Together {amount(message['impact'], currency)} below. " if opened else ""
    sentence = together + "; ".join(dict.fromkeys(_period(facts) for facts in alerts))
    lines = [_digest_line(facts) for facts in alerts[:DIGEST_ALERTS_MAX]]
    lists = _packed(lines)
    shown = sum(len(packed) for packed in lists)
    blocks = [_header(title), _section(sentence), *(_section("\n".join(packed)) for packed in lists)]
    if shown < count:
        blocks.append(_section(f"and {count - shown:,} more, each with a smaller amount"))
    blocks.extend(_incomplete(alerts))
    blocks.append(_section(f"See more: `{alerts[0]['command']}`"))
    known = f"watermark {alerts[0]['watermark_id']}, catalog revision {alerts[0]['catalog_revision']}"
    blocks.append(_context(f"{count:,} alerts", known, _repeat(outbox_id)))
    return Post(_within(f"{title} · {sentence}", TEXT_MAX), blocks)


def _digest_line(facts: Facts) -> str:
    alert = escape(str(facts["alert"]), 120)
    if facts.get("revenue") is None:
        return f"• *{_name(facts)}* · {alert}"
    margin = f"margin {amount(facts['margin'], facts['currency'])} ({share(facts['margin_ratio'])})"
    return f"• *{_name(facts)}*: {margin}, floor {share(facts['floor_ratio'])} · {alert}"


def _packed(lines: Sequence[str]) -> list[list[str]]:
    """The lines in order, in lists that each fit a section; what does not fit the message is left off."""
    packed: list[list[str]] = []
    room = 0
    for line in lines:
        if len(line) + 1 > room:
            if len(packed) == LIST_BLOCKS_MAX:
                break
            packed.append([])
            room = SECTION_MAX
        packed[-1].append(line)
        room -= len(line) + 1
    return packed


def _repeat(outbox_id: int) -> str:
    return f"message {outbox_id} (the same number again is the same message)"


def _within(text: str, limit: int) -> str:
    """Text already escaped, cut between two words where it is longer than Slack takes."""
    return text if len(text) <= limit else text[: limit - 1].rpartition(" ")[0] + "…"


def _header(title: str) -> dict[str, Any]:
    return {
        "type": "header",
        "text": {"type": "plain_text", "text": _within(title, HEADER_MAX), "emoji": False},
    }


def _text(text: str, limit: int) -> dict[str, Any]:
    """mrkdwn that Slack does not read names, channels or links into."""
    return {"type": "mrkdwn", "text": _within(text, limit), "verbatim": True}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": _text(text, SECTION_MAX)}


def _context(*notes: str) -> dict[str, Any]:
    return {
        "type": "context",
        "elements": [{"type": "plain_text", "text": escape(note, 400), "emoji": False} for note in notes],
    }
