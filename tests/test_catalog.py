"""The catalog without a database: good folders become books, bad ones become a list of what to mend."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import catalog
from metering.catalog import CatalogObjects, Entry, books, load_folder, plan, read_folder, result
from metering.catalog.fields import decimal_text
from metering.catalog.objects import OBJECTS, CatalogObject, body, from_body
from metering.catalog.spans import minus
from metering.errors import BadInput
from metering.meters import CONTEXT_BREAKPOINTS, FIRST_METERS, METERS, TOKEN_METERS

EXAMPLES = Path(__file__).parent.parent / "examples"
AT = datetime(2026, 3, 10, 12, 1, tzinfo=UTC)
ENDS = datetime(2026, 3, 10, 12, 15, tzinfo=UTC)

SOUND = """\
customers:
  - customer: acme
    name: Acme
    dated:
      - {effective_from: 2026-01-01, kind: paying, segment: enterprise}
models:
  - {provider: own, model: large, name: Large}
  - {provider: cloud, model: large, name: Large at Cloud, cost_book: on-demand}
price_books:
  - book: standard
    currency: USD
    prices:
      - {product: large, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 3, output_tokens: 15}}
cost_books:
  - book: on-demand
    provider: cloud
    currency: USD
    prices:
      - {model: large, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 2, output_tokens: 10}}
contracts:
  - {contract: acme-2026, customer: acme, price_book: standard, effective_from: 2026-01-01}
capacity_contracts:
  - pool: block
    supplier: northstar
    unit: accelerator
    currency: USD
    steps:
      - {effective_from: 2026-01-01, units: 10, fee_per_month: 1000.00}
    dimensions:
      - dimension: all
        unit_burn_per_minute: 60000
        burndown:
          - {models: [large], effective_from: 2026-01-01, weights: {accelerator_ms: 1, other_meters: 0}}
sources:
  - {source: "gateway://west", name: Gateway West}
