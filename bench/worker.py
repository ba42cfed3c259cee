"""One ingest worker under measurement: it joins, waits for the word, works a backlog off and tells its times.

Protocol on stdin and stdout, a line each: `hold` is answered by `holding`; `go` starts the clock; at the end
of the backlog comes one line of JSON (`Told`).
"""

import json
import select
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from bench.measures import peak_bytes
from bench.sampling import Samples, sampled
from metering.settings import settings
from workers import ingest
from workers.batching import Timings
from workers.ingest import Ingest
from workers.loop import configure_logging


@dataclass(frozen=True)
class Told:
    """`began_at` and `ended_at` are Unix times; the memory is the largest resident set of the process."""

    began_at: float
    ended_at: float
    counts: dict[str, int]
    seconds: dict[str, float]
    peak_bytes: int
    processor_seconds: float
    lines: list[tuple[str, float]] = field(default_factory=list)
    functions: list[tuple[str, float]] = field(default_factory=list)


class TimedConnection:
    """A psycopg connection whose COPY, COMMIT and other statements are timed, a few times a batch.

    `copy` is the whole of a COPY with its server's answer, `commit` leaving the outermost transaction.
    """

    def __init__(self, connection: Any, timings: Timings) -> None:
        self._connection = connection
        self._timings = timings
        self._depth = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, *arguments: Any, **options: Any) -> Any:
        """Timed as `statements`."""
        with self._timings.of("statements"):
            return self._connection.execute(*arguments, **options)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """The outermost one is timed as `commit` when it is left."""
        inner = self._connection.transaction()
        entered = inner.__enter__()
        self._depth += 1
        try:
            yield entered
        except BaseException:
            self._depth -= 1
            if not inner.__exit__(*sys.exc_info()):
                raise
        else:
            self._depth -= 1
            with self._timings.of("commit" if self._depth == 0 else "statements"):
                inner.__exit__(None, None, None)

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """A cursor whose `copy` is timed."""
        with self._connection.cursor() as cursor:
            yield _TimedCursor(cursor, self._timings)


class _TimedCursor:
    def __init__(self, cursor: Any, timings: Timings) -> None:
        self._cursor = cursor
        self._timings = timings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    @contextmanager
    def copy(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        with self._timings.of("copy"), self._cursor.copy(*arguments, **options) as copy:
            yield copy


def _asked() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _await(word: str) -> None:
    said = sys.stdin.readline().strip()
    if said != word:
        sys.exit(f"expected '{word}', not '{said}'")


def measured(worker: Ingest, *, profile: bool) -> Told:
    """Step until every partition is read to its end; the clocks stop with the last step that brought any."""
    worker.timings.seconds.clear()
    seconds: dict[str, float] = {}
    before = used = time.process_time()
    began = ended = time.time()
    sampling = cast("AbstractContextManager[Samples]", sampled() if profile else nullcontext(Samples()))
    with sampling as samples:
        while True:
            if worker.step():
                ended, used, seconds = time.time(), time.process_time(), dict(worker.timings.seconds)
            elif worker.idle():
                break
    return Told(
        began,
        ended,
        dict(worker.counts),
        seconds,
        peak_bytes(),
        used - before,
        samples.shares(samples.lines, 40),
        samples.shares(samples.functions, 40),
    )


def main(*, profile: bool) -> None:
    """Follow the protocol once."""
    configure_logging(settings())
    ingest.spare_the_collector()
    with ingest.opened(settings()) as worker:
        ledger = worker._ledger
        ledger.connection = cast("Any", TimedConnection(ledger.connection, worker.timings))
        while not _asked():
            worker.step()
        _await("hold")
        print("holding", flush=True)
        _await("go")
        print(json.dumps(asdict(measured(worker, profile=profile))), flush=True)


if __name__ == "__main__":
    main(profile="--profile" in sys.argv[1:])
