"""The webhook: what an answer means, where nothing may go, what never gets out; and how messages read."""

import json
import logging
import threading
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from metering.delivery.messages import DIGEST_ALERTS_MAX, amount, compose, escape, share
from metering.delivery.slack import HOST, Post, check_webhook, post
from metering.errors import BadInput
from tests.webhook import PATH, Behaviour, webhook

MESSAGE = Post("hello", [{"type": "section", "text": {"type": "mrkdwn", "text": "hello"}}])


@pytest.mark.parametrize(
    ("behaviour", "outcome", "status", "retry_after", "detail"),
    [
        (Behaviour(200, "ok"), "delivered", 200, None, "ok"),
        (Behaviour(429, "rate_limited", {"Retry-After": "30"}), "retry", 429, 30, "rate_limited"),
        (Behaviour(429, "rate_limited", {"retry-after": " 7 "}), "retry", 429, 7, "rate_limited"),
        (Behaviour(429, "rate_limited"), "retry", 429, None, "rate_limited"),
        (Behaviour(429, "x", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), "retry", 429, None, "x"),
        (Behaviour(429, "x", {"Retry-After": "-1"}), "retry", 429, None, "x"),
        (Behaviour(500, "Oh <b>no</b>"), "retry", 500, None, "an answer of 12 characters"),
        (Behaviour(503, "", {"Retry-After": "5"}), "retry", 503, 5, "an empty answer"),
        (Behaviour(400, "invalid_payload"), "given_up", 400, None, "invalid_payload"),
        (Behaviour(404, "no_service"), "given_up", 404, None, "no_service"),
        (Behaviour(410, "channel_is_archived"), "given_up", 410, None, "channel_is_archived"),
        (
            Behaviour(404, f"no {PATH}"),
            "given_up",
            404,
            None,
            f"an answer of {len(PATH) + 3} characters",
        ),
        (Behaviour(404, "secretsecretsecret"), "given_up", 404, None, "an answer of 18 characters"),
        (Behaviour(None), "retry", None, None, "the connection broke off before an answer came"),
    ],
)
def test_what_an_answer_means(
    behaviour: Behaviour, outcome: str, status: int | None, retry_after: int | None, detail: str
) -> None:
    with webhook(behaviour) as slack:
        answer = post(slack.url, MESSAGE, timeout_seconds=5)
        assert (answer.outcome, answer.status, answer.retry_after_seconds, answer.detail) == (
            outcome,
            status,
            retry_after,
            detail,
        )
        assert slack.requests == [f"POST {PATH}"]
        assert slack.received[0]["text"] == "hello"
        assert slack.received[0]["blocks"] == MESSAGE.blocks


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    with webhook() as elsewhere, webhook() as slack:
        slack.script.append(Behaviour(status, "", {"Location": elsewhere.url.get_secret_value()}))
        answer = post(slack.url, MESSAGE, timeout_seconds=5)
        assert (answer.outcome, answer.status) == ("given_up", status)
        assert "redirect" in answer.detail
        assert elsewhere.requests == []


def test_a_slow_webhook_is_a_retry_after_the_timeout() -> None:
    answered = threading.Event()
    with webhook(Behaviour(wait=answered)) as slack:
        began = time.monotonic()
        answer = post(slack.url, MESSAGE, timeout_seconds=0.3)
        answered.set()
        assert time.monotonic() - began < 3
        assert (answer.outcome, answer.status, answer.detail) == ("retry", None, "no answer within 0.3 s")


def test_nobody_there_is_a_retry() -> None:
    with webhook() as slack:
        url = slack.url
    answer = post(url, MESSAGE, timeout_seconds=5)
    assert (answer.outcome, answer.detail) == ("retry", "connection refused")


def test_a_proxy_of_the_environment_does_not_see_a_loopback_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as proxy, webhook() as slack:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.get_secret_value().removesuffix(PATH))
        assert post(slack.url, MESSAGE, timeout_seconds=5).outcome == "delivered"
        assert proxy.requests == []


