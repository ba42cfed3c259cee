"""One batch before it is appended: what is new in it, what it repeats, and the hashes that chain it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from metering.store.chain import batch_head, batch_root
from metering.store.ledger_rows import Rows, joined, take, to_copy_binary
from metering.store.positions import Claim

#: Row numbers within a batch.
Indexes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Digests:
    """The names of a batch's surrogate ids, aligned with its rows (S16 each): what the chain hashes."""

    series: npt.NDArray[np.bytes_]
    sources: npt.NDArray[np.bytes_]
    projects: npt.NDArray[np.bytes_]
    seats: npt.NDArray[np.bytes_]

    def take(self, chosen: Indexes) -> "Digests":
        """Those of the chosen rows."""
        return Digests(self.series[chosen], self.sources[chosen], self.projects[chosen], self.seats[chosen])

    def with_more(self, more: "Digests") -> "Digests":
        """These, then those of `more`."""
        return Digests(
            np.concatenate([self.series, more.series]),
            np.concatenate([self.sources, more.sources]),
            np.concatenate([self.projects, more.projects]),
            np.concatenate([self.seats, more.seats]),
        )


@dataclass(frozen=True)
class Refused:
    """A record (index -1) or event that is kept beside the ledger, with its place and bytes."""

    record_offset: int
    index: int
    source: str | None
    event_id: str | None
    payload: bytes


@dataclass(frozen=True)
class Reject(Refused):
    """Why it cannot be accepted; `content_type` and `appended_at` are those of its record, for a replay."""

    code: str
    field: str | None
    detail: str
    source_id: int = 0  # 0: no source that could be read
    content_type: str | None = None
    appended_at: datetime | None = None


@dataclass(frozen=True)
class Companion:
    """Rows of another table that enter in the transaction of their batch.

    `rows` are values of `columns`; the ledger puts `batch_id` first. `of` gives for each the position of its
    event among the part's rows, and only those of accepted events are written; None: all are.
    """

    table: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    of: Sequence[int] | None = None


@dataclass(frozen=True)
class Part:
    """What one intake brings into a transaction: events as LEDGER_ROWs in ordinal order, and rejects.

    `event_ids` is aligned with `rows` ('' where the key is the id). `refused(rows)` cuts those events (ascending) out
    of their records again, for conflicts. `seen_until` is null where nothing is known of the log's clock.
    """

    claim: Claim
    next_offset: int
    records: int
    rows: Rows
    event_ids: list[str]
    digests: Digests
    rejects: list[Reject]
    unknown_fields: int
    appended_until: datetime | None
    seen_until: datetime | None
    refused: Callable[[Sequence[int]], list[Refused]]
    companions: tuple[Companion, ...] = ()


@dataclass(frozen=True)
class Appended:
    """The outcome of one part, and the claim with which its next part goes on."""

    claim: Claim
    accepted: int
    duplicate: int
    conflict: int
    rejected: int


@dataclass(frozen=True)
class Outcomes:
    """How the rows of a batch ended."""

    counts: list[tuple[int, int, int]]  # per part: accepted, duplicate, conflict
    conflicts: list[tuple[int, int]]  # (row, digest of the accepted content)
    ended: npt.NDArray[np.int8]  # per row: 0 accepted, 1 duplicate, 2 conflict


