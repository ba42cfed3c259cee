"""The whole path as a state machine against plain dictionaries: whatever happens in whatever order, nothing is
lost, nothing counts twice, and what was pinned stays as it was.

Everything is real but the broker, whose log is a list here, so that hundreds of steps take seconds. MACHINE_EXAMPLES
asks for more examples than the few that every run makes.
"""

import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from metering.errors import Fenced
from metering.events.laws import DecodeLimits
from metering.settings import Settings, read_settings
from metering.store import partitions, positions, postgres, rollups
from metering.store.ledger import Ledger
from metering.store.names import Names
from metering.store.positions import Claim
from metering.store.refused import Chosen
from metering.store.sources import Brake
from metering.store.verify import verify
from metering.stream.consumer import Fetched, Record
from sandbox import postgres as sandbox_postgres
from sandbox import servers
from tests.event_maker import event, event_id
from workers import fold, provision, replay, settle
from workers.batching import Batching, Timings
from workers.rebuild import rebuild

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "6"))
STEPS = 40
DAY = datetime(2026, 10, 31, tzinfo=UTC)
NOON = DAY + timedelta(hours=12)
TOPIC_UUID = uuid.UUID("00000000-0000-4000-8000-00000000000b")
PARTITIONS = 2
WORKERS = 2
NAMES = 24
CODES = {"source_stopped"}


# ---- what may be sent -----------------------------------------------------------------------------------


def usage(name: int, variant: int) -> dict[str, Any]:
    """One of NAMES events; its variants are contents under the same id. Its name decides all the rest."""
    at = DAY + timedelta(hours=10, minutes=7 * (name % 9))
    made = event(name, at, source=f"gateway-{name % 3}", subject=("acme", "birch")[name % 2])
    made["data"]["usage"] |= {"input_tokens": 100 + name, "output_tokens": 10 + variant}
    if name % 4 == 1:
        made["data"] |= {"capacity_pool": "north", "ran_on": ("pool", "overflow")[name % 8 == 1]}
    if name % 5 == 2:
        made["data"] |= {"billable": False, "nonbillable_reason": "retry"}
    if name % 7 == 3:
        made["id"] = f"order-{name}"
    return made


def void(name: int, number: int) -> dict[str, Any]:
    """The void of an event, whether that was sent or not; each event is voided on one side, perhaps twice."""
    target = usage(name, 0)
    made = {key: target[key] for key in ("specversion", "source", "time")}
    return made | {
        "id": event_id(f"void {number} of {name}", NOON),
        "type": "inference.void.v1",
        "data": {"source": target["source"], "id": target["id"], "side": ("charge", "both")[name % 2]},
    }


BAD = (b"{", b'{"specversion": "1.0"}', b'["no event"]')
usages = st.builds(usage, st.integers(0, NAMES - 1), st.sampled_from((0, 0, 0, 1)))
voids = st.builds(void, st.integers(0, NAMES - 1), st.integers(0, 1))
lines = st.one_of(usages, usages, usages, usages, voids, st.sampled_from(BAD))
records = st.lists(lines, min_size=1, max_size=6)

Identity = tuple[str, str]
Usage = dict[tuple[Any, ...], tuple[int, int, int]]


def identity(sent: dict[str, Any]) -> Identity:
    return sent["source"], sent["id"]


def content(sent: dict[str, Any]) -> str:
    """What two events must have in common to be the same."""
    return json.dumps({key: value for key, value in sent.items() if key != "source"}, sort_keys=True)


