"""Files of bills: what they hold, and every fault by file, line, column, value and remedy."""

import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.bills import focus
from metering.bills.document import BillLine
from metering.bills.reading import BillFile, Known, read_bills
from metering.bills.splitting import split_over
from metering.catalog import load_folder
from metering.catalog.books import books
from tests.test_bills_store import line

EXAMPLES = Path(__file__).parent.parent / "examples" / "bills"
SPECIFICATION = Path(__file__).resolve().parents[2] / "shared/data/focus_spec_examples"
KNOWN = Known(
    pools={"block-a": "northstar-compute", "ptu-west": "cirrus", "<my-commitment-discount-id>": "Acme Co"},
    commitments={"cloud-2026": "cirrus"},
    models=frozenset({("cirrus", "lumen-large"), ("cirrus", "lumen-small"), ("ACMECORP", "x")}),
)
HEADER = "supplier,document,currency,line,category,object_kind,object,amount,service_from,service_until"
ROW = "cirrus,C-1,USD,1,charge,pool,ptu-west,100.50,2026-10-01,2026-11-01"


def read(name: str, content: bytes | str, **more: object) -> BillFile:
    text = content.encode() if isinstance(content, str) else content
    return read_bills(name, text, KNOWN, **{"lines_max": 50, **more})  # type: ignore[arg-type]


def mapped(text: str) -> focus.Mapping:
    found, faults = focus.read_mapping("map.yaml", text.encode())
    assert faults == []
    return found


def told(found: BillFile) -> list[tuple[str, str, str | None, str, str]]:
    return [
        (
            one.line,
            f"{one.category} {one.object_kind}",
            one.object,
            str(one.amount),
            f"{one.service_from:%m-%d}",
        )
        for bill in found.bills
        for one in bill.lines
    ]


# ---- the three formats ---------------------------------------------------------------------------------


def test_the_examples_are_read_and_a_credit_of_the_whole_invoice_is_split() -> None:
    found = read("northstar.yaml", (EXAMPLES / "northstar-2026-10.yaml").read_bytes())
    assert found.faults == ()
    assert told(found) == [
        ("1", "charge pool", "block-a", "52560.00", "10-01"),
        ("2", "charge overhead", None, "1440.00", "10-01"),
        ("3/1", "credit pool", "block-a", "-486.67", "10-01"),
        ("3/2", "credit overhead", None, "-13.33", "10-01"),
    ]
    found = read("cirrus.csv", (EXAMPLES / "cirrus-2026-10.csv").read_bytes())
    assert [(bill.name, bill.total) for bill in found.bills] == [("cirrus CIR-55-2610", Decimal("20541.87"))]
    assert told(found)[3] == ("4", "true_up on_demand", None, "-12.40", "09-01")


def test_the_examples_are_of_the_example_company() -> None:
    known = Known.of(books(load_folder(EXAMPLES.parent / "catalog"), 1))
    mapping = mapped((EXAMPLES / "cirrus-focus-map.yaml").read_text())
    for path in EXAMPLES.iterdir():
        if path.name != "cirrus-focus-map.yaml":
            found = read_bills(path.name, path.read_bytes(), known, mapping=mapping, lines_max=50)
            assert (found.faults, len(found.bills)) == ((), 1), path.name


FOCUS = [
    ("2", "charge pool", "ptu-west", "10400.00", "10-01"),
    ("5", "charge on_demand", "lumen-large", "310.25", "10-01"),
    ("6", "charge on_demand", "lumen-large", "295.75", "10-02"),
    ("7", "charge overhead", None, "99.00", "10-01"),
    # 55.00 x 10,400 / 11,105 = 51.508..., 1.536..., 1.464..., 0.490...: the last cent goes to .00823 of a cent
    ("8/2", "credit pool", "ptu-west", "-51.51", "10-01"),
    ("8/5", "credit on_demand", "lumen-large", "-1.54", "10-01"),
    ("8/6", "credit on_demand", "lumen-large", "-1.46", "10-01"),
    ("8/7", "credit overhead", None, "-0.49", "10-01"),
]