"""


def folder_of(path: Path, **files: str | bytes) -> Path:
    """A folder with one file per keyword: `a="..."` becomes a.yaml."""
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (path / f"{name}.yaml").write_bytes(data)
    return path


def objects_of(path: Path, content: str = SOUND) -> CatalogObjects:
    path.mkdir(exist_ok=True)
    return load_folder(folder_of(path, catalog=content))


def faults_of(path: Path, **files: str | bytes) -> list[str]:
    return [str(fault) for fault in read_folder(folder_of(path, **files))[1]]


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- bad catalogs ------------------------------------------------------------------------------------

#: What replaces what in SOUND (once), and the faults that must be listed, whole.
BAD: list[tuple[str, str, list[str]]] = [
    (
        "name: Acme\n",
        "nmae: Acme\n",
        [
            "catalog.yaml:2: customers[0].name: (missing): is required; add it",
            "catalog.yaml:3: customers[0].nmae: 'Acme': is not a field here; did you mean name?",
        ],
    ),
    (
        "kind: paying",
        "kind: payng",
        [
            "catalog.yaml:5: customers[0].dated[0].kind: 'payng': "
            "must be one of 'paying', 'trial', 'free', 'internal' or 'research'"
        ],
    ),
    (
        "output_tokens: 15",
        "output_tokens: -15",
        [
            "catalog.yaml:13: price_books[0].prices[0].per_million.output_tokens: '-15': "
            "must not be negative; a price per million is 0 or more"
        ],
    ),
    (
        "output_tokens: 15",
        "output_tokens: 0.0000001",
        [
            "catalog.yaml:13: price_books[0].prices[0].per_million.output_tokens: '1E-7': "
            "has more than 6 decimals; round a price per million to at most 6"
        ],
    ),
    (
        "output_tokens: 15",
        "output_tokens: 1.5e1",
        [
            "catalog.yaml:13: price_books[0].prices[0].per_million.output_tokens: '1.5e1': "
            "must be a price per million: a plain decimal number such as 3.00, without exponent or separators"
        ],
    ),
    (
        "output_tokens: 15",
        "output_tokens: .nan",
        [
            "catalog.yaml:13: price_books[0].prices[0].per_million.output_tokens: '.nan': "
            "must be a price per million: a plain decimal number such as 3.00, without exponent or separators"
        ],
    ),
    (
        "output_tokens: 15",
        "output_tokens: ",
        [
            "catalog.yaml:13: price_books[0].prices[0].per_million.output_tokens: (empty): "
            "must be a price per million: a plain decimal number such as 3.00, without exponent or separators"
        ],
    ),
    (
        "output_tokens: 15",
        "outptu_tokens: 15",
        [
            "catalog.yaml:13: price_books[0].prices[0].per_million.outptu_tokens: 'outptu_tokens': "
            f"is not a meter; meters are {', '.join(METERS)}"
        ],
    ),
    (
        "customer: acme, price_book: standard",
        "customer: acne, price_book: standrad",
        [
            "catalog.yaml:21: contracts[0].customer: 'acne': "
            "no such customer in this catalog; known are acme",
            "catalog.yaml:21: contracts[0].price_book: 'standrad': "
            "no such price book in this catalog; known are standard",
        ],
    ),
    (
        "cost_book: on-demand",
        "cost_book: on-demnad",
        [
            "catalog.yaml:8: models[1].cost_book: 'on-demnad': "
            "no such cost book in this catalog; known are on-demand"
        ],
    ),
    (
        "models: [large]",
        "models: [larger]",
        [
            "catalog.yaml:33: capacity_contracts[0].dimensions[0].burndown[0].models[0]: 'larger': "
            "no such model in this catalog; known are *, large"
        ],
    ),
    (
        "  - {contract: acme-2026,",
        "  - {contract: acme-new, customer: acme, price_book: standard, effective_from: 2026-06-01}\n"
        "  - {contract: acme-2026,",
        [
            "catalog.yaml:21: contracts[0].effective_from: '2026-06-01T00:00Z': overlaps catalog.yaml:22 "
            "(2026-01-01T00:00Z to open); give that one `effective_until: "
            "2026-06-01T00:00Z` or start this one later"
        ],
    ),
    (
        "  - {contract: acme-2026,",
        "  - {contract: acme-2026, customer: acme, price_book: standard, effective_from: 2025-01-01}\n"
        "  - {contract: acme-2026,",
        [
            "catalog.yaml:21: contracts[0].effective_from: '2025-01-01T00:00Z': "
            "lies before the customer's first dated entry (2026-01-01T00:00Z); move one",
            "catalog.yaml:22: contracts[1]: 'acme-2026': "
            "this contract is already defined at catalog.yaml:21; "
            "keep one of them",
        ],
    ),
    (
        "customer: acme, price_book: standard, effective_from: 2026-01-01}",
        "customer: acme, price_book: standard, effective_from: 2026-01-01, "
        "fees: [{fee: plan, amount_per_month: 100}]}",
        ["catalog.yaml:21: contracts[0].fees[0].currency: (missing): is required; add it"],
    ),
    (
        "customer: acme, price_book: standard, effective_from: 2026-01-01}",
        "customer: acme, price_book: standard, effective_from: 2026-01-01T00:10}",
        [
            "catalog.yaml:21: contracts[0].effective_from: '2026-01-01T00:10': "
            "is not on a quarter hour; use minute 00, 15, 30 or 45"
        ],
    ),
    (
        "customer: acme, price_book: standard, effective_from: 2026-01-01}",
        "customer: acme, price_book: standard, effective_from: 2026-02-30, margin_floor_ratio: 20}",
        [
            "catalog.yaml:21: contracts[0].effective_from: '2026-02-30': "
            "is not a date or time; write 2026-01-01 or 2026-01-01T06:15Z (UTC)",
            "catalog.yaml:21: contracts[0].margin_floor_ratio: '20': "
            "is larger than 1; a ratio is 0..1, so 20 percent is 0.20",
        ],
    ),
    (
        "customer: acme, price_book: standard, effective_from: 2026-01-01}",
        "customer: acme, price_book: standard, effective_from: 2026-02-01, effective_until: 2026-02-01}",
        [
            "catalog.yaml:21: contracts[0].effective_until: '2026-02-01T00:00Z': "
            "must be later than effective_from (2026-02-01T00:00Z)"
        ],
    ),
    (
        "currency: USD\n    prices:\n      - {product",
        "currency: dollars\n    prices:\n      - {product",
        [
            "catalog.yaml:11: price_books[0].currency: 'dollars': "
            "must be a currency of three capital letters, such as USD"
        ],
    ),
    (
        "{product: large,",
        "{product: large, above_input_tokens: 100000,",
        [
            "catalog.yaml:13: price_books[0].prices[0].above_input_tokens: '100000': "
            "must be one of 128000, 200000, 256000, 272000, 512000; leave it out for 0"
        ],
    ),
    (
        "cost_books:",
        "      - {product: large, effective_from: 2026-01-01, above_input_tokens: 200000, "
        "per_million: {output_tokens: 20}}\ncost_books:",
        [
            "catalog.yaml:14: price_books[0].prices[1].per_million: (missing): has no price for "
            "uncached_input_tokens, which requests below 200000 tokens have; past the breakpoint all "
            "tokens of "
            "a request take these prices, so name them all"
        ],
    ),
    (
        "cost_books:",
        "      - {product: large, effective_from: 2026-01-01, per_million: {output_tokens: 20}}\ncost_books:",
        [
            "catalog.yaml:14: price_books[0].prices[1].effective_from: '2026-01-01T00:00Z': "
            "overlaps catalog.yaml:13 (2026-01-01T00:00Z to open); keep one of them"
        ],
    ),
    (
        "weights: {accelerator_ms: 1, other_meters: 0}",
        "weights: {accelerator_ms: 1, output_tokens: 2}",
        [
            "catalog.yaml:33: capacity_contracts[0].dimensions[0].burndown[0].weights: (missing): "
            "has no weight "
            "for uncached_input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens; "
            "name them, or say `other_meters: 0`"
        ],
    ),
    (
        "    unit: accelerator\n",
        "    unit: accelerator\n    idle_policy: evenly\n",
        [
            "catalog.yaml:26: capacity_contracts[0].idle_policy: 'evenly': "
            "must be one of 'none', 'burn' or 'entitlement'"
        ],
    ),
    (
        "dimension: all",
        "dimension: input",
        [
            "catalog.yaml:28: capacity_contracts[0].steps[0].units: 'all': "
            "there is no dimension all; it has input",
            "catalog.yaml:28: capacity_contracts[0].steps[0].units: 'input': "
            "no units are given for dimension input; add them",
        ],
    ),
    (
        "units: 10,",
        "units: 10.5,",
        [
            "catalog.yaml:28: capacity_contracts[0].steps[0].units.all: '10.5': "
            "must be a whole number, without quotes, decimals or separators"
        ],
    ),
    (
        "customer: acme\n",
        "customer: 42\n",
        [
            "catalog.yaml:2: customers[0].customer: '42': must be text; put it in quotes",
            "catalog.yaml:21: contracts[0].customer: 'acme': "
            "no such customer in this catalog; known are none",
        ],
    ),
    (
        "    name: Acme\n",
        "    name: Acme\n    name: Acme Inc\n",
        ["catalog.yaml:4: customers[0].name: 'name': is given twice (first on line 3); keep one of them"],
    ),
    (
        "sources:",
        "soruces:",
        ["catalog.yaml:34: soruces: 'soruces': is not a section; did you mean sources?"],
    ),
    (
        "{provider: own, model: large, name: Large}",
        "own/large",
        ["catalog.yaml:7: models[0]: 'own/large': must be a mapping of `field: value` lines"],
    ),
    (
        "provider: cloud\n    currency",
        "provider: own\n    currency",
        [
            "catalog.yaml:8: models[1].cost_book: 'on-demand': is a book of provider own, and this model is "
            "served by cloud; name a cost book of cloud"
        ],
    ),
    (
        "- {model: large, effective",
        "- {model: small, effective",
        [
            "catalog.yaml:19: cost_books[0].prices[0].model: 'small': "
            "provider cloud serves no such model; list it under models"
        ],
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), BAD, ids=[f"{i}-{row[1][:30]}" for i, row in enumerate(BAD)]
)
def test_a_fault_names_file_line_field_value_and_remedy(
    tmp_path: Path, old: str, new: str, expected: list[str]
) -> None:
    assert SOUND.count(old) == 1
    assert faults_of(tmp_path, catalog=SOUND.replace(old, new)) == expected


def test_the_sound_catalog_has_no_faults(tmp_path: Path) -> None:
    assert faults_of(tmp_path, catalog=SOUND) == []


def test_all_faults_of_all_files_are_listed_by_file_and_line(tmp_path: Path) -> None:
    folder_of(
        tmp_path,
        b="customers:\n  - {customer: x, name: X, dated: []}\n",
        a="models:\n  - {provider: a/b, model: m, name: M}\n  - {provider: p, model: '', name: M}\n",
    )
    with pytest.raises(BadInput) as caught:
        load_folder(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: 3 faults in the catalog, nothing was changed",
        "a.yaml:2: models[0].provider: 'a/b': must not contain '/': "
        "it separates provider and model in a model's name",
        "a.yaml:3: models[1].model: '': "
        "must be text that is not empty, without spaces around it or control characters",
        "b.yaml:2: customers[0].dated: (a list): must not be empty",
    ]


UNREADABLE: list[tuple[str, str | bytes, str]] = [
    ("tab", "customers:\n\t- a", "a.yaml:2: is not YAML: found character '\\t' that cannot start any token"),
    ("not UTF-8", b"customers: []\n# caf\xe9\n", "a.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ("control", b"customers: \x01\n", "a.yaml:1: is not YAML: "),
    ("two documents", "customers: []\n---\nmodels: []\n", "a.yaml:2: is not YAML: "),
    ("list", "- a\n", "a.yaml:1: (a list): must be a mapping with one of these keys: customers, models"),
    (
        "scalar",
        "customers: acme\n",
        "a.yaml:1: customers: 'acme': must be a list: start each entry with `- `",
    ),
    ("alias", "customers: &a []\nmodels: *a\n", "a.yaml:1: models: (empty): is an alias (*name); aliases"),
    ("tag", "customers: !!python/object:os.system x\n", "a.yaml:1: customers: "),
    ("deep", "customers: " + "[" * 5000 + "]" * 5000, "a.yaml:1: is nested too deeply"),
]


@pytest.mark.parametrize(
    ("content", "expected"), [row[1:] for row in UNREADABLE], ids=[r[0] for r in UNREADABLE]
)
def test_a_file_that_is_not_a_catalog_is_refused(tmp_path: Path, content: str | bytes, expected: str) -> None:
    faults = faults_of(tmp_path, a=content, b=SOUND)
    assert len(faults) == 1
    assert faults[0].startswith(expected)


def test_a_name_whose_own_entry_is_faulty_is_not_reported_twice(
    tmp_path: Path,
) -> None:
    faults = faults_of(
        tmp_path,
        catalog=SOUND.replace("currency: USD\n    prices:\n      - {product", "prices:\n      - {product"),
    )
    assert faults == ["catalog.yaml:10: price_books[0].currency: (missing): is required; add it"]


def test_a_folder_without_a_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere: there is no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"holds no \.yaml file"):
        load_folder(tmp_path)
    (tmp_path / ".hidden.yaml").write_text(SOUND)
    with pytest.raises(BadInput, match=r"holds no \.yaml file"):
        load_folder(tmp_path)
    folder_of(tmp_path, empty="customers: []\n")
    with pytest.raises(BadInput, match="its files name nothing"):
        load_folder(tmp_path)
    with pytest.raises(BadInput, match=r"empty\.yaml: is a file"):
        load_folder(tmp_path / "empty.yaml")


# ---- books -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["catalog", "azure-trace"])
def test_the_examples_are_sound_and_priced(name: str) -> None:
    made = books(load_folder(EXAMPLES / name), 1)
    assert made.customers.height >= 5
    priced = made.price_books.filter(pl.col("book") != "internal")["meter"].unique().sort().to_list()
    # the company sells text alone
    assert priced == sorted({*TOKEN_METERS} & {*FIRST_METERS})
    contracted = set(made.contracts["price_book"])
    assert contracted <= set(made.price_books["book"])
    weighed = made.burndown.group_by("pool", "model", "context_breakpoint").agg(pl.col("meter").n_unique())
    assert weighed["meter"].unique().to_list() == [len(METERS)]


def test_the_example_company_is_as_the_story_needs_it() -> None:
    made = books(load_folder(EXAMPLES / "catalog"), 1)
    assert made.customers["customer"].n_unique() == 12
    assert "lumen-preview" in made.models["model"].to_list()
    assert "lumen-preview" not in made.price_books["item"].to_list()
    assert made.capacity_steps.select("pool", "units", "unit_burn_per_minute").rows() == [
        ("block-a", 48, 60_000),
        ("ptu-west", 40, 3_400),
    ]


def test_each_context_takes_the_highest_entry_at_or_below_it(tmp_path: Path) -> None:
    longer = (
        "      - {product: large, effective_from: 2026-02-01, effective_until: 2026-03-01, "
        "above_input_tokens: 200000, per_million: {uncached_input_tokens: 6, output_tokens: "
        "22.5}}\ncost_books:"
    )
    made = books(objects_of(tmp_path, SOUND.replace("cost_books:", longer)), 1)
    rows = made.price_books.filter(pl.col("meter") == "output_tokens").sort(
        "context_breakpoint", "effective_from"
    )
    found = [
        (
            row["context_breakpoint"],
            f"{row['effective_from']:%m-%d}",
            row["effective_until"],
            row["unit_price"],
        )
        for row in rows.iter_rows(named=True)
    ]
    low, high = Decimal("0.000015"), Decimal("0.0000225")
    february, march = instant("2026-02-01"), instant("2026-03-01")
    assert found[:2] == [(0, "01-01", None, low), (128_000, "01-01", None, low)]
    assert found[2:] == [
        row
        for context in CONTEXT_BREAKPOINTS[1:]
        for row in (
            (context, "01-01", february, low),
            (context, "02-01", march, high),
            (context, "03-01", None, low),
        )
    ]


def test_reasoning_costs_what_output_costs_unless_it_is_named(tmp_path: Path) -> None:
    content = SOUND.replace("output_tokens: 10}", "output_tokens: 10, reasoning_tokens: 0}")
    made = books(objects_of(tmp_path, content), 1)

    def price(frame: pl.DataFrame) -> list[Decimal]:
        rows = frame.filter((pl.col("meter") == "reasoning_tokens") & (pl.col("context_breakpoint") == 0))
        return rows["unit_price"].to_list()

    assert price(made.price_books) == [Decimal("0.000015")]
    assert price(made.cost_books) == [Decimal(0)]
    assert "cache_read_tokens" not in made.price_books["meter"].to_list()


def test_weights_become_integers_over_one_denominator_for_all_versions(tmp_path: Path) -> None:
    tables = """\
          - {models: ['*'], effective_from: 2026-01-01, weights: {output_tokens: 0.4, other_meters: 0}}
          - {models: [large], effective_from: 2026-01-01, effective_until: 2026-02-01, \
weights: {uncached_input_tokens: 0.125, other_meters: 1}}
"""
    start = SOUND.index("          - {models: [large]")
    content = SOUND[:start] + tables + SOUND[SOUND.index("sources:") :]
    made = books(objects_of(tmp_path, content), 1).burndown.filter(pl.col("context_breakpoint") == 0)
    assert made["denominator"].unique().to_list() == [40]
    rows = made.filter(pl.col("meter").is_in(["uncached_input_tokens", "reasoning_tokens"]))
    january, february = instant("2026-01-01"), instant("2026-02-01")
    assert rows.select("meter", "effective_from", "weight").rows() == [
        ("reasoning_tokens", january, 40),
        ("reasoning_tokens", february, 16),
        ("uncached_input_tokens", january, 5),
        ("uncached_input_tokens", february, 0),
    ]


def test_what_ended_is_cut_and_a_contract_written_over_its_past_wins(tmp_path: Path) -> None:
    before = objects_of(tmp_path / "a", SOUND)
    renamed = SOUND.replace("contract: acme-2026", "contract: acme-b").replace(
        "price_book: standard, effective_from: 2026-01-01}",
        "price_book: standard, effective_from: 2026-02-01}",
    )
    made = plan(before, objects_of(tmp_path / "b", renamed), base_revision=1, at=AT)
    after = books(result(before, made), 2)
    assert after.contracts.select("contract", "effective_from", "effective_until").rows() == [
        ("acme-2026", instant("2026-01-01"), instant("2026-02-01")),
        ("acme-b", instant("2026-02-01"), None),
    ]
    assert [line for line in made.lines() if "!" in line] == ["  ! affects usage since 2026-02-01T00:00Z"] * 2


# ---- plans -------------------------------------------------------------------------------------------


def changed(path: Path, *edits: tuple[str, str]) -> list[str]:
    """The plan's lines after edits of SOUND."""
    content = SOUND
    for old, new in edits:
        assert old in content
        content = content.replace(old, new, 1)
    before, after = objects_of(path / "a"), objects_of(path / "b", content)
    return plan(before, after, base_revision=7, at=AT).lines()