SECRET = "T0SECRET/B0SECRET/abcdefghijkl"


@pytest.mark.parametrize(
    "url",
    [
        f"https://{HOST}/services/{SECRET}",
        f"https://{HOST}:443/services/{SECRET}",
        f"https://{HOST.upper()}/services/{SECRET}",
        f"http://127.0.0.1:8080/services/{SECRET}",
        f"http://127.7.7.7/services/{SECRET}",
        f"http://[::1]:8080/services/{SECRET}",
        f"http://localhost:8080/services/{SECRET}",
    ],
)
def test_addresses_that_are_taken(url: str) -> None:
    check_webhook(SecretStr(url))


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"/services/{SECRET}",
        f"http://{HOST}/services/{SECRET}",
        f"https://example.com/services/{SECRET}",
        f"https://{HOST}.example.com/services/{SECRET}",
        f"https://{HOST}@example.com/services/{SECRET}",
        f"https://example.com@{HOST}/services/{SECRET}",
        f"https://example.com\\@{HOST}/services/{SECRET}",
        f"https://{HOST}:8443/services/{SECRET}",
        f"https://{HOST}:x/services/{SECRET}",
        f"https://{HOST}/services/{SECRET}#x",
        f"https://{HOST}\n.example.com/services/{SECRET}",
        f"https://{HOST} /services/{SECRET}",
        f"https://hooks.slаck.com/services/{SECRET}",  # noqa: RUF001 - a Cyrillic letter
        f"http://169.254.169.254/latest/{SECRET}",
        f"http://10.0.0.1/services/{SECRET}",
        f"http://0.0.0.0/services/{SECRET}",
        f"http://2130706433/services/{SECRET}",
        f"http://localhost.example.com/services/{SECRET}",
        f"http://[::ffff:169.254.169.254]/services/{SECRET}",
        f"https://127.0.0.1/services/{SECRET}",
        f"file:///etc/{SECRET}",
        f"ftp://{HOST}/services/{SECRET}",
        f"https://[{SECRET}",
    ],
)
def test_addresses_that_are_refused_without_being_shown(url: str) -> None:
    with pytest.raises(BadInput) as refused:
        post(SecretStr(url), MESSAGE, timeout_seconds=1)
    assert "METERING_SLACK_WEBHOOK_URL" in str(refused.value)
    assert not [part for part in SECRET.split("/") if part in str(refused.value)]
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_no_log_holds_the_address(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    root = logging.getLogger()
    with webhook(Behaviour(None), Behaviour(500), Behaviour(404, PATH), Behaviour()) as slack:
        seen = [post(slack.url, MESSAGE, timeout_seconds=5) for _ in range(4)]
        assert root.level == logging.DEBUG
        written = caplog.text + "".join(capfd.readouterr()) + repr(seen)
        assert "secretsecretsecret" not in written


# ---- how messages read ---------------------------------------------------------------------------------


def facts(**different: Any) -> dict[str, Any]:
    return {
        "alert": "margin_breach/acme/1",
        "name": "Acme & Sons <West>",
        "period": "2026-11",
        "cut_until": "2026-11-22T16:45Z",
        "whole": False,
        "watermark_id": 7,
        "catalog_revision": 3,
        "currency": "USD",
        "revenue": "1000.005",
        "cost": "1200.015",
        "margin": "-200.01",
        "margin_ratio": "-0.200009",
        "floor_ratio": "0.3",
        "below_floor": "500.0115",
        "charge_unrated": False,
        "cost_unrated": False,
        "parts": [{"what": ["chat", "nova-large", "block-a"], "cost": "900.5", "revenue": "400"}],
        "command": "metering report margin --period 2026-11 --by customer,product --as-of 7",
        **different,
    }


def told(*alerts: dict[str, Any], state: str = "opened", rule: str = "margin_breach") -> dict[str, Any]:
    impact = str(sum(Decimal(fact["below_floor"]) for fact in alerts))
    return {
        "rule": rule,
        "state": state,
        "count": len(alerts),
        "impact": impact,
        "currency": "USD",
        "alerts": list(alerts)[:DIGEST_ALERTS_MAX],
    }


def read(message: Post) -> str:
    """The message as lines of text, one per text object, marked by its block."""
    lines = []
    for block in message.blocks:
        texts = [block["text"]] if "text" in block else block.get("fields") or block["elements"]
        lines.extend(f"{block['type']}: " + text["text"].replace("\n", " | ") for text in texts)
    return "\n".join(lines)


def test_a_breach_reads_like_this() -> None:
    message = compose(12, told(facts()))
    assert (
        read(message)
        == """\
header: Margin below its floor: Acme &amp; Sons &lt;West&gt;
section: *Acme &amp; Sons &lt;West&gt;* loses money · 2026-11, cut at 2026-11-22T16:45Z
section: *Revenue* | USD 1,000.00
section: *Cost* | USD 1,200.02
section: *Margin* | USD -200.01
section: *Margin ratio* | -20.0 %
section: *Floor* | 30.0 %
section: *Below the floor by* | USD 500.01
section: *Largest costs* | • chat · nova-large · block-a: cost USD 900.50, revenue USD 400.00
section: See more: `metering report margin --period 2026-11 --by customer,product --as-of 7`
context: alert margin_breach/acme/1
context: watermark 7, catalog revision 3
context: message 12 (the same number again is the same message)"""
    )
    assert message.text == (
        "Margin below its floor: Acme &amp; Sons &lt;West&gt; · "
        "*Acme &amp; Sons &lt;West&gt;* loses money · 2026-11, cut at 2026-11-22T16:45Z"
    )


@pytest.mark.parametrize(
    ("state", "different", "title", "sentence"),
    [
        ("opened", {"margin": "20"}, "Margin below its floor: A", "earns less than its margin floor"),
        (
            "opened",
            {"revenue": "0", "margin_ratio": None},
            "Cost without revenue: A",
            "costs money and earns none",
        ),
        (
            "resolved",
            {"below_floor": "0"},
            "Margin back at its floor: A",
            "has its margin back at the floor",
        ),
        (
            "opened",
            {"revenue": "0", "revenue_of": {"charge": "80", "promotional_credit": "80"}},
            "Cost without revenue: A",
            "costs money and earns nothing beyond its promotional credits",
        ),
        (
            "opened",
            {"revenue": "-1", "revenue_of": {"charge": "-81", "promotional_credit": "-80"}},
            "Cost without revenue: A",
            "costs money and earns none",
        ),
        (
            "resolved",
            {"below_floor": "0", "floor_ratio": None},
            "No margin floor to keep: A",
            "has no margin floor to keep any more",
        ),
        (
            "resolved",
            {"below_floor": "0", "kind": "trial"},
            "No margin floor to keep: A",
            "has no margin floor to keep any more",
        ),
        (
            "resolved",
            {**dict.fromkeys(["revenue", "cost", "margin", "margin_ratio", "floor_ratio"]), "parts": []},
            "Margin back at its floor: A",
            "has no floor to keep, or no usage",
        ),
    ],
)
def test_what_is_said_first(state: str, different: dict[str, Any], title: str, sentence: str) -> None:
    lines = read(compose(1, told(facts(name="A", **different), state=state))).splitlines()
    assert lines[0] == f"header: {title}"
    assert lines[1].startswith(f"section: *A* {sentence} · 2026-11")


def test_what_revenue_is_made_of_is_said() -> None:
    of = {"charge": "400.5", "fee": "649.505", "promotional_credit": "50"}
    lines = read(compose(1, told(facts(revenue_of=of)))).splitlines()
    assert lines[8] == (
        "section: *Revenue is made of* | • charges: USD 400.50 | • fees: USD 649.50 | "
        "• less promotional credits: USD 50.00 | Of fees and minimums it is the part of the days so far."
    )
    assert "the days so far" not in read(compose(1, told(facts(revenue_of=of, whole=True))))


def test_unrated_usage_is_said() -> None:
    assert ":warning: part of the usage has no price" in read(compose(1, told(facts(charge_unrated=True))))
    assert ":warning: part of the usage has no cost" in read(compose(1, told(facts(cost_unrated=True))))


def test_a_digest_lists_all_it_can() -> None:
    alerts = [facts(name=f"Customer {n}", alert=f"margin_breach/c{n}/1") for n in range(12)]
    lines = read(compose(3, told(*alerts))).splitlines()
    assert lines[0] == "header: 12 customers fell below their margin floor"
    assert lines[1] == "section: Together USD 6,000.14 below. 2026-11, cut at 2026-11-22T16:45Z"
    assert lines[2].count("•") == 12
    assert "• *Customer 0*: margin USD -200.01 (-20.0 %), floor 30.0 % · margin_breach/c0/1" in lines[2]
    assert "more, each" not in read(compose(3, told(*alerts)))
    many = [facts(name=f"Customer {n}", alert=f"margin_breach/c{n}/1") for n in range(300)]
    text = read(compose(3, told(*many)))
    assert text.count("•") == DIGEST_ALERTS_MAX
    assert f"and {300 - DIGEST_ALERTS_MAX} more" in text


def within_slacks_limits(message: Post) -> None:
    assert len(message.blocks) <= 50
    assert 0 < len(message.text) <= 3000
    for block in message.blocks:
        if block["type"] == "header":
            assert 0 < len(block["text"]["text"]) <= 150
        elif "fields" in block:
            assert len(block["fields"]) <= 10
            assert all(0 < len(text["text"]) <= 2000 for text in block["fields"])
        elif block["type"] == "section":
            assert 0 < len(block["text"]["text"]) <= 3000
        else:
            assert block["type"] == "context"
            assert 0 < len(block["elements"]) <= 10


@pytest.mark.parametrize("count", [1, 2, 39, 300])
@pytest.mark.parametrize("name", ["&" * 5000, "<!channel>" * 200, "x" * 5000, "`" * 5000, "é\u202e\n" * 3000])
def test_no_name_breaks_the_limits_or_speaks_to_slack(count: int, name: str) -> None:
    part = {"what": [name, name, name], "cost": "1" * 14, "revenue": "0"}
    alerts = [facts(name=name, alert=f"margin_breach/{name}/{n}", parts=[part] * 9) for n in range(count)]
    message = compose(1, told(*alerts))
    within_slacks_limits(message)
    posted = json.dumps([message.text, message.blocks], ensure_ascii=False)
    assert "<" not in posted
    assert "\u202e" not in posted
    everything = posted.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
    assert "&" not in everything


@given(text=st.text(max_size=40), limit=st.integers(1, 60))
def test_escaped_text_keeps_to_its_limit_and_cuts_no_entity(text: str, limit: int) -> None:
    shown = escape(text, limit)
    assert len(shown) <= limit
    assert not set("<>`\n") & set(shown)
    plain = shown.replace("&amp;", "+").replace("&lt;", "+").replace("&gt;", "+")
    assert "&" not in plain
    if len(escape(text, 10_000)) <= limit:
        assert shown == escape(text, 10_000)


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        ("0.125", "USD 0.12"),
        ("0.135", "USD 0.14"),
        ("-0.125", "USD -0.12"),
        ("1234567.891", "USD 1,234,567.89"),
        ("0.001", "USD 0.00"),
        ("-0.001", "USD 0.00"),
        ("0", "USD 0.00"),
    ],
)
def test_amounts_are_rounded_half_even_for_people(exact: str, shown: str) -> None:
    assert amount(exact, "USD") == shown


@pytest.mark.parametrize(
    ("exact", "shown"), [(None, "-"), ("0.2", "20.0 %"), ("-12.34567", "-1,234.6 %"), ("0", "0.0 %")]
)
def test_ratios_are_shown_in_percent(exact: str | None, shown: str) -> None:
    assert share(exact) == shown