def test_a_focus_file_enters_what_was_billed_and_says_what_it_leaves_out() -> None:
    mapping = mapped((EXAMPLES / "cirrus-focus-map.yaml").read_text())
    content = (EXAMPLES / "cirrus-focus.csv").read_bytes()
    found = read("focus.csv", content, mapping=mapping)
    assert found.faults == ()
    assert told(found) == FOCUS
    assert found.bills[0].name == "cirrus CIR-FOCUS-10"
    assert found.notes == (
        "1 rows of tax, 2109.5, are left out: tax is no cost",
        "2 rows without billed cost are left out: what covers them was billed elsewhere",
        "EffectiveCost sums to 13159.5: amortised by the supplier, not entered",
    )
    # the same as Parquet, amounts as decimals, times as instants
    frame = pl.read_csv(content, infer_schema=False).with_columns(
        pl.col("BilledCost", "EffectiveCost").cast(pl.Decimal(38, 10)),
        pl.col("^.*Period(Start|End)$").str.to_datetime(time_zone="UTC"),
        Tags=pl.lit([["a"]]),
    )
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    found = read("focus.parquet", buffer.getvalue(), mapping=mapping)
    assert found.faults == ()
    assert [row[1:3] for row in told(found)] == [row[1:3] for row in FOCUS]
    assert [Decimal(row[3]) for row in told(found)] == [Decimal(row[3]) for row in FOCUS]


#: What each example of the specification needs to load, or why it is refused. They are excerpts: they lack
#: columns that FOCUS requires, or were written by a spreadsheet.
_EXCERPT = (
    "constants: {BillingCurrency: USD, ProviderName: Acme Co, BillingPeriodStart: 2023-01-01}\nobjects: []\n"
)
_SPREADSHEET = "locale: en-US\notherwise: overhead\nsuppliers: {Acme Co: Acme Co}\n"


def test_a_computed_amount_of_a_focus_file_is_rounded_where_no_invoice_is_finer_and_told() -> None:
    header = (
        "BilledCost,BillingCurrency,ChargeCategory,ChargePeriodStart,ChargePeriodEnd,InvoiceIssuerName,"
        "InvoiceId,ResourceId"
    )
    rest = "USD,Usage,2026-10-01T00:00Z,2026-10-02T00:00Z,cirrus,7,ptu-west"
    amounts = (
        "0.0000000000025",
        "0.0000000000035",
        "12.5E-3",
        "0.00000000000001",
        "1" * 30 + ".0000000000001",
    )
    found = read("f.csv", "\n".join((header, *(f"{amount},{rest}" for amount in amounts[:4]))))
    assert [str(one.amount) for one in found.bills[0].lines] == ["2E-12", "4E-12", "0.0125"]
    assert found.notes[0] == (
        "3 amounts have more than 12 decimals and are rounded to 12, which changes their sum by -0.00000000000001"
    )
    assert "1 rows without billed cost" in found.notes[1]
    (fault,) = read("f.csv", f"{header}\n{amounts[4]},{rest}").faults
    assert "is not below 100,000,000,000,000" in fault.problem


@pytest.mark.skipif(not SPECIFICATION.exists(), reason="the examples of the specification are not here")
def test_every_example_of_the_specification_loads_or_was_never_billed() -> None:
    totals, refused = {}, {}
    for path in sorted(SPECIFICATION.glob("*.csv")):
        content = path.read_bytes()
        excerpt = b"BillingCurrency" not in content
        # as it is: refused for the columns that it lacks, or for how a spreadsheet wrote it
        bare = [str(fault) for fault in read(path.name, content).faults]
        assert bare
        reason = "the column is missing" if excerpt else "nothing says what|no row has a billed cost"
        assert any(part in fault for fault in bare for part in reason.split("|")), (path.name, bare)
        found = read(
            path.name, content, mapping=mapped(_EXCERPT + "otherwise: overhead" if excerpt else _SPREADSHEET)
        )
        if found.faults:
            refused[path.stem] = found.faults[0].problem
        totals[path.stem] = [(bill.document, str(bill.total.normalize())) for bill in found.bills]
    assert len(totals) == 26
    assert totals["commitment_discount_purchase_scenario_1"] == [("2023-01", "8.76E+3")]
    assert totals["simple_saas_agreements_c"] == [
        ("2025-04", "1.01E+4"), ("2025-05", "1.3E+4"), ("2025-06", "1.27E+4"),
    ]  # fmt: skip
    # two have an hour 30; of six nothing was billed: a commitment covers it
    of_no_time = [name for name, problem in refused.items() if problem.startswith("is not a date or time")]
    assert of_no_time == [
        "commitment_discount_purchase_scenario_2",
        "commitment_discount_purchase_scenario_3",
    ]
    free = [name for name, problem in refused.items() if problem.startswith("no row has a billed cost")]
    assert len(free) == len(refused) - 2 == 6, refused