def test_an_unchanged_folder_has_no_changes(tmp_path: Path) -> None:
    assert changed(tmp_path, ("output_tokens: 15", "output_tokens: '15.000'")) == [
        "no changes: catalog revision 7 says the same as the folder"
    ]


def test_the_plan_shows_old_and_new_and_since_when_usage_is_affected(tmp_path: Path) -> None:
    assert changed(tmp_path, ("output_tokens: 15", "output_tokens: 14.5")) == [
        "~ price book standard",
        "    ~ prices large/standard/*/0 from 2026-01-01T00:00Z per_million output_tokens: 15 -> 14.5",
        "  ! affects usage since 2026-01-01T00:00Z",
        "0 to add, 1 to change, 0 to end",
    ]


def test_a_price_that_starts_later_is_not_backdated(tmp_path: Path) -> None:
    row = "- {product: large, effective_from: 2026-01-01, "
    later = "per_million: {uncached_input_tokens: 3, output_tokens: 14}}\ncost_books:"
    lines = changed(
        tmp_path,
        (row, row + "effective_until: 2026-04-01, "),
        ("cost_books:", f"      - {{product: large, effective_from: 2026-04-01, {later}"),
    )
    assert lines == [
        "~ price book standard",
        "    + prices large/standard/*/0 from 2026-01-01T00:00Z effective_until: 2026-04-01T00:00Z",
        "    + prices large/standard/*/0 from 2026-04-01T00:00Z per_million output_tokens: 14",
        "    + prices large/standard/*/0 from 2026-04-01T00:00Z per_million uncached_input_tokens: 3",
        "0 to add, 1 to change, 0 to end",
    ]


