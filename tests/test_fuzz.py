"""The decoder against the oracle on the corpus and some mutations of it; `make fuzz` goes on for minutes."""

import pytest

from tests.fuzz import checking
from tests.fuzz.__main__ import CORPUS, ENDINGS, corpus, run
from tests.fuzz.mutations import Seed


def test_every_record_of_the_corpus_is_read_as_the_document_says() -> None:
    assert checking.complaints(corpus()) == []
    # a record decoded alone ends as it does among others
    assert [complaint for seed in corpus() for complaint in checking.complaints([seed])] == []


def test_mutations_of_the_corpus_are_read_as_the_document_says() -> None:
    assert run(60, seed=20261122, records_max=800, say=print) == {}


def test_a_decoder_that_errs_is_found_out_and_its_record_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an oracle with another mind about one field."""
    monkeypatch.setattr("tests.fuzz.oracle.LARGEST", 10_000)
    (complaint,) = checking.complaints(corpus_one())
    assert complaint.kind == "accepted quantity_out_of_range"
    small = checking.minimised(complaint.seed, complaint.kind, tries=60)
    assert len(small.value or b"") < len(complaint.seed.value or b"")


def corpus_one() -> list[Seed]:
    return [Seed((CORPUS / "one.event.json").read_bytes(), ENDINGS[".event.json"])]
