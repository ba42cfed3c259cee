"""A synthetic day of the example company: bursty and imperfect traffic, and what must come of it.

The names are those of examples/catalog: three models of its own and a preview without a price on the pool
`block-a`, provisioned throughput `ptu-west` at the provider `cirrus`, overflow on demand, a resold model.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from metering.events.identity import uuid7_texts
from sandbox.company import (
    ATLAS,
    BLOCK_A_MEAN,
    BLOCK_A_MINUTE,
    CUSTOMERS,
    INPUT_MS,
    LARGE,
    LONG_CONTEXT_CUSTOMER,
    NO_TEXT,
    OUTPUT_MS,
    PREVIEW,
    PRODUCTS,
    PTU_WEST_MINUTE,
    SMALL,
    UNKNOWN_CUSTOMER,
    profile,
)
from sandbox.malformed import malformed_lines
from sandbox.turned_away import TurnedAway, turned_away

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Of the day's events, how many are sent twice, and how many arrive hours late.
DUPLICATE_RATIO: Final = 0.005
LATE_RATIO: Final = 0.005
_MINUTES: Final = 1_440
_LINES_AT_A_TIME: Final = 10_000
#: The sources that the events come from, and when in the day each sends a heartbeat.
SOURCES: Final = ("gateway/us-east", "gateway/us-west")
_HEARTBEATS_MS: Final = np.arange(1, _MINUTES // 5 + 1, dtype=np.int64) * 300_000
#: How many events of a day come from a customer that no catalog knows.
UNKNOWN_CUSTOMER_EVENTS: Final = 7

#: Meters in the order of the expectation's totals.
TOTALS: Final = (
    "events",
    "billable_events",
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "accelerator_ms",
)


@dataclass(frozen=True)
class Expectation:
    """What must come of the stream, counted by the generator from its own numbers."""

    lines: int
    accepted: int
    duplicates: int
    rejected: dict[str, int] = field(default_factory=dict)  # by reject code
    customers: dict[str, dict[str, int]] = field(default_factory=dict)  # customer -> TOTALS


def synthetic_day(day: date, events: int, seed: int) -> Iterator[bytes]:
    """Newline-delimited events of one UTC day, in the order of their arrival: `events` distinct ones.

    Beside them come duplicates (the same bytes again), events that arrive hours late, malformed lines, refusals of
    seats that had used up their limit, and the heartbeats of two sources.
    Deterministic in its three arguments.
    """
    return Workload(day, events, seed).lines()


class Workload:
    """One synthetic day: `lines()` is the stream, `expectation()` what must come of it."""

    def __init__(self, day: date, events: int, seed: int) -> None:
        self.day = day
        self._random = np.random.default_rng([seed, day.toordinal(), events])
        self._start_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
        self._make_requests(events)
        self._make_counts()
        self._place()
        self._turned_away = self._refusals()
        self._malformed = malformed_lines(day, self._random.bytes(10))
        self._order = self._arrivals()
        self._tails = np.frombuffer(self._random.bytes(10 * events), dtype=np.uint8).reshape(events, 10)
        self._salt = self._random.bytes(10)
        self._others = [line for line, _ in self._malformed] + self._refused() + self._heartbeats()
        self._render_profiles()

    def _make_requests(self, events: int) -> None:
        """Who asks for what and when; some requests take two or three attempts, the last is billed."""
        random = self._random
        attempts = random.choice([1, 2, 3], size=events, p=[0.972, 0.022, 0.006])
        request = np.repeat(np.arange(events), attempts)[:events]
        self.request = request
        first = np.r_[True, request[1:] != request[:-1]] if events else np.zeros(0, dtype=np.bool_)
        starts = np.flatnonzero(first)
        self.attempt = np.arange(events) - np.repeat(starts, np.diff(np.r_[starts, events])) + 1
        self.final: Mask = np.r_[request[1:] != request[:-1], True] if events else first
        requests = int(request[-1]) + 1 if events else 0

        shares = np.array([customer.share for customer in CUSTOMERS], dtype=np.float64)
        customer = random.choice(len(CUSTOMERS), size=requests, p=shares / shares.sum())
        unknown = min(UNKNOWN_CUSTOMER_EVENTS, requests // 2)
        customer[random.choice(requests, size=unknown, replace=False)] = UNKNOWN_CUSTOMER
        mixes = np.cumsum([np.array(each.mix) / sum(each.mix) for each in CUSTOMERS], axis=1)
        product = (random.random(requests)[:, None] > mixes[customer]).sum(axis=1).clip(0, ATLAS)
        minute = random.choice(_MINUTES, size=requests, p=_minute_profile(random))
        ended = (minute * 60_000 + random.integers(0, 60_000, requests)).astype(np.int64)

        self.customer, self.product = customer[request], product[request]
        # earlier attempts ended seconds before the last one
        attempts_left = attempts[request] - self.attempt
        self.ended_ms = np.maximum(ended[request] - attempts_left * random.integers(2_000, 9_000, events), 0)
        self.micros = random.integers(0, 1_000, events)
        batch = np.array([each.batch for each in CUSTOMERS])
        night = ended < 7 * 3_600_000
        self.batch = ((random.random(requests) < batch[customer] * (1 + night)) & (product != PREVIEW))[
            request
        ]
        seats = np.array([each.seats for each in CUSTOMERS])
        seat = (random.random(requests) * seats[customer]).astype(np.int64)
        self.seat = np.where(seats[customer] > 0, seat, -1)[request]
        projects = np.array([len(each.projects) for each in CUSTOMERS])
        self.project = (random.random(requests) * projects[customer]).astype(np.int64)[request]
        ptu = np.array([each.ptu for each in CUSTOMERS])
        self.meant_for_ptu = ((random.random(requests) < ptu[customer]) & (product == LARGE))[
            request
        ] & ~self.batch

    def _make_counts(self) -> None:
        """Token counts, log-normal around each customer's means; lattice-voice sends very long contexts."""
        random, size = self._random, len(self.customer)
        means = np.array([[each.input_tokens, each.output_tokens, each.cached] for each in CUSTOMERS])[
            self.customer
        ]
        spread = random.lognormal(-0.32, 0.8, (2, size))
        total_input = (means[:, 0] * spread[0]).astype(np.int64) + 1
        long = (self.customer == LONG_CONTEXT_CUSTOMER) & (random.random(size) < 0.02)
        total_input[long] = random.integers(120_000, 320_000, int(long.sum()))
        total_output = (means[:, 1] * spread[1]).astype(np.int64)
        self.failed = ~self.final & (random.random(size) < 0.6)
        total_output[self.failed] //= 5
        reasons = np.isin(self.product, [LARGE, PREVIEW]) & (random.random(size) < 0.3)
        self.reasoning = np.where(reasons, (total_output * random.random(size) * 0.6).astype(np.int64), 0)
        share = np.clip(means[:, 2] * random.random(size) * 2, 0, 0.95)
        self.read = (total_input * share).astype(np.int64)
        writes = (random.random(size) < 0.1) & (self.read > 0)
        written = np.where(writes, ((total_input - self.read) * 0.5).astype(np.int64), 0)
        hour = random.random(size) < 0.2
        self.write_5m, self.write_1h = np.where(hour, 0, written), np.where(hour, written, 0)
        self.total_input, self.total_output = total_input, total_output
        self.duration_ms = 200 + total_output * 12 + total_input // 40

    def _place(self) -> None:
        """Decide minute by minute what ran in its pool and what spilled over."""
        random, size = self._random, len(self.customer)
        # now and then a small request is served by the large model
        fallback = (self.product == SMALL) & (random.random(size) < 0.005)
        self.served = np.where(fallback, LARGE, self.product)
        on_block = (self.served != ATLAS) & ~self.meant_for_ptu
        work = INPUT_MS[self.served] * self.total_input + OUTPUT_MS[self.served] * self.total_output
        wanted = np.where(on_block, work / 1000 * random.lognormal(-0.02, 0.2, size), 0.0)
        scale = BLOCK_A_MEAN * BLOCK_A_MINUTE * _MINUTES / max(float(wanted.sum()), 1.0)
        block_ms = np.minimum(np.ceil(wanted * scale), 2**31 - 1).astype(np.int64)
        uncached = self.total_input - self.read - self.write_5m - self.write_1h
        burn = (
            10 * uncached + self.read + 12 * self.write_5m + 20 * self.write_1h + 40 * self.total_output
        ) // 10
        minute = self.ended_ms // 60_000
        # what cirrus does not host stays on the block, so it is served first
        hosted = np.isin(self.served, [LARGE, SMALL])
        block_full = _over(minute, block_ms, on_block, hosted, BLOCK_A_MINUTE)
        ptu_full = _over(minute, burn, self.meant_for_ptu, hosted, PTU_WEST_MINUTE)
        self.on_block, self.overflow = on_block, block_full | ptu_full
        self.accelerator_ms = np.where(on_block & ~self.overflow, block_ms, 0)

    def _arrivals(self) -> Integers:
        """Places of the stream in order of arrival: an event's row, or -1 - n for the n-th malformed line."""
        random, size = self._random, len(self.customer)
        arrival = self.ended_ms + random.integers(50, 3_000, size)
        late = random.random(size) < LATE_RATIO
        arrival[late] += random.integers(2 * 3_600_000, 6 * 3_600_000, int(late.sum()))
        again = (
            np.sort(random.choice(size, size=round(size * DUPLICATE_RATIO), replace=False))
            if size
            else np.zeros(0)
        )
        self.again = again.astype(np.int64)
        resent = arrival[self.again] + random.integers(1, 600_000, len(self.again))
        malformed = random.integers(0, _MINUTES * 60_000, len(self._malformed))
        east = (self.product == ATLAS) | (self.overflow & ~self.meant_for_ptu)
        self._complete_ms = [_complete_ms(arrival[chosen], self.ended_ms[chosen]) for chosen in (east, ~east)]
        # the last heartbeats come when everything late has come
        beats = np.tile(_HEARTBEATS_MS, len(SOURCES))
        beats[_HEARTBEATS_MS.size - 1 :: _HEARTBEATS_MS.size] = 2 * _MINUTES * 60_000
        refused = np.array([each.at_ms for each in self._turned_away], dtype=np.int64)
        others = len(self._malformed) + len(refused) + len(beats)
        places = np.r_[np.arange(size), self.again, -1 - np.arange(others)]
        in_time = np.argsort(np.r_[arrival, resent, malformed, refused, beats], kind="stable")
        return np.asarray(places[in_time], dtype=np.int64)

    def _refusals(self) -> list[TurnedAway]:
        uncached = self.total_input - self.read - self.write_5m - self.write_1h
        return turned_away(
            *(self.customer, self.seat, self.ended_ms, self.project, self.product),
            *(uncached, self.total_input, self.total_output),
            day_ms=_MINUTES * 60_000,
        )

    def _refused(self) -> list[bytes]:
        """Refusals of seats that had used up their limit."""
        lines = []
        for number, each in enumerate(self._turned_away):
            made = self._start_ms + each.at_ms
            id_ = self._id(f"refusal {number}", made)
            time = str(np.datetime_as_string(np.datetime64(made, "ms")))
            lines.append(each.line(id_, time, f"req-{self.day:%Y%m%d}-r{number}"))
        return lines

    def _id(self, name: str, made_ms: int) -> str:
        tail = hashlib.blake2b(self._salt + name.encode(), digest_size=10).digest()
        (text,) = uuid7_texts(np.array([made_ms]), np.frombuffer(tail, dtype=np.uint8).reshape(1, 10))
        return str(text)

    def _heartbeats(self) -> list[bytes]:
        """Heartbeats of every source, one every few minutes of the day."""
        return [
            self._heartbeat(source, sequence, self._start_ms + made, self._start_ms + until)
            for source, complete in zip(SOURCES, self._complete_ms, strict=True)
            for sequence, (made, until) in enumerate(zip(_HEARTBEATS_MS.tolist(), complete, strict=True), 1)
        ]

    def _heartbeat(self, source: str, sequence: int, made_ms: int, until_ms: int) -> bytes:
        text = self._id(f"{source} {sequence}", made_ms)
        made, until = (np.datetime_as_string(np.datetime64(at, "ms")) for at in (made_ms, until_ms))
        return (
            f'{{"specversion":"1.0","id":"{text}","type":"inference.heartbeat.v1","source":"{source}",'
            f'"time":"{made}Z","data":{{"sequence":{sequence},"complete_until":"{until}Z"}}}}'
        ).encode()

    def caught_up(self, at: datetime) -> list[bytes]:
        """The heartbeats that follow the stream, made at an instant: everything before it has been sent."""
        at_ms = int(at.timestamp() * 1000)
        return [self._heartbeat(source, _HEARTBEATS_MS.size + 1, at_ms, at_ms) for source in SOURCES]

    def lines(self) -> Iterator[bytes]:
        """The stream, one event a line, without line ends."""
        for start in range(0, len(self._order), _LINES_AT_A_TIME):
            places = self._order[start : start + _LINES_AT_A_TIME]
            texts = iter(self._texts(places[places >= 0]))
            for place in places.tolist():
                yield next(texts) if place >= 0 else self._others[-1 - place]

    def _texts(self, rows: Integers) -> list[bytes]:
        """Some rows as JSON; the same row always gives the same bytes."""
        ended = self.ended_ms[rows]
        micros = (self._start_ms + ended) * 1_000 + self.micros[rows]
        counts = (
            self.total_input,
            self.read,
            self.write_5m,
            self.write_1h,
            self.total_output,
            self.reasoning,
            self.duration_ms,
            self.accelerator_ms,
        )
        columns = (
            uuid7_texts(self._start_ms + np.maximum(ended - self.duration_ms[rows], 0), self._tails[rows]),
            [self._profiles[place] for place in self._profile_of[rows].tolist()],
            np.datetime_as_string(micros.astype("datetime64[us]"), unit="us").tolist(),
            self.request[rows].tolist(),
            self.attempt[rows].tolist(),
            [NO_TEXT if seat < 0 else f'"seat-{seat:03d}"' for seat in self.seat[rows].tolist()],
            map(
                _usage,
                self.product[rows].tolist(),
                self.batch[rows].tolist(),
                zip(*(column[rows].tolist() for column in counts), strict=True),
            ),
        )
        prefix = f"req-{self.day:%Y%m%d}-"
        return [
            (
                f'{{"specversion":"1.0","id":"{id_}","type":"inference.usage.v1",{head},"time":"{time}Z","data":'
                f'{{"request_id":"{prefix}{request}","attempt":{attempt},{body},"seat":{seat},{usage}}}}}'
            ).encode()
            for id_, (head, body), time, request, attempt, seat, usage in zip(*columns, strict=True)
        ]

    def _render_profiles(self) -> None:
        """The parts of an event that few others differ in, rendered once per combination."""
        ends = np.where(self.final, 0, np.where(self.failed, 1, 2))
        flags = (self.batch, self.meant_for_ptu, self.overflow)
        parts = (
            self.customer,
            self.product,
            self.served,
            *(flag.astype(np.int64) for flag in flags),
            ends,
            self.project,
        )
        sizes = (
            len(CUSTOMERS),
            len(PRODUCTS),
            len(PRODUCTS),
            2,
            2,
            2,
            3,
            max(len(each.projects) for each in CUSTOMERS),
        )
        codes, profile_of = np.unique(np.ravel_multi_index(parts, sizes), return_inverse=True)
        self._profile_of = profile_of
        self._profiles = [
            profile(*map(int, part)) for part in zip(*np.unravel_index(codes, sizes), strict=True)
        ]

    def expectation(self) -> Expectation:
        """Counts of every outcome and totals per customer, from the generator's own numbers."""
        columns = (
            np.ones_like(self.read),
            self.final.astype(np.int64),
            self.total_input - self.read - self.write_5m - self.write_1h,
            self.read,
            self.write_5m,
            self.write_1h,
            self.total_output - self.reasoning,
            self.reasoning,
            self.accelerator_ms,
        )
        totals: dict[str, dict[str, int]] = {}
        for number, customer in enumerate(CUSTOMERS):
            chosen = self.customer == number
            if chosen.any():
                totals[customer.name] = {
                    name: int(column[chosen].sum()) for name, column in zip(TOTALS, columns, strict=True)
                }
        rejected: dict[str, int] = {}
        for _, code in self._malformed:
            rejected[code] = rejected.get(code, 0) + 1
        return Expectation(
            lines=len(self._order),
            accepted=len(self.customer) + len(self._others) - len(self._malformed),
            duplicates=len(self.again),
            rejected=dict(sorted(rejected.items())),
            customers=totals,
        )