def test_what_the_folder_no_longer_names_ends_at_the_next_quarter_hour(tmp_path: Path) -> None:
    contract = "  - {contract: acme-2026, customer: acme, price_book: standard, effective_from: 2026-01-01}\n"
    assert changed(tmp_path, (contract, ""), ("contracts:\n", "")) == [
        "- contract acme-2026",
        "    the folder no longer names it: it ends at 2026-03-10T12:15Z",
        "0 to add, 0 to change, 1 to end",
    ]


def test_an_edit_that_changes_other_objects_rows_says_so(tmp_path: Path) -> None:
    starred = SOUND.replace("models: [large]", "models: ['*']")
    before = objects_of(tmp_path / "a", starred)
    more = "  - {provider: own, model: small, name: Small}\nprice_books:"
    after = objects_of(tmp_path / "b", starred.replace("price_books:", more))
    assert plan(before, after, base_revision=1, at=AT).lines() == [
        "+ model own/small",
        "    provider own, name Small",
        "  ! affects all usage of this model, the past included",
        "  ! capacity contract block, through the changes above: affects usage since 2026-01-01T00:00Z",
        "1 to add, 0 to change, 0 to end",
    ]


def test_what_ended_and_is_named_again_resumes(tmp_path: Path) -> None:
    before = objects_of(tmp_path)
    key = ("source", "gateway://west")
    ended = CatalogObjects({**before.entries, key: replace(before.entries[key], ended_at=ENDS)})
    assert plan(ended, before, base_revision=3, at=AT + timedelta(days=1)).lines() == [
        "+ source gateway://west",
        "    named again: it had ended at 2026-03-10T12:15Z",
        "1 to add, 0 to change, 0 to end",
    ]


