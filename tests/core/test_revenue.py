"""Revenue of contracts under terms: what is theirs, and what is charged as everybody's."""

from metering.core.revenue import earned
from metering.frames.terms import CONTRACT_TERMS, CONTRACTS, DISCOUNTS
from metering.periods import Period
from tests.core.example_books import books, prices, usage
from tests.text_tables import check, instant, read

TWO = """
customer | contract | effective_from | effective_until
acme     | a        | 2026-01-01     | 2026-03-02
acme     | b        | 2026-03-02     | -
"""


def test_a_customers_contract_without_terms_is_not_earned_by_the_waterfall_too():
    """Contract a is charged quantity x unit price wherever charges are; b has half off: 10 x $1 less $5."""
    said = books(
        contracts=read(TWO, CONTRACTS, price_book="standard", floor_basis="usage"),
        contract_terms=read(TWO, CONTRACT_TERMS, currency="USD", anchor_day=1, zone="UTC", period_months=1),
        discounts=read(
            "customer | contract | discount | kind | ratio\n acme | b | half | contract | 0.5",
            DISCOUNTS,
            effective_from="2026-03-02",
        ),
        price_books=prices("item | meter | unit_price\n large | output_tokens | 1_000_000"),
    )
    used = usage("quarter_start | output_tokens\n 2026-03-01 00:00 | 10\n 2026-03-02 00:00 | 10")
    period = Period("two days", instant("2026-03-01"), instant("2026-03-03"))
    found = earned(used, said, period, period.until).lines
    check(
        found.with_columns(found["gross"] // 10**12, found["net"] // 10**12),
        "contract | gross | net\n b | 10 | 5",
    )
