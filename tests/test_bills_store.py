"""Bills in the ledger: entered once, known as of a watermark, chained; what a correction posts to which month."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.bills.document import Bill, BillLine
from metering.bills.revisions import Revision, changes, postings
from metering.errors import Fenced
from metering.settings import Settings, read_settings
from metering.store import bills, positions, postgres
from metering.store.verify import verify
from tests.ledger_builder import Event, Ledger
from workers import fold

OCTOBER, NOVEMBER, DECEMBER = (date(2026, month, 1) for month in (10, 11, 12))
SPAN = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))


def line(name: str, amount: str, *, of: str = "block-a", category: str = "charge") -> BillLine:
    return BillLine(name, category, "pool", of, Decimal(amount), *SPAN)


def bill(*lines: BillLine, document: str = "INV-1") -> Bill:
    return Bill("northwind", document, "USD", lines)


def test_the_digest_of_a_document_is_for_good() -> None:
    one = replace(line("1", "100.50"), description="October", split_of="9")
    golden = "da78658200464ba9eefdd5a8678f6034c65f32273a295f7182bee5d19d887ca9"
    assert bill(one).digest().hex() == golden
    # the order of lines, and how an amount is spelt, mean nothing
    two = line("2", "1")
    assert bill(two, replace(one, amount=Decimal("100.5000"))).digest() == bill(one, two).digest()
    assert bill(replace(one, amount=Decimal("100.51"))).digest() != bill(one).digest()


def test_a_correction_posts_its_differences_and_leaves_what_stood() -> None:
    first = bill(line("1", "100"), line("2", "50"), line("3", "7"))
    # in the same month: as if the first had never been
    second = bill(line("1", "110"), line("2", "50"), line("3", "7"))
    # later: 1 is 90, 2 is now of another pool, 3 is gone, 4 is new
    third = bill(line("1", "90"), line("2", "50", of="block-b"), line("4", "1"))
    told = [
        (one.line.line, one.line.category, one.line.object, str(one.line.amount), one.month)
        for one in postings(
            [Revision(1, OCTOBER, first), Revision(2, OCTOBER, second), Revision(3, DECEMBER, third)]
        )
    ]
    assert told == [
        ("1", "charge", "block-a", "110", OCTOBER),
        ("1 (revision 3)", "charge", "block-a", "-20", DECEMBER),
        ("2 (revision 3)", "charge", "block-b", "50", DECEMBER),
        ("4", "charge", "block-a", "1", DECEMBER),
        ("2", "true_up", "block-a", "50", OCTOBER),
        ("2 (reversed by revision 3)", "true_up", "block-a", "-50", DECEMBER),
        ("3", "true_up", "block-a", "7", OCTOBER),
        ("3 (reversed by revision 3)", "true_up", "block-a", "-7", DECEMBER),
    ]
    assert sum(Decimal(row[3]) for row in told) == third.total
    assert [(one.line, one.amount) for one in changes(second, third)] == [
        ("1", -20), ("2", 0), ("3", -7), ("4", 1),
    ]  # fmt: skip


def test_a_line_that_comes_back_has_a_name_of_its_own() -> None:
    whole, without = bill(line("1", "100"), line("2", "5")), bill(line("2", "5"))
    told = [
        (one.line.line, one.line.category, str(one.line.amount), one.month)
        for one in postings(
            [Revision(1, OCTOBER, whole), Revision(2, NOVEMBER, without), Revision(3, DECEMBER, whole)]
        )
    ]
    assert told == [
        ("1 (revision 3)", "charge", "100", DECEMBER),
        ("2", "charge", "5", OCTOBER),
        ("1", "true_up", "100", OCTOBER),
        ("1 (reversed by revision 2)", "true_up", "-100", NOVEMBER),
    ]


_LINES = st.dictionaries(
    st.sampled_from("123"), st.tuples(st.integers(0, 9), st.sampled_from(["block-a", "block-b"]))
)


@given(st.lists(st.tuples(_LINES, st.sampled_from([OCTOBER, NOVEMBER, DECEMBER])), min_size=1, max_size=6))
def test_what_is_posted_until_a_month_is_what_its_last_revision_said(
    said: list[tuple[dict[str, tuple[int, str]], date]],
) -> None:
    months = sorted(month for _, month in said)
    revisions = [
        Revision(
            number, month, bill(*(line(name, str(amount), of=of) for name, (amount, of) in lines.items()))
        )
        for number, ((lines, _), month) in enumerate(zip(said, months, strict=True), 1)
    ]
    found = postings(revisions)
    assert len({posting.line.line for posting in found}) == len(found)
    for until in (OCTOBER, NOVEMBER, DECEMBER):
        last = [revision.bill for revision in revisions if revision.month <= until]
        posted: dict[str, Decimal] = {}
        for posting in found:
            if posting.month <= until:
                of = str(posting.line.object)
                posted[of] = posted.get(of, Decimal(0)) + posting.line.amount
        expected: dict[str, Decimal] = {}
        for one in last[-1].lines if last else ():
            expected[str(one.object)] = expected.get(str(one.object), Decimal(0)) + one.amount
        assert {of: amount for of, amount in posted.items() if amount} == {
            of: amount for of, amount in expected.items() if amount
        }


@pytest.fixture
def settings(database_url: str) -> Settings:
    return read_settings(database_url=database_url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    made = Ledger(settings)
    yield made
    made.close()


def enter(settings: Settings, *entries: bills.Entry) -> list[int]:
    with postgres.connect_driver(settings, "operator") as connection:
        connection.autocommit = True
        role = f"{settings.role_prefix}operator"
        claim = positions.claim_intake(connection, "bills", role=role, owner="ann")
        numbers = bills.append(connection, claim, entries, by="ann")
        with pytest.raises(Fenced):
            bills.append(connection, claim, entries, by="ann")
        return numbers


def pin(settings: Settings) -> None:
    with postgres.connect(settings, "fold") as connection:
        fold.pin(connection, settings, "test")


def amounts(settings: Settings, as_of: int | None) -> list[tuple[str, str, Decimal, date]]:
    with postgres.reading(settings) as connection:
        lines = bills.read_bill_lines(connection, as_of)
    return lines.select("document", "line", "amount", "posted_month").rows()


def differences(settings: Settings, as_of: int | None = None) -> dict[str, str]:
    with postgres.reading(settings) as connection:
        checks = list(verify(connection, roots=True, watermark_id=as_of))
    return {check.name: check.difference for check in checks if check.difference}


def test_documents_are_known_as_of_a_watermark_and_verify_sees_every_change(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.batch(ledger.intake(), [Event("2026-10-31T10:00:00")])
    pin(settings)
    first = bill(line("1", "100"), line("2", "-5", category="credit"))
    other = bill(replace(line("1", "3"), description='of "any", \n or none'), document="INV-2")
    entry = bills.Entry(first, 1, OCTOBER, "october.csv", "")
    assert enter(settings, entry, bills.Entry(other, 1, NOVEMBER, "october.csv", "")) == [1, 2]
    pin(settings)
    stood = amounts(settings, None)

    def die(*arguments: object) -> None:
        raise psycopg.OperationalError("the process died")

    with monkeypatch.context() as patched:
        patched.setattr(bills, "_insert", die)
        with pytest.raises(psycopg.OperationalError):
            enter(settings, bills.Entry(other, 2, NOVEMBER, "again.csv", "never"))
    assert amounts(settings, None) == stood
    corrected = bill(line("1", "90"), line("2", "-5", category="credit"))
    assert enter(settings, bills.Entry(corrected, 2, NOVEMBER, "again.csv", "wrong price")) == [3]

    before = [("INV-1", "1", 100, OCTOBER), ("INV-1", "2", -5, OCTOBER), ("INV-2", "1", 3, NOVEMBER)]
    assert amounts(settings, 1) == []
    assert amounts(settings, 2) == before
    assert amounts(settings, None) == [
        before[0], ("INV-1", "1 (revision 2)", -10, NOVEMBER), *before[1:],
    ]  # fmt: skip
    with postgres.reading(settings) as connection:
        (described,) = bills.read_bill_lines(connection, 2).filter(document="INV-2").rows(named=True)
        assert described["description"] == 'of "any", \n or none'
        assert (described["object"], described["service_from"], described["service_until"]) == (
            "block-a",
            *SPAN,
        )
        kept = bills.revisions(connection, "northwind", "INV-1")
        assert bills.suppliers_of(connection, "INV-1") == ["northwind"]
        assert [row["amount"] for row in bills.listed(connection)] == [85, 3, 95]
    assert [(one.revision, one.bill.total, one.added_by, one.reason) for one in kept] == [
        (1, 95, "ann", ""), (2, 85, "ann", "wrong price"),
    ]  # fmt: skip

    assert differences(settings) == differences(settings, 2) == {}
    for change, told in (
        ("UPDATE bill_lines SET amount = 101 WHERE bill_id = 1 AND line = '1'", "do not match its digest"),
        ("UPDATE bills SET reason = 'right price' WHERE bill_id = 3", "does not match the root"),
        ("UPDATE bills SET posted_month = '2026-12-01' WHERE bill_id = 2", "does not match the root"),
        ("DELETE FROM bills WHERE bill_id = 2", "bill 2 is missing"),
        ("INSERT INTO bill_lines SELECT 9, line, category, object_kind, object, amount, service_from, "
         "service_until FROM bill_lines WHERE bill_id = 2", "1 bill lines are of no bill"),
    ):  # fmt: skip
        with postgres.connect(settings, None) as connection:
            connection.exec_driver_sql(change)
            _, difference = bills.first_difference(connection)
            assert difference is not None
            assert told in difference
            connection.rollback()
