"""Random faults over several workers, round after round; after each round the ledger is held against dictionaries.

Everything random comes from one seed: what is sent, which faults come, when, and what they do. The machine's own
timing does not, so that a seed repeats the same faults but not the same microseconds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from pydantic import SecretStr

from metering.errors import MeteringError, Unavailable
from metering.settings import Settings, read_settings
from metering.stream.topics import Admin
from sandbox import kafka, postgres, processes, servers
from tests.faults.oracle import Traffic, differences
from tests.faults.proxy import Proxy
from tests.faults.small_disk import SmallDisk, mounted
from tests.faults.worker import CHECKOUT, Nursery, Worker
from workers import provision

ROUND_SECONDS = 20.0
DRAIN_SECONDS_MAX = 180.0
RECORDS_PER_ROUND = 60
PARTITIONS = 4
#: Short timeouts and small batches, so that much happens in a round.
QUICK: dict[str, Any] = {
    "batch_bytes_target": 60_000,
    "session_timeout_ms": 6_000,
    "idle_in_transaction_session_timeout_ms": 5_000,
    "statement_timeout_ms": 10_000,
    "retry_backoff_seconds_max": 1.0,
    "idle_refresh_seconds": 1.0,
    "fold_interval_seconds": 0.2,
    "settle_interval_seconds": 0.2,
    "pin_interval_seconds": 20,
    "clock_skew_seconds": 0,
    "kafka_partitions": PARTITIONS,
}

Fault = Callable[[random.Random], bool]


class Campaign:
    """Servers, proxies, workers and the generator of one run; `round()` is one round of faults."""

    def __init__(self, folder: Path, seed: int, ingest_workers: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._stack = ExitStack()
        self._random = random.Random(seed)
        self._traffic = Traffic(seed, partitions=PARTITIONS)
        self._folder = folder
        self._servers = folder / "servers"
        self._servers_lock = threading.Lock()
        self._slots: dict[str, Worker | None] = {f"ingest {n + 1}": None for n in range(ingest_workers)}
        self._slots |= {"settle": None, "fold": None}
        self._next: dict[str, dict[str, Any]] = {}
        self._asked: set[int] = set()
        self._keeping = threading.RLock()
        self._records: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.hits: Counter[str] = Counter()
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.ended: Counter[str] = Counter()
        self.found: list[str] = []
        self.rounds = 0
        self.drains: list[float] = []
        self._disk: SmallDisk | None = None

    # ---- beginning and end -------------------------------------------------------------------------------

    def __enter__(self) -> "Campaign":
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        servers.down(self._servers, erase=True)
        self._stack.callback(lambda: servers.down(self._servers, erase=True))
        self._cache = Path(os.environ.get("METERING_SANDBOX_CACHE") or CHECKOUT / "var" / "cache").absolute()
        at = servers.up(self._servers, self._say, cache=self._cache)
        self._direct = read_settings(
            database_url=at.database_url, kafka_bootstrap=at.kafka_bootstrap, kafka_topic="faults", **QUICK
        )
        for line in provision.provision(self._direct):
            self._say(line)
        host, port = at.kafka_bootstrap.rsplit(":", 1)
        socket = str(postgres.socket_folder(self._servers) / ".s.PGSQL.5432")
        self._to_postgres = self._stack.enter_context(Proxy(socket))
        self._to_kafka = self._stack.enter_context(Proxy((host, int(port))))
        through = f"postgresql://{postgres.USER}@{self._to_postgres.address}/{postgres.DATABASE}"
        self._proxied = self._direct.model_copy(update={"database_url": SecretStr(through)})
        database = self._stack.enter_context(self._look())
        self._disk = self._stack.enter_context(mounted(self._folder / "disk", database, "small"))
        # the server lets go of the disk before it is unmounted
        self._stack.callback(lambda: postgres.stop(self._servers))
        if self._disk is not None:
            self._disk.move(datetime.now(UTC).date())
        logs = self._folder / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        self._nursery = self._stack.enter_context(Nursery(logs))
        stopping = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(stopping,), daemon=True)
        keeper.start()
        self._stack.callback(lambda: (stopping.set(), keeper.join(30)))
        self._say("waiting for the workers")
        deadline = time.monotonic() + 180
        while not all(worker and '"started"' in worker.said() for worker in self._slots.values()):
            assert time.monotonic() < deadline, "the workers do not start"
            time.sleep(0.2)

    def _look(self) -> psycopg.Connection[Any]:
        """A superuser's connection, not through the proxy."""
        return psycopg.connect(
            self._direct.database_url.get_secret_value(), autocommit=True, connect_timeout=10
        )

    # ---- the workers -------------------------------------------------------------------------------------

    def _keep(self, stopping: threading.Event) -> None:
        """The supervisor: whoever ends is started again."""
        while not stopping.wait(0.1):
            with self._keeping:
                for slot, worker in self._slots.items():
                    if worker is not None and worker.code is not None:
                        self._note_end(worker)
                    if worker is None or worker.code is not None:
                        self._slots[slot] = self._start(slot.split()[0], self._next.pop(slot, {}))

    def _note_end(self, worker: Worker) -> None:
        code = worker.code
        if code == -signal.SIGKILL and worker.pid not in self._asked:
            self.hits["killed at a random point"] += 1
        elif code not in (0, -signal.SIGKILL):
            last = (worker.said().strip().splitlines() or [""])[-1][:300]
            self.ended[f"code {code}: {last}"] += 1

    def _start(self, kind: str, faults: dict[str, Any]) -> Worker:
        # who is told nothing starts as in production
        return self._nursery.start([kind], _variables(self._proxied), kafka=self._to_kafka.address, **faults)

    def _pick(self, draw: random.Random, kind: str = "") -> tuple[str, Worker] | None:
        with self._keeping:
            running = [
                (slot, worker)
                for slot, worker in sorted(self._slots.items())
                if slot.startswith(kind) and worker is not None and worker.code is None
            ]
            return draw.choice(running) if running else None

    def _end(self, worker: Worker, number: signal.Signals) -> None:
        if number == signal.SIGKILL:
            self._asked.add(worker.pid)
        worker.send(number)

    # ---- the faults --------------------------------------------------------------------------------------

    def faults(self) -> dict[str, Fault]:
        """What may happen: name -> what does it; true when it has struck."""
        made: dict[str, Fault] = {
            "kill -9": self._kill,
            "killed at a random point": self._kill_at_a_point,
            "stopped and continued": self._stop_and_continue,
            "stopped inside COPY, past the session timeout": self._stop_inside_copy,
            "rebalance storm": self._storm,
            "group deleted": self._delete_group,
            "backend terminated": self._terminate,
            "lock held": self._hold_lock,
            "Postgres restarted, fast": lambda draw: self._restart_postgres(signal.SIGINT),
            "Postgres restarted, immediate": lambda draw: self._restart_postgres(signal.SIGQUIT),
            "broker restarted": lambda draw: self._restart_broker(signal.SIGTERM),
            "broker killed": lambda draw: self._restart_broker(signal.SIGKILL),
            "reply to COMMIT lost": self._swallow,
            "Postgres cut off": lambda draw: self._cut(self._to_postgres, draw),
            "Kafka cut off": lambda draw: self._cut(self._to_kafka, draw),
            "Postgres slow": lambda draw: self._slow(self._to_postgres, draw),
            "Kafka slow": lambda draw: self._slow(self._to_kafka, draw),
            "Postgres half-open": lambda draw: self._to_postgres.blackhole() > 0,
            "Kafka half-open": lambda draw: self._to_kafka.blackhole() > 0,
            "Postgres refuses": lambda draw: self._refuse(self._to_postgres, draw),
            "Kafka refuses": lambda draw: self._refuse(self._to_kafka, draw),
        }
        if self._disk is not None:
            made["disk full"] = self._fill_disk
        return made

    def _kill(self, draw: random.Random) -> bool:
        picked = self._pick(draw)
        if picked is None:
            return False
        self._end(picked[1], signal.SIGKILL)
        return True

    def _kill_at_a_point(self, draw: random.Random) -> bool:
        """The hit is counted when the worker has died of it."""
        picked = self._pick(draw)
        if picked is not None:
            with self._keeping:
                count, most = ("^poll$", 120) if picked[0].startswith("ingest") else ("advisory_lock", 400)
                self._next[picked[0]] = {"at": [[f"#{draw.randrange(most)}", "kill"]], "count": count}
            self._end(picked[1], signal.SIGTERM)
        return False

    def _stop_and_continue(self, draw: random.Random) -> bool:
        picked = self._pick(draw)
        if picked is None:
            return False
        picked[1].send(signal.SIGSTOP)
        time.sleep(draw.uniform(0.2, 8.0))
        picked[1].send(signal.SIGCONT)
        return True

    def _stop_inside_copy(self, draw: random.Random) -> bool:
        picked = self._pick(draw, "ingest")
        if picked is None:
            return False
        slot, before = picked
        with self._keeping:
            self._next[slot] = {"at": [["inside COPY usage_events", "stop"]]}
        self._end(before, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            worker = self._slots[slot]
            if worker is not None and worker is not before and worker.state() == "T":
                time.sleep(draw.uniform(1.0, 9.0))
                worker.send(signal.SIGCONT)
                return True
            time.sleep(0.05)
        return False

    def _storm(self, draw: random.Random) -> bool:
        guests = []
        for _ in range(draw.randint(1, 3)):
            guests.append(self._start("ingest", {}))
            time.sleep(draw.uniform(0.3, 2.0))
        struck = sum('"claimed"' in guest.said() for guest in guests)
        for guest in guests:
            self._end(guest, draw.choice((signal.SIGTERM, signal.SIGKILL)))
        for guest in guests:
            with suppress(AssertionError):
                guest.wait(20)
            if guest.code is None:
                self._end(guest, signal.SIGKILL)
                guest.wait(20)
            self._note_end(guest)
        return struck > 0

    def _delete_group(self, draw: random.Random) -> bool:
        with self._keeping:
            members = [w for slot, w in self._slots.items() if slot.startswith("ingest") and w is not None]
            for worker in members:
                self._end(worker, signal.SIGKILL)
            deadline = time.monotonic() + 12
            while time.monotonic() < deadline:
                # a member that was killed is one until its session times out
                admin = KafkaAdminClient(bootstrap_servers=self._direct.kafka_bootstrap)
                try:
                    admin.delete_groups([self._direct.consumer_group])
                    if self._direct.consumer_group not in str(admin.list_groups()):
                        return True
                finally:
                    admin.close()
                time.sleep(0.5)
        return False

    def _terminate(self, draw: random.Random) -> bool:
        with self._look() as database:
            ended = database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'metering %%' "
                "AND pid %% %s = 0",
                (draw.randint(1, 2),),
            ).fetchall()
        return (True,) in ended

    def _hold_lock(self, draw: random.Random) -> bool:
        what = draw.choice(
            (
                "LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE",
                "LOCK TABLE usage_quarters IN ACCESS EXCLUSIVE MODE",
                "SELECT 1 FROM stream_positions FOR UPDATE",
                "LOCK TABLE ingest_batches IN SHARE MODE",
            )
        )
        with self._look() as database:
            database.execute("SET lock_timeout = '3s'")
            with database.transaction():
                database.execute(what)
                time.sleep(draw.uniform(0.5, 4.0))
        return True

    def _restart_postgres(self, number: signal.Signals) -> bool:
        with self._servers_lock:
            stopped = processes.stop(
                postgres.NAME, postgres.pid_file(self._servers), ((number, 30.0), (signal.SIGKILL, 5.0))
            )
            self._up()
        return stopped

    def _restart_broker(self, number: signal.Signals) -> bool:
        with self._servers_lock:
            stopped = processes.stop(
                kafka.NAME, kafka.pid_file(self._servers), ((number, 30.0), (signal.SIGKILL, 5.0))
            )
            self._up()
        return stopped

    def _up(self) -> None:
        for _ in range(3):
            try:
                servers.up(self._servers, cache=self._cache)
                return
            except Unavailable as error:
                self._say(f"a server does not come up, trying again: {error}")
        servers.up(self._servers, cache=self._cache)

    def _swallow(self, draw: random.Random) -> bool:
        before = self._to_postgres.hits["swallowed"]
        self._to_postgres.swallow_reply_to(b"COMMIT\0")
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and self._to_postgres.hits["swallowed"] == before:
            time.sleep(0.05)
        return self._to_postgres.hits["swallowed"] > before

    def _cut(self, proxy: Proxy, draw: random.Random) -> bool:
        if draw.random() < 0.5:
            return proxy.cut() > 0
        before = proxy.hits["cut"]
        proxy.cut_after(draw.randrange(100, 60_000))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and proxy.hits["cut"] == before:
            time.sleep(0.05)
        return proxy.hits["cut"] > before

    def _slow(self, proxy: Proxy, draw: random.Random) -> bool:
        before = proxy.hits["delayed"]
        proxy.delay_seconds = draw.uniform(0.005, 0.1)
        time.sleep(draw.uniform(1.0, 4.0))
        proxy.delay_seconds = 0.0
        return proxy.hits["delayed"] > before

    def _refuse(self, proxy: Proxy, draw: random.Random) -> bool:
        before = proxy.hits["refused"]
        proxy.refusing = True
        proxy.cut()
        time.sleep(draw.uniform(1.0, 4.0))
        proxy.refusing = False
        return proxy.hits["refused"] > before

    def _fill_disk(self, draw: random.Random) -> bool:
        assert self._disk is not None
        log = self._servers / "postgres.log"
        before = log.read_text(errors="replace").count("No space left on device")
        with self._disk.full():
            time.sleep(draw.uniform(1.0, 4.0))
        return log.read_text(errors="replace").count("No space left on device") > before

    # ---- a round -----------------------------------------------------------------------------------------

    def round(self) -> bool:
        """Send events, throw faults, heal, drain, compare. True when nothing differed."""
        self.rounds += 1
        began = time.monotonic()
        until = began + ROUND_SECONDS
        for partition, value in self._traffic.records(RECORDS_PER_ROUND):
            self._records[partition].append(value)
        struck: list[str] = []
        before = self.hits["killed at a random point"]
        over = threading.Event()
        injectors = [
            threading.Thread(
                target=self._inject, args=(random.Random(self._random.getrandbits(64)), until, over, struck)
            )
            for _ in range(2)
        ]
        for injector in injectors:
            injector.start()
        try:
            self._send(until)
        except BaseException:
            # whoever is asked to stop throws no fault any more at what is being taken down
            over.set()
            raise
        finally:
            for injector in injectors:
                injector.join()
        drained = self._drain()
        at_a_point = self.hits["killed at a random point"] - before
        struck += ["killed at a random point"] * at_a_point
        found = [] if drained is not None else ["not drained: " + self._standing()]
        if not found:
            with self._look() as database:
                found = differences(self._direct, database, self._traffic)
        for name in set(struck):
            self.outcomes[name]["differed" if found else "nothing lost or doubled"] += struck.count(name)
        self.found += [f"round {self.rounds}: {difference}" for difference in found]
        if drained is not None:
            self.drains.append(drained)
        self._say(
            f"round {self.rounds}: {len(self._traffic.accepted):,} events so far; {', '.join(struck) or 'no fault'}; "
            + (f"drained in {drained:.1f} s, " if drained is not None else "")
            + ("nothing lost or doubled" if not found else "DIFFERENT: " + "; ".join(found))
        )
        return not found

    def _inject(self, draw: random.Random, until: float, over: threading.Event, struck: list[str]) -> None:
        names = self.faults()
        while time.monotonic() < until and not over.wait(draw.uniform(0.2, 3.0)):
            name = draw.choice(sorted(names, key=lambda n: (self.hits[n], n))[: len(names) * 2 // 3])
            try:
                hit = names[name](random.Random(draw.getrandbits(64)))
            except (psycopg.Error, KafkaError, OSError):
                # a server that is being restarted meanwhile cannot be asked
                hit = False
            if hit:
                self.hits[name] += 1
                struck.append(name)

    def _send(self, until: float) -> None:
        """Send what is not in the log yet, one record after the other, spread over the round, until all of it is."""
        while waiting := self._unsent():
            producer = None
            try:
                producer = KafkaProducer(
                    bootstrap_servers=self._direct.kafka_bootstrap,
                    enable_idempotence=True,
                    compression_type="lz4",
                    max_block_ms=60_000,
                    delivery_timeout_ms=60_000,
                )
                pause = max(0.0, until - time.monotonic()) / sum(map(len, waiting.values()))
                for partition, value in _interleaved(waiting):
                    producer.send(self._direct.kafka_topic, value, partition=partition).get(timeout=90)
                    time.sleep(pause)
            except KafkaError:
                time.sleep(0.5)
            finally:
                if producer is not None:
                    _close(producer)

    def _unsent(self) -> dict[int, list[bytes]]:
        """By the log's own ends: what an interrupted producer got through is not sent again."""
        while True:
            try:
                with Admin(self._direct) as admin:
                    ends = admin.offsets(admin.get())
                return {
                    p: values[ends[p] :] for p, values in enumerate(self._records) if ends[p] < len(values)
                }
            except MeteringError:
                time.sleep(0.3)

    def _drain(self) -> float | None:
        """Wait until everything is read and folded; returns the seconds, None when it does not come to that."""
        self._to_postgres.delay_seconds = self._to_kafka.delay_seconds = 0.0
        self._to_postgres.refusing = self._to_kafka.refusing = False
        began = time.monotonic()
        while time.monotonic() < began + DRAIN_SECONDS_MAX:
            with suppress(psycopg.Error), self._look() as database:
                offsets = database.execute(
                    "SELECT next_offset FROM stream_positions WHERE kind = 'kafka' ORDER BY partition"
                )
                read = [row[0] for row in offsets] == [len(values) for values in self._records]
                unfolded = database.execute(
                    "SELECT 1 FROM ingest_batches LEFT JOIN fold_positions USING (intake_id) "
                    "WHERE sequence >= coalesce(next_sequence, 0) LIMIT 1"
                ).fetchone()
                unsettled = database.execute(
                    "SELECT (SELECT count(*) FROM voids) - (SELECT count(*) FROM settlements)"
                ).fetchone()
                if read and unfolded is None and unsettled == (0,):
                    return time.monotonic() - began
            time.sleep(0.2)
        return None

    def _standing(self) -> str:
        offsets: list[int] = []
        with suppress(psycopg.Error), self._look() as database:
            offsets = [
                row[0]
                for row in database.execute("SELECT next_offset FROM stream_positions ORDER BY partition")
            ]
        said = {
            slot: (worker.said().splitlines() or [""])[-1][:200]
            for slot, worker in self._slots.items()
            if worker
        }
        return f"positions {offsets} of {[len(values) for values in self._records]}; {said}"

    def events(self) -> Counter[str]:
        """What was sent, by how it must end."""
        return self._traffic.outcomes


def _close(producer: KafkaProducer) -> None:
    """Close a producer for certain: one whose flush fails would go on sending."""
    try:
        producer.close(timeout=10)
    except KafkaError:
        producer._sender.force_close()
        producer._sender.join(60)
        producer._closed = True


def _interleaved(waiting: dict[int, list[bytes]]) -> list[tuple[int, bytes]]:
    """Round robin over the partitions, each in its order."""
    longest = max(map(len, waiting.values()))
    return [
        (p, values[n]) for n in range(longest) for p, values in sorted(waiting.items()) if n < len(values)
    ]


def _variables(settings: Settings) -> dict[str, str]:
    from tests.faults.conftest import variables

    return variables(settings)


def main() -> int:
    """Run for the minutes asked; 0 when nothing ever differed and every fault has struck, else 1."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--seed", type=int, default=None, help="repeat the faults of an earlier run")
    parser.add_argument("--workers", type=int, default=3, help="ingest workers (3)")
    asked = parser.parse_args()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(10**9)
    folder = CHECKOUT / "var" / "faults"
    folder.mkdir(parents=True, exist_ok=True)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    began = datetime.now(UTC)

    def say(line: str) -> None:
        print(f"{str(datetime.now(UTC) - began)[:7]} {line}", flush=True)

    say(f"seed {seed}, {asked.workers} ingest workers, {asked.minutes:g} minutes")
    campaign = Campaign(folder, seed, asked.workers, say)
    interrupted = False
    try:
        with campaign:
            while datetime.now(UTC) - began < timedelta(minutes=asked.minutes):
                campaign.round()
    except KeyboardInterrupt:
        interrupted = True
    result = _result(campaign, seed, asked.workers, began, interrupted)
    (folder / "latest.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "latest.md").write_text(_table(result))
    print(_table(result))
    missed = [name for name, count in result["faults"].items() if not count["hit"]]
    return 1 if campaign.found or missed or interrupted else 0


def _result(
    campaign: Campaign, seed: int, workers: int, began: datetime, interrupted: bool
) -> dict[str, Any]:
    return {
        "seed": seed,
        "workers": workers,
        "began_at": began.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - began).total_seconds() / 60, 1),
        "interrupted": interrupted,
        "rounds": campaign.rounds,
        "events": dict(campaign.events()),
        "drain_seconds_longest": round(max(campaign.drains, default=0.0), 1),
        "faults": {
            name: {"hit": campaign.hits[name], "outcome": dict(campaign.outcomes[name])}
            for name in campaign.faults()
        },
        "workers_ended_by_themselves": dict(campaign.ended),
        "differences": campaign.found,
    }


def _table(result: dict[str, Any]) -> str:
    events = result["events"]
    lines = [
        f"Seed {result['seed']}, {result['workers']} ingest workers, settle and fold, {result['minutes']} minutes from "
        f"{result['began_at']}, {result['rounds']} rounds"
        + (" (interrupted)" if result["interrupted"] else "")
        + f": {events.get('accepted', 0):,} events to accept, {events.get('duplicate', 0):,} duplicates, "
        f"{events.get('conflict', 0):,} conflicts, {events.get('rejected', 0):,} rejects. "
        f"Longest time to read and fold what was left after a round: {result['drain_seconds_longest']} s.",
        "",
        "| fault | times hit | outcome |",
        "|---|---|---|",
    ]
    for name, fault in sorted(result["faults"].items()):
        told = ", ".join(f"{what}: {count}" for what, count in fault["outcome"].items())
        lines.append(f"| {name} | {fault['hit']} | {told or 'inconclusive: never hit'} |")
    lines += ["", f"Differences: {len(result['differences'])}."]
    lines += [f"- {difference}" for difference in result["differences"]]
    if result["workers_ended_by_themselves"]:
        lines += ["", "Workers that ended by themselves, and were started again:"]
        lines += [f"- {count} x {why}" for why, count in result["workers_ended_by_themselves"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
