"""Replay: rejects that are acceptable now enter the ledger, by an intake of their own, once however often.

A reject takes the way of any record: decode, meter, `Ledger.append`; under the source that its event names.
Its row in `replays` enters in the same transaction. If the process dies in the middle, what was committed is
done and the rest waits; a second replay goes on with that. Two at once fence each other: the later one goes on.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final

import psycopg

from metering.errors import BadInput, Fenced, Unavailable, WrongWorld
from metering.events import RecordBytes, RejectCode, pieces_of
from metering.events.laws import DecodeLimits
from metering.settings import Settings
from metering.store import partitions, positions, postgres, schema
from metering.store.batch import Companion, Part
from metering.store.ledger import Ledger
from metering.store.names import Names
from metering.store.positions import Claim
from metering.store.refused import Chosen, Kept, count_waiting, missing, waiting
from metering.store.sources import Brake
from metering.stream.consumer import Fetched, Record
from metering.stream.lookback import Lookback
from metering.stream.topics import Admin
from workers.batching import REFUSALS, Batching, Timings, append
from workers.loop import database_errors

#: Told how many rejects were looked at, of how many.
Progress = Callable[[int, int], None]
#: An event that was cut out of its record is a record of its own.
_ONE_EVENT: Final = "application/cloudevents+json"


@dataclass(frozen=True)
class StillRefused:
    """A reject that stays as it is, and why."""

    reject_id: int
    code: str
    detail: str


@dataclass
class Replayed:
    """What came of a replay: events by outcome, the rejects that are done, and the first ones that are not, by code."""

    accepted: int = 0
    duplicate: int = 0
    conflict: int = 0
    done: int = 0
    refused_events: int = 0
    still: Counter[str] = field(default_factory=Counter)
    examples: dict[str, StillRefused] = field(default_factory=dict)

    def refuse(self, kept: Kept, code: str, detail: str) -> None:
        """Note a reject that stays."""
        self.still[code] += 1
        self.examples.setdefault(code, StillRefused(kept.reject_id, code, detail))


def replay(
    settings: Settings, chosen: Chosen, *, dry_run: bool = False, progress: Progress = lambda done, of: None
) -> Replayed:
    """Let those of the chosen rejects enter that are acceptable now.

    A reject that is still bad stays as it is and adds no row. Of a record that was refused whole, the good
    events enter, the bad ones become rejects of their own, and the old reject is done. The brake does not
    trip here, and counts nothing: a person decided; but a stopped source's events stay until it is resumed.
    A dry run does all of it, piece by piece, and takes it back.
    """
    with (
        database_errors(),
        postgres.connect_driver(settings, "rejects") as reader,
        postgres.connect_driver(settings, "operator") as writer,
        _Log(settings) as log,
    ):
        reader.autocommit = writer.autocommit = True
        with postgres.connect(settings, "read") as checked:
            schema.check_version(checked)
        for absent in missing(reader, chosen.ids):
            raise BadInput(
                f"there is no reject {absent}; nothing was replayed. `metering rejects list` lists what is kept"
            )
        work = _Replay(settings, writer, log, dry_run=dry_run)
        total, looked_at = count_waiting(reader, chosen), 0
        pieces = waiting(
            reader,
            chosen,
            records_max=settings.batch_records_max,
            bytes_target=settings.batch_bytes_target,
        )
        for piece in pieces:
            try:
                work.take(piece)
            except Fenced as error:
                raise Unavailable(
                    f"another replay has taken over ({error}); run it again when that has ended"
                ) from error
            looked_at += len(piece)
            progress(looked_at, total)
        return work.replayed


class _Log:
    """The topic, asked only for those rejects whose kept bytes are cut."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lookback = Lookback(settings)
        self._topic_uuid: object = None

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *raised: object) -> None:
        self._lookback.__exit__(None, None, None)

    def whole(self, kept: Kept) -> tuple[bytes | None, str]:
        """The bytes of a reject as they came, checked by their SHA-256; or None, and why they are not to be had."""
        if not kept.is_cut:
            return kept.payload, ""
        cut = f"only {len(kept.payload):,} of its {kept.payload_bytes:,} bytes are kept"
        if kept.kind != "kafka" or kept.partition is None:
            return None, f"{cut}, and it came by the intake of {kept.kind}, not from the log"
        if self._topic_uuid is None:
            with Admin(self._settings) as admin:
                self._topic_uuid = admin.get().uuid
        place = f"partition {kept.partition}, offset {kept.record_offset}"
        if kept.topic_uuid != self._topic_uuid:
            return None, f"{cut}, and the topic of {place} is not there any more"
        record = self._lookback.record(kept.partition, kept.record_offset)
        if record is None or record.value is None:
            return None, f"{cut}, and the log no longer holds {place}"
        value = record.value
        if kept.index >= 0:
            pieces = pieces_of(RecordBytes(value, record.content_type, record.appended_at))
            value = pieces[kept.index] if kept.index < len(pieces) else b""
        if sha256(value).digest() != kept.payload_sha256:
            return None, f"{cut}, and the log holds other bytes at {place}"
        return value, ""