# ---- faults --------------------------------------------------------------------------------------------


def changed(name: str, value: str) -> Callable[[], str]:
    cells = ROW.split(",")
    cells[HEADER.split(",").index(name)] = value
    return lambda: f"{HEADER}\n{','.join(cells)}\n"


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda: "", "b.csv: the file is empty"),
        (lambda: f"{HEADER}\n", "b.csv: holds no line"),
        (lambda: f"{HEADER},colour\n", "b.csv:1: colour: there is no such column"),
        (lambda: f"{HEADER},line\n", "b.csv:1: line: stands twice"),
        (lambda: "supplier,line\n", "b.csv:1: document: the column is missing"),
        (lambda: f"{HEADER}\n1,2\n", "b.csv:2: has 2 cells, the header has 10"),
        (lambda: f"{HEADER}\n" + f"{ROW}\n" * 51, "b.csv: has 51 lines; at most 50"),
        (lambda: f"{HEADER}\n{ROW}\n{ROW}\n", "b.csv:3: line: '1': stands in line 2 already"),
        (
            lambda: f"{HEADER}\n{ROW}\n" + ROW.replace("USD,1", "EUR,2"),
            "b.csv:3: currency: 'EUR': in line 2 it is USD: a document has one",
        ),
        (changed("supplier", ""), "b.csv:2: supplier: is empty"),
        (changed("supplier", "nobody"), "b.csv:2: supplier: 'nobody': no pool, commitment or model of the catalog"),
        (changed("object", "ptu-east"), "b.csv:2: object: 'ptu-east': the catalog has no such pool; of cirrus it has pt"),
        (changed("object", "block-a"), "b.csv:2: object: 'block-a': is a pool of northstar-compute"),
        (changed("object", ""), "b.csv:2: object: is empty; name the pool: ptu-west"),
        (changed("object_kind", "commitment"), "b.csv:2: object: 'ptu-west': the catalog has no such commitment"),
        (changed("object_kind", "on_demand"), "b.csv:2: object: 'ptu-west': is no model that cirrus serves"),
        (changed("object_kind", "overhead"), "b.csv:2: object: 'ptu-west': overhead has no object"),
        (changed("object_kind", "box"), "b.csv:2: object_kind: 'box': is none of pool, on_demand"),
        (changed("category", "refund"), "b.csv:2: category: 'refund': is none of charge, credit, true_up"),
        (changed("category", "credit"), "b.csv:2: amount: '100.50': a credit is 0 or less"),
        (changed("amount", "-1"), "b.csv:2: amount: '-1': a charge is 0 or more"),
        (changed("amount", "1e3"), "b.csv:2: amount: '1e3': is not a plain decimal number"),
        (changed("amount", "NaN"), "b.csv:2: amount: 'NaN': is not a plain decimal number"),
        (changed("amount", "1" + "0" * 14), "b.csv:2: amount: '100000000000000': is not below 100,000,000,000,000"),
        (changed("amount", "0." + "0" * 12 + "1"), "b.csv:2: amount: '0.0000000000001': has more than 12 decimals"),
        (changed("amount", "9" * 20 + "." + "1" * 13), "b.csv:2: amount: '99999999999999999999.1111111111111': is not"),
        (changed("service_until", "9999-12-31T23:00-05:00"), "b.csv:2: service_until: '9999-12-31T23:00-05:00': lies"),
        (changed("service_from", "0001-01-01T00:00+05:00"), "b.csv:2: service_from: '0001-01-01T00:00+05:00': lies outside"),
        (changed("currency", "usd"), "b.csv:2: currency: 'usd': is a currency of three capital letters"),
        (changed("line", "1 (revision 2)"), "b.csv:2: line: '1 (revision 2)': is named as a correction is"),
        (changed("document", "x" * 201), "b.csv:2: document: '" + "x" * 64 + "': has 201 bytes"),
        (changed("service_from", "10/1/26"), "b.csv:2: service_from: '10/1/26': is not a date or time"),
        (changed("service_from", "2026-10-01T00:05Z"), "b.csv:2: service_from: '2026-10-01T00:05Z': is not on a quarter"),
        (changed("service_from", "2026-11-01"), "b.csv:2: service_until: '2026-11-01': the service ends at or before"),
        (changed("service_from", "2026-10-01T00:00"), "b.csv:2: service_from: '2026-10-01T00:00': has no zone; write"),
        (
            lambda: f"{HEADER},posted_month\n{ROW},2026-13\n",
            "b.csv:2: posted_month: '2026-13': is no month; write 2026-10",
        ),
        (
            lambda: f"{HEADER}\n" + ROW.replace("charge,pool,ptu-west,100", "credit,invoice,,-100"),
            "b.csv:2: object_kind: 'invoice': C-1 has no charge over which this could be split",
        ),
        (
            lambda: "\n".join((HEADER, *(ROW.replace("USD,1", f"USD,{n}") for n in range(10)), *(
                ROW.replace("USD,1", f"USD,c{n}").replace("charge,pool,ptu-west,100", "credit,invoice,,-1")
                for n in range(6)))),
            "b.csv:12: object_kind: 'invoice': 6 credits of the whole invoice over 10 charges make more than 50",
        ),
        (
            lambda: f"{HEADER}\n" + ROW.replace("pool,ptu-west", "invoice,"),
            "b.csv:2: object_kind: 'invoice': a line of the whole invoice is a credit",
        ),
    ],
)  # fmt: skip
def test_a_fault_names_file_line_column_value_and_remedy(made: Callable[[], str], fault: str) -> None:
    found = read("b.csv", made())
    assert found.bills == ()
    assert str(found.faults[0]).startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bills: []", "b.yaml: holds no line"),
        ("bill: []", "b.yaml:1: (a mapping)"),
        ("bills:\n  - {supplier: cirrus}", "b.yaml:2: bills[0]: (a mapping): is a document"),
        ("bills:\n  - {colour: red, lines: []}", "b.yaml:2: bills[0].colour: 'red': there is no such field"),
        (
            "bills:\n  - supplier: cirrus\n    lines:\n      - {amount: [1]}",
            "b.yaml:4: bills[0].lines[0].amount",
        ),
        ("bills:\n  - supplier: cirrus\n    lines:\n      - {amount: 1}", "b.yaml:4: document: is empty"),
        (
            "bills:\n  - document: ''\n    supplier: cirrus\n    lines:\n      - {amount: 1}",
            "b.yaml:5: document: is empty",
        ),
        ("bills: [", "b.yaml:1: is not YAML"),
    ],
)
def test_a_yaml_file_is_refused_by_line(text: str, fault: str) -> None:
    assert str(read("b.yaml", text).faults[0]).startswith(fault)


