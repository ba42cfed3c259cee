"""Notices laid out for the ledger: a row without quantities each, and the row of its details."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import numpy as np
import polars as pl

from metering.events.identity import DIGEST_VERSION, event_keys, key_list, request_keys
from metering.events.notices import CONTENT, notice_digests
from metering.store.batch import Companion, Digests
from metering.store.chain import text_digest
from metering.store.ledger import EVENT_TYPES
from metering.store.ledger_rows import LEDGER_ROW, Rows
from metering.store.names import Names

_EVENT: Final = ("event_key", "source_id", "occurred_at")
#: kind of notice -> the table of its details, and its columns
_DETAILS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "void": ("voids", (*_EVENT, "target_key", "target_source_id", "target_id", "side", "reason")),
    "refused": ("refusals", (*_EVENT, *CONTENT["refused"])),
    "heartbeat": ("heartbeats", (*_EVENT, *CONTENT["heartbeat"])),
}


#: Where an event lies, and who it claims to be.
PLACES: Final = ("record", "index", "source", "event_id")


@dataclass(frozen=True)
class LaidOut:
    """Events as rows of the ledger, in order of record and index, with what travels beside them, aligned.

    `rows` are LEDGER_ROWs (batch and ordinal open), `places` has the columns PLACES. The positions of
    `companions` are those of `rows`.
    """

    places: pl.DataFrame
    rows: Rows
    texts: list[str]
    digests: Digests
    companions: tuple[Companion, ...] = ()

    def companions_of(self, low: int, high: int) -> tuple[Companion, ...]:
        """The companions of the rows from `low` to before `high`, with positions among these."""
        found = []
        for companion in self.companions:
            own = [(at - low, row) for at, row in _of(companion) if low <= at < high]
            if own:
                of, rows = zip(*own, strict=True)
                found.append(replace(companion, rows=rows, of=of))
        return tuple(found)


def _of(companion: Companion) -> Iterator[tuple[int, tuple[Any, ...]]]:
    assert companion.of is not None, "details belong to events"
    return zip(companion.of, companion.rows, strict=True)


def merged(one: LaidOut, other: LaidOut) -> LaidOut:
    """Both, in order of record and index."""
    places = pl.concat([one.places, other.places])
    order = places.select(pl.arg_sort_by("record", "index")).to_series().to_numpy()
    texts = one.texts + other.texts
    moved = np.argsort(order)
    shifted = [(0, companion) for companion in one.companions]
    shifted += [(len(one.rows), companion) for companion in other.companions]
    return LaidOut(
        places[order],
        np.concatenate([one.rows, other.rows])[order],
        [texts[at] for at in order.tolist()],
        one.digests.with_more(other.digests).take(order),
        tuple(
            replace(companion, of=[int(moved[at + shift]) for at, _ in _of(companion)])
            for shift, companion in shifted
        ),
    )


def lay_out(notices: pl.DataFrame, names: Names) -> LaidOut:
    """frames.NOTICES as rows of the ledger, each with its details as a companion."""
    keys = event_keys(notices["event_id"])
    target_keys = event_keys(notices["target_id"].fill_null("")).keys
    sources = notices["source"].to_list()
    targets = notices["target_source"].to_list()
    source_ids = names.ids("sources", {*sources, *(text for text in targets if text is not None)})
    rows = np.zeros(notices.height, LEDGER_ROW)
    rows["event_key"] = keys.keys
    refused = (notices["kind"] == "refused").to_numpy()
    requests = notices.filter(pl.col("kind") == "refused")
    rows["request_key"][refused] = request_keys(requests["customer"], requests["request_id"])
    rows["occurred_at"] = notices["occurred_at"].dt.timestamp("us").to_numpy()
    rows["digest"] = notice_digests(notices)
    rows["source_id"] = [source_ids[source] for source in sources]
    rows["duration_ms"] = -1
    rows["attempt"] = notices["attempt"].fill_null(0).to_numpy()
    rows["event_type"] = [EVENT_TYPES[kind] for kind in notices["kind"].to_list()]
    rows["digest_version"] = DIGEST_VERSION
    none = np.full(notices.height, np.frombuffer(text_digest(""), "S16"))
    named = np.frombuffer(b"".join(map(text_digest, sources)), "S16")
    details: dict[str, list[tuple[int, tuple[Any, ...]]]] = {kind: [] for kind in _DETAILS}
    for at, (row, key, target_key) in enumerate(
        zip(notices.iter_rows(named=True), key_list(keys.keys), key_list(target_keys), strict=True)
    ):
        own = {
            **row,
            "event_key": UUID(bytes=key),
            "source_id": source_ids[row["source"]],
            "target_key": UUID(bytes=target_key),
            "target_source_id": source_ids.get(row["target_source"]),
        }
        columns = _DETAILS[row["kind"]][1]
        details[row["kind"]].append((at, tuple(own[column] for column in columns)))
    texts = [
        "" if is_id else text
        for text, is_id in zip(notices["event_id"].to_list(), keys.key_is_id, strict=True)
    ]
    companions = [
        Companion(*_DETAILS[kind], [row for _, row in found], [at for at, _ in found])
        for kind, found in details.items()
        if found
    ]
    return LaidOut(notices.select(PLACES), rows, texts, Digests(none, named, none, none), tuple(companions))