class Batch:
    """The rows of all parts in one array: parts in order of intake, within a part in ordinal order."""

    def __init__(self, parts: list[Part], batch_ids: list[int]) -> None:
        self.parts = parts
        self.batch_ids = batch_ids
        sizes = [len(part.rows) for part in parts]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.part_of = np.repeat(np.arange(len(parts)), sizes)
        self.rows = joined([part.rows for part in parts])
        self.rows["batch_id"] = np.repeat(np.array(batch_ids, np.int64), sizes)
        self.event_ids = [text for part in parts for text in part.event_ids]
        self._has_texts = any(self.event_ids)
        #: rows with distinct identity, sorted by key: pages are touched in order
        self.distinct: Indexes
        #: row -> the row of the same identity that came first
        self.repeats: dict[int, int]
        self._deduplicate()

    def _deduplicate(self) -> None:
        high, low = np.ascontiguousarray(self.rows["event_key"]).view(">u8").astype("<u8").reshape(-1, 2).T
        sources = self.rows["source_id"]
        # few keys share their first half: only those are put in order by the rest
        order = np.argsort(high, kind="stable")
        tied = np.zeros(len(order) + 1, np.bool_)
        tied[1:-1] = high[order[1:]] == high[order[:-1]]
        several = np.flatnonzero(tied[1:] | tied[:-1])
        among = order[several]
        order[several] = among[np.lexsort((among, sources[among], low[among], high[among]))]
        same = tied[:-1]
        at = np.flatnonzero(same)
        before, after = order[at - 1], order[at]
        same[at] = (low[after] == low[before]) & (sources[after] == sources[before])
        self.distinct = order[~same]
        group = np.cumsum(~same) - 1
        self.repeats = {int(order[at]): int(self.distinct[group[at]]) for at in np.flatnonzero(same)}

    def encode(self, chosen: Indexes) -> bytes:
        """The COPY bytes of the chosen rows, in their order."""
        return to_copy_binary(take(self.rows, chosen), self._texts(chosen))

    def _texts(self, chosen: Indexes) -> list[str] | None:
        if not self._has_texts:
            return None
        texts = [self.event_ids[row] for row in chosen.tolist()]
        return texts if any(texts) else None

    def _root(self, part: int, accepted: Indexes) -> bytes:
        """The root over the accepted rows of a part (row numbers, ascending: in ordinal order)."""
        local = accepted - self.starts[part]
        names = self.parts[part].digests.take(local)
        return batch_root(
            take(self.rows, accepted),
            series=names.series,
            sources=names.sources,
            projects=names.projects,
            seats=names.seats,
            event_ids=self._texts(accepted),
        )

    def planned_heads(self, accepted: Indexes) -> list[tuple[bytes, bytes]]:
        """Root and head of each part if all of `accepted` enters and nothing else was received."""
        return self._chained(accepted, [(len(part.rows), 0, 0) for part in self.parts])

    def unmoved_heads(self) -> list[tuple[bytes, bytes]]:
        """What stands in for them where they are known only at the end: no root, and the heads as they are."""
        return [(bytes(32), part.claim.chain_head) for part in self.parts]

    def final_heads(self, accepted: Indexes, outcomes: Outcomes) -> list[tuple[bytes, bytes]]:
        """Root and head of each part as it came out."""
        return self._chained(accepted, outcomes.counts)

    def _chained(self, accepted: Indexes, counts: list[tuple[int, int, int]]) -> list[tuple[bytes, bytes]]:
        chained = []
        enters = np.zeros(len(self.rows), np.bool_)
        enters[accepted] = True
        for number, (part, (entered, duplicate, conflict)) in enumerate(zip(self.parts, counts, strict=True)):
            low, high = self.starts[number : number + 2]
            root = self._root(number, low + np.flatnonzero(enters[low:high]))
            claim = part.claim
            head = batch_head(
                claim.chain_head,
                kind=claim.kind,
                topic_uuid=claim.topic_uuid,
                partition=claim.partition,
                sequence=claim.next_sequence,
                first_offset=claim.next_offset,
                next_offset=part.next_offset,
                records=part.records,
                received=len(part.rows) + len(part.rejects),
                accepted=entered,
                duplicate=duplicate,
                conflict=conflict,
                rejected=len(part.rejects),
                root=root,
            )
            chained.append((root, head))
        return chained

    def outcomes(self, accepted: Indexes, held: dict[int, int]) -> Outcomes:
        """Count each part's rows as accepted, duplicate (same content) or conflict (other content)."""
        digests = self.rows["digest"]
        # what stands in the ledger for each row that did not enter
        standing = dict(held)
        for row, first in self.repeats.items():
            standing[row] = held.get(first, int(digests[first]))
        conflicts = [(row, digest) for row, digest in sorted(standing.items()) if digest != int(digests[row])]
        ended = np.zeros(len(self.rows), np.int8)
        ended[[*standing]] = 1
        ended[[row for row, _ in conflicts]] = 2
        counted = np.bincount(self.part_of * 3 + ended, minlength=3 * len(self.parts)).reshape(-1, 3)
        assert counted[:, 0].sum() == len(accepted), "every row is accepted or stands for one that was"
        counts = [(int(one), int(two), int(three)) for one, two, three in counted]
        return Outcomes(counts, conflicts, ended)

    def by_source(self, outcomes: Outcomes) -> list[tuple[int, int, int, int, int, int]]:
        """Rows of `batch_sources`: batch_id, source_id, accepted, duplicate, conflict, rejected."""
        found = []
        for number, part in enumerate(self.parts):
            low, high = int(self.starts[number]), int(self.starts[number + 1])
            rejected = Counter(reject.source_id for reject in part.rejects)
            known, place = np.unique(np.abs(self.rows["source_id"][low:high]), return_inverse=True)
            counted = np.bincount(place * 3 + outcomes.ended[low:high], minlength=3 * len(known)).reshape(
                -1, 3
            )
            counts = dict(zip(known.tolist(), counted.tolist(), strict=True))
            batch_id = self.batch_ids[number]
            found += [
                (batch_id, source, *counts.get(source, (0, 0, 0)), rejected[source])
                for source in sorted(counts.keys() | rejected.keys())
            ]
        return found