def test_a_local_time_is_of_the_zone_that_is_named() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    local = f"{HEADER}\n" + ROW.replace("2026-10-01", "2026-10-01 00:00").replace(
        "2026-11-01", "2026-11-01T00:00"
    )
    (bill,) = read("b.csv", local, zone=berlin).bills
    assert [at.isoformat() for at in (bill.lines[0].service_from, bill.lines[0].service_until)] == [
        "2026-09-30T22:00:00+00:00",
        "2026-10-31T23:00:00+00:00",
    ]
    # a date is a UTC day, whatever the zone
    (bill,) = read("b.csv", f"{HEADER}\n{ROW}", zone=berlin).bills
    assert bill.lines[0].service_from.isoformat() == "2026-10-01T00:00:00+00:00"
    twice = f"{HEADER}\n" + ROW.replace("2026-11-01", "2026-10-25T02:30")
    (fault,) = read("b.csv", twice, zone=berlin).faults
    assert "comes twice or never in Europe/Berlin" in fault.problem


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- x", "map.yaml:1: (a list): is a mapping of any of suppliers"),
        ("colour: red", "map.yaml:1: colour: 'red': there is no such key"),
        ("suppliers: [a]", "map.yaml:1: suppliers: (a list): is a mapping of names"),
        ("otherwise: pool", "map.yaml:1: otherwise: 'pool': is none of overhead, on_demand"),
        ("locale: de-DE", "map.yaml:1: locale: 'de-DE': is none of en-US"),
        ("objects: {a: b}", "map.yaml:1: objects: (a mapping): is a list; each is {column"),
        ("objects:\n  - {column: SkuId}", "map.yaml:2: objects[0]: (a mapping): is {column"),
    ],
)
def test_a_map_file_is_refused_by_line(text: str, fault: str) -> None:
    _, faults = focus.read_mapping("map.yaml", text.encode())
    assert str(faults[0]).startswith(fault)


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("BilledCost", "", "f.csv:2: BilledCost: is empty"),
        ("BilledCost", '"$1,000.00"', "f.csv:2: BilledCost: '$1,000.00': is not a plain decimal number such as 1234.50, "
         "without separators; `locale: en-US`"),
        ("ChargeCategory", "Gift", "f.csv:2: ChargeCategory: 'Gift': is none of Usage, Purchase"),
        ("InvoiceIssuerName", "Cirrus", "f.csv:2: InvoiceIssuerName: 'Cirrus': no pool, commitment or model"),
        ("ResourceId", "vm-1", "f.csv:2: CommitmentDiscountId/CapacityReservationId/ResourceId: nothing says what this "
         "row is for (ResourceId 'vm-1')"),
        ("ChargePeriodStart", "2026-10-01T00:00", "f.csv:2: ChargePeriodStart: '2026-10-01T00:00': has no zone"),
    ],
)  # fmt: skip
def test_a_focus_file_is_refused_by_its_own_columns(column: str, value: str, fault: str) -> None:
    cells = {
        "BilledCost": "5", "BillingCurrency": "USD", "ChargeCategory": "Usage", "ChargePeriodStart": "2026-10-01T00:00Z",
        "ChargePeriodEnd": "2026-10-02T00:00Z", "InvoiceIssuerName": "cirrus", "InvoiceId": "7", "ResourceId": "ptu-west",
    }  # fmt: skip

    def file(row: dict[str, str]) -> str:
        return f"{','.join(row)}\n{','.join(row.values())}\n"

    assert told(read("f.csv", file(cells))) == [("2", "charge pool", "ptu-west", "5", "10-01")]
    assert str(read("f.csv", file({**cells, column: value})).faults[0]).startswith(fault)
    lacking = {name: cell for name, cell in cells.items() if name != column}
    if column in ("BilledCost", "ChargeCategory", "ChargePeriodStart"):
        (missing,) = read("f.csv", file(lacking)).faults
        assert str(missing).startswith(f"f.csv:1: {column}: the column is missing: FOCUS files have it")


# ---- splits --------------------------------------------------------------------------------------------


@given(
    st.lists(st.decimals("0.01", "99999999", places=2), min_size=1, max_size=8),
    st.decimals("-99999999", "0", places=2).filter(bool),
)
def test_a_split_loses_nothing_and_no_part_is_a_minor_unit_off(
    charges: list[Decimal], credit: Decimal
) -> None:
    lines: list[BillLine] = [line(str(at), str(amount)) for at, amount in enumerate(charges)]
    parts = split_over(lines, line("c", str(credit), category="credit"), "USD")
    assert sum(part.amount for part in parts) == credit
    by_charge = {part.line.removeprefix("c/"): part.amount for part in parts}
    for one in lines:
        exact = credit * one.amount / sum(charges)
        assert abs(by_charge.get(one.line, Decimal(0)) - exact) < Decimal("0.01")