# ---- the oracle -----------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """What must be there: dictionaries, filled by looking at one event after the other."""

    accepted: dict[Identity, dict[str, Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    stopped: set[str] = field(default_factory=set)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    settled: set[Identity] = field(default_factory=set)  # targets

    def take(self, sent: dict[str, Any] | bytes) -> None:
        self.counts["received"] += 1
        if isinstance(sent, bytes):
            self.counts["rejected"] += 1
        elif sent["source"] in self.stopped:
            self.counts["rejected"] += 1
            self.waiting.append(sent)
        else:
            self.enter(sent)

    def enter(self, sent: dict[str, Any]) -> None:
        known = self.accepted.get(identity(sent))
        if known is None:
            self.accepted[identity(sent)] = sent
            self.counts["accepted"] += 1
        else:
            self.counts["duplicate" if content(known) == content(sent) else "conflict"] += 1

    def settle(self) -> None:
        """Every void that is there takes its event back, if that is there: once."""
        for sent in self.accepted.values():
            if sent["type"] == "inference.void.v1":
                target = sent["data"]["source"], sent["data"]["id"]
                if target in self.accepted:
                    self.settled.add(target)

    def usage(self) -> Usage:
        """Requests and tokens by quarter hour, customer, pool, ran_on, counts_for."""
        sums: defaultdict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
        for known, sent in self.accepted.items():
            if sent["type"] != "inference.usage.v1":
                continue
            data, at = sent["data"], datetime.fromisoformat(sent["time"])
            quarter = at.replace(minute=at.minute // 15 * 15)
            billable = data.get("billable", True)
            key = (quarter, sent["subject"], data.get("capacity_pool"), data.get("ran_on", "on_demand"))
            one = (1, data["usage"]["input_tokens"], data["usage"]["output_tokens"])
            both = int(sent["id"].rpartition("-")[2]) % 2 if sent["id"].startswith("order-") else None
            both = int(data["request_id"].rpartition("-")[2]) % 2 if both is None else both
            entries = [(1, "charge_and_cost" if billable else "cost")]
            if known in self.settled and both:
                entries.append((-1, entries[0][1]))
            elif known in self.settled and billable:
                entries.append((-1, "charge"))
            for sign, counts_for in entries:
                for place, value in enumerate(one):
                    sums[*key, counts_for][place] += sign * value
        return {key: (one, two, three) for key, (one, two, three) in sums.items() if any((one, two, three))}


# ---- the worker under test ------------------------------------------------------------------------------


class Died(Exception):
    """The process is gone."""


class Fuse:
    """Ends a connection before the n-th statement from now."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.left: int | None = None
        fuse, execute = self, connection.execute

        def burning(*arguments: Any, **options: Any) -> Any:
            fuse.burn(connection)
            return execute(*arguments, **options)

        class Cursor(psycopg.Cursor[Any]):
            def copy(self, *arguments: Any, **options: Any) -> Any:
                fuse.burn(connection)
                return super().copy(*arguments, **options)

        connection.execute = burning  # type: ignore[method-assign]
        connection.cursor_factory = Cursor

    def burn(self, connection: psycopg.Connection[Any]) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                connection.close()
                raise Died


class Worker:
    """What an ingest worker is without its consumer: a connection, what it remembers, what it has claimed."""

    def __init__(self, settings: Settings) -> None:
        self.connection = postgres.connect_driver(settings, "ingest")
        self.connection.autocommit = True
        self.fuse = Fuse(self.connection)
        self.brake = Brake(self.connection, settings)
        self.ledger = Ledger(self.connection, settings.reject_bytes_max)
        self.batching = Batching(Names(self.connection, 1_000), self.brake, Timings())
        self.claims: dict[int, Claim] = {}
        self.role = f"{settings.role_prefix}ingest"
        self.limits = DecodeLimits.of(settings, DAY - timedelta(days=1))

    def claim(self, partition: int) -> Claim:
        if partition not in self.claims:
            self.claims[partition] = positions.claim(
                self.connection, TOPIC_UUID, partition, role=self.role, owner="machine"
            )
        return self.claims[partition]

    def append(self, fetched: list[Fetched]) -> None:
        self.brake.refresh()
        claims = {part.partition: self.claims[part.partition] for part in fetched}
        parts = self.batching.parts(fetched, claims, limits=self.limits, ends=None, refused=None)
        appended = self.ledger.append(parts)
        if self.fuse.left is not None:
            # everything is committed, and nobody heard of it
            self.connection.close()
            raise Died
        for outcome in appended:
            assert outcome.claim.partition is not None
            self.claims[outcome.claim.partition] = outcome.claim


# ---- the machine ----------------------------------------------------------------------------------------


class Metering(RuleBasedStateMachine):
    """The rules; `new_database` gives each example a database of its own."""

    new_database: Any

    @initialize()
    def begin(self) -> None:
        self.settings: Settings = self.new_database()
        self.looking = psycopg.connect(self.settings.database_url.get_secret_value(), autocommit=True)
        self.looking.execute("SET timezone = 'UTC'")
        self.reading = postgres.connect(self.settings, "read")
        self.folding = postgres.connect(self.settings, "fold")
        self.settling = postgres.connect_driver(self.settings, "settle")
        self.settling.autocommit = True
        self.settle_step = settle.Settle(self.settling, self.settings)
        self.oracle = Oracle()
        self.log: list[list[list[dict[str, Any] | bytes]]] = [[] for _ in range(PARTITIONS)]
        self.position = [0] * PARTITIONS
        self.owner: list[int | None] = [None] * PARTITIONS
        self.workers = [Worker(self.settings) for _ in range(WORKERS)]
        self.folded: Usage = {}
        self.pins: list[tuple[int, Usage]] = []

    def teardown(self) -> None:
        if not hasattr(self, "settings"):
            return
        self.everything_arrives()
        self.settle_all()
        self.pin()
        self.usage_is_that_of_the_oracle()
        with postgres.reading(self.settings) as connection:
            wrong = [check for check in verify(connection, roots=True) if check.difference is not None]
        assert wrong == []
        for connection in (self.looking, self.settling, *(worker.connection for worker in self.workers)):
            connection.close()
        self.reading.close()
        self.folding.close()

    # ---- sending ----------------------------------------------------------------------------------------

    @rule(partition=st.integers(0, PARTITIONS - 1), sent=st.lists(records, min_size=1, max_size=4))
    def produce(self, partition: int, sent: list[list[dict[str, Any] | bytes]]) -> None:
        self.log[partition] += sent

    @rule(
        chance=st.randoms(use_true_random=False),
        size=st.integers(1, 9),
        partition=st.integers(0, PARTITIONS - 1),
    )
    def send_again_shuffled_in_other_records(self, chance: Any, size: int, partition: int) -> None:
        everything = [sent for log in self.log for record in log[-6:] for sent in record]
        chance.shuffle(everything)
        self.log[partition] += [everything[at : at + size] for at in range(0, len(everything), size)][:5]

    # ---- taking in --------------------------------------------------------------------------------------

    def fetched(self, partition: int, count: int) -> Fetched:
        start = self.position[partition]
        raw = [
            b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in record)
            for record in self.log[partition][start : start + count]
        ]
        made = [Record(start + at, value, "application/x-ndjson", NOON, True) for at, value in enumerate(raw)]
        return Fetched(partition, made, start + len(made))

    def taken(self, fetched: list[Fetched]) -> None:
        """The oracle takes in what was committed: the partitions in order, each from its position on."""
        for part in fetched:
            for record in self.log[part.partition][self.position[part.partition] : part.next_offset]:
                for sent in record:
                    self.oracle.take(sent)
            self.position[part.partition] = part.next_offset

    def append(self, worker: int, counts: dict[int, int], dies_after: int | None) -> None:
        one = self.workers[worker]
        for partition in sorted(counts):
            if partition not in one.claims:
                one.claim(partition)
                self.owner[partition] = worker
        fetched = [self.fetched(partition, count) for partition, count in sorted(counts.items())]
        before = self.batches()
        one.fuse.left = dies_after
        if any(self.owner[partition] != worker for partition in counts):
            # somebody else has claimed it since: nothing may be written
            with pytest.raises((Fenced, Died)):
                one.append(fetched)
            assert self.batches() == before
            one.claims.clear()
            if one.connection.closed:
                self.workers[worker] = Worker(self.settings)
            one.fuse.left = None
            return
        try:
            one.append(fetched)
        except Died:
            self.workers[worker] = Worker(self.settings)
            entered = self.batches() - before
            assert entered in (0, len(fetched)), "all partitions of a batch enter, or none"
            if not entered:
                return
        self.taken(fetched)

    def batches(self) -> int:
        row = self.looking.execute("SELECT count(*) FROM ingest_batches").fetchone()
        assert row is not None
        return int(row[0])

    @rule(
        worker=st.integers(0, WORKERS - 1),
        counts=st.dictionaries(st.integers(0, PARTITIONS - 1), st.integers(0, 5), min_size=1),
    )
    def ingest(self, worker: int, counts: dict[int, int]) -> None:
        self.append(worker, counts, None)

    @rule(
        worker=st.integers(0, WORKERS - 1),
        counts=st.dictionaries(st.integers(0, PARTITIONS - 1), st.integers(1, 5), min_size=1),
        statements=st.integers(0, 24),
    )
    def crash_while_ingesting(self, worker: int, counts: dict[int, int], statements: int) -> None:
        self.append(worker, counts, statements)

    @rule(worker=st.integers(0, WORKERS - 1), partition=st.integers(0, PARTITIONS - 1))
    def claim_anew(self, worker: int, partition: int) -> None:
        self.workers[worker].claims.pop(partition, None)
        self.workers[worker].claim(partition)
        self.owner[partition] = worker

    def everything_arrives(self) -> None:
        for partition in range(PARTITIONS):
            self.claim_anew(0, partition)
        self.append(0, {partition: len(self.log[partition]) for partition in range(PARTITIONS)}, None)

    # ---- rejects that come back -------------------------------------------------------------------------

    @rule(source=st.sampled_from(("gateway-0", "gateway-1")))
    def stop_a_source(self, source: str) -> None:
        if source not in self.oracle.stopped:
            self.workers[0].brake.stop(source, "too much of it is bad")
            self.oracle.stopped.add(source)

    @rule()
    def resume_and_replay(self) -> None:
        for source in sorted(self.oracle.stopped):
            provision.resume_source(self.settings, source, "the gateway was mended")
        self.oracle.stopped.clear()
        came_back, self.oracle.waiting = self.oracle.waiting, []
        self.oracle.counts["received"] += len(came_back)
        for sent in came_back:
            self.oracle.enter(sent)
        replayed = replay.replay(self.settings, Chosen())
        assert replayed.done == len(came_back)
        # once, however often
        assert replay.replay(self.settings, Chosen()).done == 0

    # ---- settling, folding, pinning ---------------------------------------------------------------------

    @rule()
    def settle_all(self) -> None:
        while self.settle_step.settle_some():
            pass
        self.oracle.settle()

    @rule()
    def fold_all(self) -> None:
        series = fold.SeriesPools(1_000)
        while fold.fold_once(self.folding, self.settings, series):
            pass
        self.folded = self.oracle.usage()

    @rule()
    def rebuild_changes_nothing(self) -> None:
        assert not rebuild(self.settings, dry_run=False).swapped

    @rule()
    def pin(self) -> None:
        pinned = fold.pin(self.folding, self.settings, "machine")
        assert pinned.watermark_id is not None
        self.folded = self.oracle.usage()
        self.pins.append((pinned.watermark_id, self.folded))

    # ---- what holds after each step ---------------------------------------------------------------------

    @invariant()
    def the_ledger_holds_what_the_oracle_accepted(self) -> None:
        rows = self.looking.execute(
            "SELECT s.source, CASE u.event_id WHEN '' THEN u.event_key::text ELSE u.event_id END, u.output_tokens "
            "FROM usage_events u JOIN sources s USING (source_id)"
        ).fetchall()
        expected = {
            known: sent["data"]["usage"]["output_tokens"] if sent["type"] == "inference.usage.v1" else 0
            for known, sent in self.oracle.accepted.items()
        }
        assert {(source, name): tokens for source, name, tokens in rows} == expected
        assert len(rows) == len(expected)

    @invariant()
    def everything_received_is_one_of_four(self) -> None:
        names = ("received", "accepted", "duplicate", "conflict", "rejected")
        row = self.looking.execute(
            f"SELECT {', '.join(f'coalesce(sum({name}), 0)::int' for name in names)} "
            "FROM ingest_batches JOIN stream_positions USING (intake_id) WHERE kind <> 'settle'"
        ).fetchone()
        assert row is not None
        counts = self.oracle.counts
        assert dict(zip(names, row, strict=True)) == {name: counts[name] for name in names}
        assert counts["received"] == sum(counts[name] for name in names[1:])

    @invariant()
    def usage_is_that_of_the_oracle(self) -> None:
        """Live as it was folded last, and as of every pin as it was then."""
        for as_of, expected in ((None, self.folded), *self.pins[-3:], *self.pins[:1]):
            assert self.usage(as_of) == expected

    def usage(self, as_of: int | None) -> Usage:
        key = ["quarter_start", "customer", "pool", "ran_on", "counts_for"]
        frame = rollups.read_usage(self.reading, DAY, DAY + timedelta(days=1), as_of)
        self.reading.rollback()
        found: Counter[Any] = Counter()
        sums: dict[tuple[Any, ...], tuple[int, int, int]] = {}
        for row in frame.iter_rows(named=True):
            at = tuple(row[name] for name in key)
            before = sums.get(at, (0, 0, 0))
            sums[at] = (
                before[0] + row["requests"],
                before[1] + row["uncached_input_tokens"],
                before[2] + row["output_tokens"],
            )
            found[at] += 1
        return {at: value for at, value in sums.items() if any(value)}


@pytest.fixture
def new_database(servers: servers.Addresses, template_database: str) -> Iterator[Any]:
    """Makes databases with a ledger of three days and positions for a topic that is not there."""
    made: list[str] = []

    def administer(statement: str) -> None:
        url = sandbox_postgres.url(servers.folder, sandbox_postgres.USER)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    def new(template: str) -> Settings:
        name = f"machine_{uuid.uuid4().hex}"
        administer(f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return read_settings(
            database_url=sandbox_postgres.url(servers.folder, name), kafka_bootstrap=servers.kafka_bootstrap
        )

    prepared = new(template_database)
    with postgres.connect(prepared, "owner") as connection:
        days = (DAY - timedelta(days=1)).date(), (DAY + timedelta(days=2)).date()
        partitions.ensure(connection, *days)
        today = datetime.now(UTC).date()
        partitions.ensure_rejects(connection, today - timedelta(days=1), today + timedelta(days=2))
    with postgres.connect(prepared, "operator") as connection, connection.begin():
        offsets = dict.fromkeys(range(PARTITIONS), 0)
        positions.register(connection, prepared.kafka_topic, TOPIC_UUID, offsets)
    yield lambda: new(made[0])
    for name in reversed(made):
        administer(f"DROP DATABASE {name} WITH (FORCE)")


def test_whatever_happens_the_ledger_is_that_of_the_oracle(new_database: Any) -> None:
    class Machine(Metering):
        pass

    Machine.new_database = staticmethod(new_database)
    run_state_machine_as_test(
        Machine,
        settings=hypothesis_settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize="MACHINE_EXAMPLES" not in os.environ,
            database=None,
            deadline=None,
            # making a failure smaller takes minutes: for those who look for one
            phases=(Phase.generate, Phase.shrink) if "MACHINE_EXAMPLES" in os.environ else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