# ---- properties --------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
amounts = st.decimals(min_value=0, max_value=10**9, places=6).map(
    lambda amount: Decimal(decimal_text(amount))
)
quarters = st.integers(0, 4 * 24 * 365).map(lambda n: instant("2026-01-01") + timedelta(minutes=15 * n))


@st.composite
def price_books(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a price book whose rows cannot overlap: one row per product."""
    rows = [
        {
            "product": product,
            "tier": draw(names),
            "region": draw(st.just("*") | names),
            "effective_from": draw(quarters),
            "per_million": draw(st.dictionaries(st.sampled_from(METERS), amounts, min_size=1)),
        }
        for product in draw(st.lists(names, min_size=1, max_size=3, unique=True))
    ]
    return {"book": draw(names), "currency": draw(st.sampled_from(["USD", "EUR"])), "prices": rows}


@st.composite
def catalogs(draw: st.DrawFn) -> CatalogObjects:
    """Small catalogs of customers, price books and contracts."""
    rows: list[CatalogObject] = [
        OBJECTS["price_book"].model_validate(fields)
        for fields in draw(st.lists(price_books(), max_size=2, unique_by=lambda fields: fields["book"]))
    ]
    for customer in draw(st.lists(names, max_size=3, unique=True)):
        start = draw(quarters)
        span = {
            "effective_from": start,
            "effective_until": draw(st.none() | st.just(start + timedelta(days=9))),
        }
        dated = [{**span, "kind": draw(st.sampled_from(["paying", "trial"])), "segment": draw(names)}]
        rows.append(OBJECTS["customer"].model_validate({"customer": customer, "name": "N", "dated": dated}))
        fees = [{"fee": "plan", "amount_per_month": draw(amounts), "currency": "USD"}]
        terms = {"customer": customer, "price_book": draw(names), "fees": fees, **span}
        rows.append(OBJECTS["contract"].model_validate({"contract": draw(names) + customer, **terms}))
    entries = [Entry(row, "f.yaml", 1) for row in rows]
    return CatalogObjects({entry.key: entry for entry in entries})


@hypothesis.settings(max_examples=40)
@given(catalogs(), catalogs(), catalogs())
def test_applying_a_plan_leaves_nothing_to_plan(
    a: CatalogObjects, b: CatalogObjects, c: CatalogObjects
) -> None:
    applied, revision = CatalogObjects(), 0
    for folder in (a, b, c, a):
        made = plan(applied, folder, base_revision=revision, at=AT)
        if made.changes:
            applied, revision = result(applied, made), revision + 1
        again = plan(applied, folder, base_revision=revision, at=AT + timedelta(days=1))
        assert again.changes == ()
        assert {key for key, entry in applied.entries.items() if entry.ended_at is None} == set(
            folder.entries
        )
        books(applied, revision)


@given(catalogs())
def test_objects_survive_json(objects: CatalogObjects) -> None:
    for entry in objects.entries.values():
        content = json.loads(json.dumps(body(entry.item)))
        again = from_body(entry.item.kind, content)
        assert again == entry.item.canonical()
        assert body(again) == content


@given(price_books())
def test_unit_prices_are_exact(fields: dict[str, Any]) -> None:
    item = OBJECTS["price_book"].model_validate(fields)
    made = books(CatalogObjects({("price_book", fields["book"]): Entry(item, "f.yaml", 1)}), 1)
    for row in made.price_books.iter_rows(named=True):
        entry = next(price for price in fields["prices"] if price["product"] == row["item"])
        per_million = entry["per_million"]
        default = per_million.get("output_tokens") if row["meter"] == "reasoning_tokens" else None
        assert row["unit_price"] * 1_000_000 == per_million.get(row["meter"], default)


spans = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(
    lambda pair: (
        instant("2026-01-01") + timedelta(hours=pair[0]),
        instant("2026-01-01") + timedelta(hours=sum(pair)),
    )
)


@given(st.lists(spans, max_size=4), st.lists(spans, max_size=4))
def test_minus_keeps_exactly_what_is_not_taken(
    kept: list[tuple[datetime, datetime]], taken: list[tuple[datetime, datetime]]
) -> None:
    left = minus(kept, taken)
    for hour in range(70):
        at = instant("2026-01-01") + timedelta(hours=hour)

        def covers(rows: list[tuple[datetime, datetime]], at: datetime = at) -> int:
            return sum(start <= at < until for start, until in rows)

        assert covers(left) == (0 if covers(taken) else covers(kept))


def test_the_public_names_are_all_there() -> None:
    assert all(hasattr(catalog, name) for name in catalog.__all__)
