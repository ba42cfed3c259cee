"""Quotas in the catalog: what one becomes in the books, and what is refused of it."""

from pathlib import Path

import pytest

from metering.catalog import books, load_folder, read_folder
from metering.catalog.objects import body, from_body
from tests.text_tables import check

SOUND = """\
models:
  - {provider: cirrus, model: large, name: Large, cost_book: on-demand}
cost_books:
  - book: on-demand
    provider: cirrus
    currency: USD
    prices:
      - {model: large, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 2, output_tokens: 10}}
quotas:
  - quota: tpm
    provider: cirrus
    models: [large]
    regions: [west, east]
    weights:
      tokens: {output_tokens: 2.5, cache_read_tokens: 0, other_meters: 1}
      requests: {requests: 1}
    steps:
      - {effective_from: 2026-02-01, per_minute: {tokens: 4000, requests: 9}}
      - {effective_from: 2026-01-01, effective_until: 2026-02-01, per_minute: {tokens: 2000, requests: 3}}
"""


def folder_of(tmp_path: Path, content: str) -> Path:
    (tmp_path / "catalog.yaml").write_text(content)
    return tmp_path


def test_a_quota_becomes_books(tmp_path: Path) -> None:
    objects = load_folder(folder_of(tmp_path, SOUND))
    made = books(objects, 1)
    check(
        made.quotas,
        """
        quota | provider | model | region | dimension | effective_from | effective_until | per_minute
        tpm   | cirrus   | large | east   | tokens    | 2026-01-01     | 2026-02-01      | 2_000
        tpm   | cirrus   | large | west   | tokens    | 2026-01-01     | 2026-02-01      | 2_000
        tpm   | cirrus   | large | east   | tokens    | 2026-02-01     | -               | 4_000
        tpm   | cirrus   | large | west   | tokens    | 2026-02-01     | -               | 4_000
        tpm   | cirrus   | large | east   | requests  | 2026-01-01     | 2026-02-01      | 3
        tpm   | cirrus   | large | west   | requests  | 2026-01-01     | 2026-02-01      | 3
        tpm   | cirrus   | large | east   | requests  | 2026-02-01     | -               | 9
        tpm   | cirrus   | large | west   | requests  | 2026-02-01     | -               | 9
        """,
    )
    named = made.quota_weights.filter(made.quota_weights["dimension"] == "tokens")
    weights = {row["meter"]: (row["weight"], row["denominator"]) for row in named.iter_rows(named=True)}
    assert weights["uncached_input_tokens"] == (2, 2)
    assert weights["cache_read_tokens"] == (0, 2)
    assert weights["output_tokens"] == weights["reasoning_tokens"] == (5, 2)
    for (kind, _), entry in objects.entries.items():
        assert body(from_body(kind, body(entry.item))) == body(entry.item)


BAD = [
    (
        "models: [large]",
        "models: [larg]",
        (
            "catalog.yaml:12: quotas[0].models[0]: 'larg': provider cirrus serves no such model; list it under "
            "models"
        ),
    ),
    (
        "tokens: 4000, requests: 9",
        "tokens: 4000",
        "catalog.yaml:18: quotas[0].steps[0].per_minute: (missing): does not say how much of requests a minute "
        "has; add it",
    ),
    (
        "tokens: 4000, requests: 9",
        "tokens: 4000, requests: 0",
        (
            "catalog.yaml:18: quotas[0].steps[0].per_minute.requests: '0': must be more than 0; end the step "
            "instead, or take the quota out"
        ),
    ),
    (
        "tokens: 4000, requests: 9",
        "tokens: 4000, requests: 9, images: 1",
        "catalog.yaml:18: quotas[0].steps[0].per_minute.images: 'images': has no weights; the quota weighs "
        "tokens, requests",
    ),
    (
        ", other_meters: 1}",
        "}",
        (
            "catalog.yaml:15: quotas[0].weights.tokens: (missing): has no weight for uncached_input_tokens, "
            "cache_write_5m_tokens, cache_write_1h_tokens, accelerator_ms, audio_input_tokens, "
            "audio_output_tokens, image_input_tokens, image_output_tokens, tool_calls; name them, or say "
            "`other_meters: 0`"
        ),
    ),
    (
        "effective_until: 2026-02-01, ",
        "",
        (
            "catalog.yaml:18: quotas[0].steps[0].effective_from: '2026-02-01T00:00Z': overlaps catalog.yaml:19 "
            "(2026-01-01T00:00Z to open); give that one `effective_until: 2026-02-01T00:00Z` or start this one "
            "later"
        ),
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), BAD, ids=[row[1][:30] for row in BAD])
def test_a_fault_of_a_quota_names_file_line_field_value_and_remedy(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert SOUND.count(old) == 1
    faults = read_folder(folder_of(tmp_path, SOUND.replace(old, new)))[1]
    assert [str(fault) for fault in faults] == [expected]
