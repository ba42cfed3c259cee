"""Supervision: all workers as processes of one command; one that ends is started again, within a limit.

Nothing is decided here that the workers do not decide themselves: each may be killed at any moment. If the
supervisor is killed its workers go on, and those of a new one wait for them or share the partitions.
"""

import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

import structlog

from metering.errors import BadInput, Unavailable, WrongWorld
from metering.settings import Settings

#: The workers of which one is enough, by their command. Of `ingest` there may be any number.
SINGLE: Final = ("fold", "settle", "evaluate", "deliver", "tend")
INGEST_MAX: Final = 64
_BACKOFF_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
_KILL_SECONDS: Final = 10.0

#: The arguments with which Python runs a worker, given its command.
Arguments = Callable[[str], Sequence[str]]

log = structlog.get_logger(worker="all")


def names(ingest: int) -> list[str]:
    """What the workers are called: ingest-1, ingest-2, ..., fold, ..."""
    if not 1 <= ingest <= INGEST_MAX:
        raise BadInput(f"--ingest {ingest}: give a number of workers from 1 to {INGEST_MAX}")
    return [*(f"ingest-{number}" for number in range(1, ingest + 1)), *SINGLE]


def worker_arguments(command: str) -> list[str]:
    """A worker as a user would start it."""
    return ["-m", "metering", "work", command]


@dataclass
class _Worker:
    """One worker: its process, when it ended within the span, and the last line that it said."""

    name: str
    process: "subprocess.Popen[str] | None" = None
    reader: threading.Thread | None = None
    ended_at: deque[float] = field(default_factory=deque)
    start_at: float = 0.0
    last_line: str = ""

    @property
    def command(self) -> str:
        return self.name.partition("-")[0]


class _Signals:
    """How often somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = 0
        self._stopping = threading.Event()

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        self._stopping.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the first signal."""
        self._stopping.wait(seconds)


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    previous = {number: signal.signal(number, signals.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Supervisor:
    """Starts the workers, looks after them, stops them."""

    def __init__(self, settings: Settings, workers: Sequence[str], arguments: Arguments) -> None:
        self._settings = settings
        self._workers = [_Worker(name) for name in workers]
        self._arguments = arguments
        self._width = max(map(len, workers))
        self._writing = threading.Lock()

    def run(self) -> None:
        """Until SIGTERM or SIGINT, or until a worker ended too often: then all are stopped first.

        Raises WrongWorld naming the worker that ended too often and its last words, and Unavailable naming
        those that had to be killed.
        """
        with _signals() as signals:
            spent: WrongWorld | None = None
            try:
                while not signals.asked and spent is None:
                    spent = self._look()
                    if spent is None:
                        signals.wait(_LOOK_SECONDS)
            finally:
                killed = self._stop(signals)
        if spent is not None:
            raise spent
        if killed:
            raise Unavailable(
                f"killed, for they did not end by themselves: {', '.join(killed)}; what they had not committed "
                "they do again at the next start"
            )

    def _look(self) -> WrongWorld | None:
        """Start what is due; note what has ended. Returns the error when one ended too often."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is None:
                if now >= worker.start_at:
                    self._start(worker)
                continue
            code = worker.process.poll()
            if code is None:
                continue
            self._let_go(worker)
            span = self._settings.worker_restart_span_seconds
            worker.ended_at.append(now)
            while worker.ended_at[0] < now - span:
                worker.ended_at.popleft()
            times, most = len(worker.ended_at), self._settings.worker_restarts_max
            if times > most:
                return WrongWorld(
                    f"{worker.name} ended {times} times within {span} seconds, the last time with "
                    f"{_ending(code)}: {worker.last_line or 'it said nothing'}. All workers were stopped. Mend what "
                    "it says, then start them again"
                )
            pause = min(_BACKOFF_SECONDS * 2 ** (times - 1), self._settings.retry_backoff_seconds_max)
            worker.start_at = now + pause
            log.warning("ended", name=worker.name, ending=_ending(code), times=times, restart_seconds=pause)
        return None

    def _start(self, worker: _Worker) -> None:
        worker.process = subprocess.Popen(
            [sys.executable, *self._arguments(worker.command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        worker.reader = threading.Thread(target=self._pass_on, args=(worker, worker.process), daemon=True)
        worker.reader.start()
        log.info("started", name=worker.name, pid=worker.process.pid)

    def _pass_on(self, worker: _Worker, process: "subprocess.Popen[str]") -> None:
        """Every line that a worker says, after its name."""
        assert process.stdout is not None, "opened with a pipe"
        for line in process.stdout:
            worker.last_line = line.strip() or worker.last_line
            with self._writing:
                sys.stderr.write(f"{worker.name:<{self._width}} | {line.rstrip()}\n")
                sys.stderr.flush()

    def _let_go(self, worker: _Worker) -> None:
        """What an ended worker leaves: its last words are read, its pipe is closed."""
        assert worker.process is not None
        assert worker.reader is not None
        worker.reader.join(_KILL_SECONDS)
        assert worker.process.stdout is not None
        worker.process.stdout.close()
        worker.process = worker.reader = None

    def _stop(self, signals: _Signals) -> list[str]:
        """Ask all to end, wait, kill the rest; returns those that were killed. A second signal kills at once."""
        asked = signals.asked
        running = {
            worker.name: (worker, process)
            for worker in self._workers
            if (process := worker.process) is not None
        }
        for _, process in running.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.worker_stop_seconds_max
        while any(process.poll() is None for _, process in running.values()):
            if time.monotonic() > deadline or signals.asked > asked:
                break
            time.sleep(_LOOK_SECONDS)
        killed = [name for name, (_, process) in running.items() if process.poll() is None]
        for name in killed:
            running[name][1].kill()
        for name, (worker, process) in running.items():
            code = process.wait(_KILL_SECONDS)
            self._let_go(worker)
            log.info("stopped", name=name, ending=_ending(code))
        return killed


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def run(settings: Settings, ingest: int, arguments: Arguments = worker_arguments) -> None:
    """All workers, `ingest` of those that read the topic, until told to stop."""
    Supervisor(settings, names(ingest), arguments).run()
