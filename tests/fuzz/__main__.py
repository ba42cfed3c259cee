"""`python -m tests.fuzz`: mutations of the corpus against the decoder, for minutes; then whether time is linear."""

import argparse
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from metering.events import RecordBytes, decode
from metering.events.laws import DecodeLimits
from tests.fuzz import checking
from tests.fuzz.mutations import Seed, mutated

CORPUS = Path(__file__).parent / "corpus"
#: The ending of a corpus file says the content-type header of its record.
ENDINGS = {
    ".event.json": "application/cloudevents+json",
    ".array.json": "application/cloudevents-batch+json",
    ".ndjson": "application/x-ndjson",
    ".bytes": None,
}
BATCH_RECORDS = 100
#: Seeds that are kept in memory beside those of the corpus.
KEPT_MAX = 400


def corpus() -> list[Seed]:
    """Every record of the corpus, by name."""
    found = []
    for path in sorted(CORPUS.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        assert ending is not None, f"{path}: a file of the corpus ends in one of {', '.join(ENDINGS)}"
        found.append(Seed(path.read_bytes(), ENDINGS[ending]))
    return found


def run(
    seconds: float, seed: int, *, records_max: int = sys.maxsize, say: Callable[[str], None]
) -> dict[str, Seed]:
    """Mutate and check until the time is over; returns one minimised record per kind of complaint."""
    chance = random.Random(seed)
    seeds = corpus()
    first = len(seeds)
    seen: set[frozenset[tuple[str, str | None]]] = set()
    found: dict[str, Seed] = {}
    counts: Counter[str] = Counter()
    began = told = time.monotonic()
    while time.monotonic() - began < seconds and counts["records"] < records_max:
        batch = [mutated(chance, seeds) for _ in range(BATCH_RECORDS)]
        counts["records"] += len(batch)
        for complaint in checking.complaints(batch):
            counts["complaints"] += 1
            if complaint.kind not in found:
                say(
                    f"{complaint.kind}: {complaint.said}\n    {complaint.seed.content_type} {complaint.seed.value!r:.600}"
                )
                found[complaint.kind] = checking.minimised(complaint.seed, complaint.kind)
                say(f"    minimised: {found[complaint.kind].value!r:.2000}")
        # what ends in a way that was not seen before is worth mutating further
        for one in chance.sample(batch, 5):
            if len(seeds) - first < KEPT_MAX and one.value and len(one.value) < 4_000 and not found:
                ended = frozenset(checking.signatures(one))
                if ended not in seen:
                    seen.add(ended)
                    seeds.append(one)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            say(
                f"{counts['records']:,} records, {counts['complaints']:,} complaints, {len(seen)} ways to end"
            )
    say(
        f"{counts['records']:,} records in {time.monotonic() - began:.0f} s, seed {seed}: {len(seen)} ways to end, "
        f"{counts['complaints']:,} complaints of {len(found)} kinds"
    )
    return found


# ---- time is linear -------------------------------------------------------------------------------------

_WIDE = DecodeLimits(**{**vars(checking.LIMITS), "record_bytes_max": 2**30, "record_events_max": 2**30})
_EVENT = (
    b'{"specversion":"1.0","id":"01a191d4-ba00-7281-9973-d13836362a87","source":"s","type":"inference.usage.v1",'
    b'"subject":"c","time":"2026-10-31T11:59:58Z","data":{"request_id":"r","provider":"p","model_served":"m",'
    b'"tier_served":"t","usage_convention":"inclusive","usage":{"input_tokens":1,"output_tokens":1}%b}}'
)
#: Shapes that a reader which looks twice would take a square of the time for; each of about n bytes.
SHAPES: dict[str, Callable[[int], bytes]] = {
    "open brackets": lambda n: b"[" * n,
    "open braces": lambda n: b'{"a":' * (n // 5),
    "nested array inside an event": lambda n: _EVENT % (b',"x":' + b"[" * (n // 2) + b"]" * (n // 2)),
    "an open string of escapes": lambda n: b"[" + b'\\"' * (n // 2),
    "a string that opens and never closes": lambda n: b'["' + b'\\"' * (n // 2),
    "quotes alone": lambda n: b"[" + b'"' * n,
    "commas": lambda n: b"[" + b"," * n + b"]",
    "empty objects": lambda n: b"[" + b"{}," * (n // 3) + b"{}]",
    "white space": lambda n: b" " * n + b"x",
    "blank lines": lambda n: b"{}" + b"\n" * n,
    "lines that are no events": lambda n: b"{\n" * (n // 2),
    "one long number": lambda n: _EVENT % (b',"attempt":' + b"9" * n),
    "one long fraction": lambda n: _EVENT % (b',"x":0.' + b"3" * n),
    "one long exponent": lambda n: _EVENT % (b',"x":1e' + b"3" * n),
    "one long dropped text": lambda n: _EVENT % (b',"prompt":"' + b"x" * n + b'"'),
    "one long text": lambda n: _EVENT % (b',"seat":"' + b"\\u0000" * (n // 6) + b'"'),
    "the same key again": lambda n: _EVENT % (b',"seat":"a"' * (n // 11)),
    "unknown keys": lambda n: _EVENT % b"".join(b',"k%d":1' % number for number in range(n // 9)),
    "good events": lambda n: b"[" + b",".join([_EVENT % b""] * (n // 320)) + b"]",
    "good events, then an open quote": lambda n: b"[" + b",".join([_EVENT % b""] * (n // 320)) + b',"]',
    "lines of which one is bad": lambda n: b"\n".join([_EVENT % b""] * (n // 320) + [b"{"]),
    "events that break a law": lambda n: b"\n".join([_EVENT % b',"ran_on":"pool"'] * (n // 340)),
}
#: Four times the bytes may take this many times as long.
QUADRUPLE_RATIO_MAX = 10.0
SHAPE_BYTES = 64 * 1024


def slower_than_linear(say: Callable[[str], None], size: int = SHAPE_BYTES) -> list[str]:
    """Shapes of which n, 2n and 4n bytes take more than a generous multiple of n's time."""
    guilty = []
    for name, shape in SHAPES.items():
        times = []
        for factor in (1, 2, 4):
            record = RecordBytes(shape(size * factor), None, checking.APPENDED_AT)
            best = float("inf")
            for _ in range(2):
                began = time.process_time()
                decode([record], limits=_WIDE)
                best = min(best, time.process_time() - began)
            times.append(best)
        # below some milliseconds a ratio says nothing
        ratio = times[2] / max(times[0], 0.004)
        say(
            f"{name:40} {times[0] * 1e3:8.1f} {times[1] * 1e3:8.1f} {times[2] * 1e3:8.1f} ms   4n : n = {ratio:.1f}"
        )
        if ratio > QUADRUPLE_RATIO_MAX:
            guilty.append(name)
    return guilty


def main() -> int:
    """Fuzz, then measure; 1 when something was found, which is then in the corpus."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to mutate (default 10)")
    parser.add_argument(
        "--seed", type=int, default=None, help="repeats a run (default: another one each time)"
    )
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**9) if arguments.seed is None else arguments.seed
    print(f"fuzzing the decoder for {arguments.minutes:g} minutes, seed {seed}", flush=True)

    def say(line: str) -> None:
        print(line, flush=True)

    found = run(arguments.minutes * 60, seed, say=say)
    for kind, one in found.items():
        name = hashlib.blake2b(one.value or b"", digest_size=4).hexdigest()
        ending = next((ending for ending, said in ENDINGS.items() if said == one.content_type), ".bytes")
        path = CORPUS / f"found-{name}{ending}"
        path.write_bytes(one.value or b"")
        say(f"{kind}: kept as {path}")
    guilty = slower_than_linear(say)
    for shape in guilty:
        say(f"slower than linear: {shape}")
    return 1 if found or guilty else 0


if __name__ == "__main__":
    sys.exit(main())