class _Replay:
    """One replay at work: its way into the ledger, and what came of it so far."""

    def __init__(
        self, settings: Settings, connection: psycopg.Connection[tuple[Any, ...]], log: _Log, *, dry_run: bool
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._log = log
        self._dry_run = dry_run
        self._ledger = Ledger(connection, settings.reject_bytes_max)
        names = Names(connection, settings.series_cache_entries_max)
        self._batching = Batching(names, Brake(connection, settings, trips=False), Timings())
        self._limits = self._read_limits()
        # a dry run takes nothing over: a replay at work shall not be fenced by it
        self._claim = None if dry_run else self._claimed()
        self.replayed = Replayed()

    def _read_limits(self) -> DecodeLimits:
        row = self._connection.execute("SELECT floor_at FROM ledger_floor").fetchone()
        if row is None:
            raise WrongWorld("this database has no ledger yet; run `metering init`")
        return DecodeLimits.of(self._settings, row[0])

    def _claimed(self) -> Claim:
        role = f"{self._settings.role_prefix}operator"
        return positions.claim_intake(self._connection, "replay", role=role, owner=positions.worker_name())

    def take(self, piece: Sequence[Kept]) -> None:
        """Replay some rejects that fit a batch."""
        found: list[tuple[Kept, bytes]] = []
        for kept in piece:
            value, problem = self._log.whole(kept)
            if value is None:
                self.replayed.refuse(kept, "bytes_cut", problem)
            else:
                found.append((kept, value))
        if not found:
            return
        trial: AbstractContextManager[Any] = nullcontext()
        if self._dry_run:
            trial = self._connection.transaction(force_rollback=True)
        with trial:
            claim = self._claimed() if self._claim is None else self._claim
            claim = self._append(claim, found)
        self._claim = None if self._dry_run else claim

    def _append(self, claim: Claim, found: list[tuple[Kept, bytes]]) -> Claim:
        part = self._part(claim, found)
        good = (
            {place.record_offset for place in part.refused(list(range(len(part.rows))))}
            if len(part.rows)
            else set()
        )
        whys = {reject.record_offset: reject for reject in reversed(part.rejects)}
        entering = []
        for number, one in enumerate(found):
            offset = claim.next_offset + number
            if offset in good:
                entering.append(one)
            elif offset in whys:
                self.replayed.refuse(one[0], whys[offset].code, whys[offset].detail)
            else:
                # a record of no events: nothing of it is left to wait for
                entering.append(one)
        if not entering:
            return claim
        if len(entering) < len(found):
            part = self._part(claim, entering)
        done = Companion("replays", ("reject_id",), [(kept.reject_id,) for kept, _ in entering])
        try:
            (appended,) = append(self._ledger, [replace(part, companions=(*part.companions, done))])
        except REFUSALS as error:
            if isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None:
                raise WrongWorld(partitions.missing(error)) from error
            if len(entering) == 1:
                self.replayed.refuse(entering[0][0], RejectCode.STORE_REFUSED, str(error).splitlines()[0])
                return claim
            middle = len(entering) // 2
            return self._append(self._append(claim, entering[:middle]), entering[middle:])
        self.replayed.accepted += appended.accepted
        self.replayed.duplicate += appended.duplicate
        self.replayed.conflict += appended.conflict
        self.replayed.refused_events += appended.rejected
        self.replayed.done += len(entering)
        return appended.claim

    def _part(self, claim: Claim, found: Sequence[tuple[Kept, bytes]]) -> Part:
        records = [
            Record(
                offset=claim.next_offset + number,
                value=value,
                content_type=kept.content_type if kept.index < 0 else _ONE_EVENT,
                appended_at=kept.appended_at or kept.rejected_at,
                stamped_by_log=False,
            )
            for number, (kept, value) in enumerate(found)
        ]
        fetched = Fetched(0, records, claim.next_offset + len(records))
        (part,) = self._batching.parts([fetched], {0: claim}, limits=self._limits, ends=None, refused=None)
        return part