def _usage(product: int, batch: bool, counts: tuple[int, ...]) -> str:
    """The counts of an event and its times; of what is resold, as its provider reports it."""
    sent, read, short, long, answered, reasoned, took, worked = counts
    if product == ATLAS:
        usage = (
            f'"input_tokens":{sent - read - short - long},"cache_read_input_tokens":{read},'
            f'"cache_creation_input_tokens":{short + long},"cache_creation":{{'
            f'"ephemeral_5m_input_tokens":{short},"ephemeral_1h_input_tokens":{long}}},'
            f'"output_tokens":{answered},"service_tier":"{"batch" if batch else "standard"}"'
        )
    else:
        usage = (
            f'"input_tokens":{sent},"cache_read_tokens":{read},"cache_write_5m_tokens":{short},'
            f'"cache_write_1h_tokens":{long},"output_tokens":{answered},"reasoning_tokens":{reasoned}'
        )
    return f'"usage":{{{usage}}},"duration_ms":{took},"accelerator_ms":{worked}'


def _complete_ms(arrival: Integers, ended: Integers) -> list[int]:
    """For each heartbeat the time before which everything that ended had arrived when it was made."""
    order = np.argsort(arrival, kind="stable")
    missing = np.minimum.accumulate(ended[order][::-1])[::-1]
    at = np.searchsorted(arrival[order], _HEARTBEATS_MS, side="right")
    until = np.minimum(_HEARTBEATS_MS, np.r_[missing, _MINUTES * 60_000][at])
    return [*until.tolist()[:-1], _MINUTES * 60_000]


def _minute_profile(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """The share of each minute: day and night, noise that lasts for minutes, and a few bursts."""
    minutes = np.arange(_MINUTES)
    daily = (
        1
        + 0.35 * np.sin((minutes - 9 * 60) * 2 * np.pi / _MINUTES)
        + 0.1 * np.sin(minutes * 6 * np.pi / _MINUTES)
    )
    noise = np.convolve(random.normal(0, 0.22, _MINUTES + 4), np.ones(5) / 5**0.5, mode="valid")
    profile = daily * np.exp(noise * 0.6)
    for start in random.choice(_MINUTES - 12, size=9, replace=False):
        profile[start : start + random.integers(3, 12)] *= random.uniform(1.4, 2.2)
    shares: npt.NDArray[np.float64] = profile / profile.sum()
    return shares


def _over(minute: Integers, burn: Integers, meant: Mask, may_spill: Mask, per_minute: int) -> Mask:
    """Which requests meant for a pool found it full: the burn before them had reached the limit."""
    rows = np.flatnonzero(meant)
    order = rows[np.lexsort((rows, may_spill[rows], minute[rows]))]
    total = np.cumsum(burn[order])
    before = total - burn[order]
    minutes = minute[order]
    opens = np.r_[True, minutes[1:] != minutes[:-1]] if len(order) else np.zeros(0, dtype=np.bool_)
    base = np.repeat(before[opens], np.diff(np.r_[np.flatnonzero(opens), len(order)]))
    over = np.zeros(len(meant), dtype=np.bool_)
    over[order] = (before - base >= per_minute) & may_spill[order]
    return over
