"""Processes of the benchmarks: started with the settings of a database, spoken to a line at a time."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Final

import psutil

from bench.measures import CHECKOUT
from metering.errors import Unavailable
from metering.settings import Settings

Child = subprocess.Popen[str]

#: Between two looks at the memory of processes.
_LOOK_SECONDS: Final = 0.25


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that works with the same database and topic."""
    return {
        **os.environ,
        "METERING_DATABASE_URL": settings.database_url.get_secret_value(),
        "METERING_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "METERING_KAFKA_TOPIC": settings.kafka_topic,
        "METERING_CONSUMER_GROUP": settings.consumer_group,
        "METERING_LOG_LEVEL": "warning",
    }


@contextmanager
def started(settings: Settings, commands: Sequence[Sequence[str]]) -> Iterator[list[Child]]:
    """A process for each list of Python's arguments; killed where something went wrong, else waited for."""
    children: list[Child] = []
    try:
        for command in commands:
            children.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=CHECKOUT,
                    env=environment(settings),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        yield children
    finally:
        failed = sys.exc_info()[0] is not None
        for child in children:
            with child:
                # one that has told what it took is leaving; any other is of no more use
                if failed and child.poll() is None:
                    child.kill()


def tell(child: Child, line: str) -> None:
    """Write a line to its stdin."""
    _pipe(child.stdin).write(f"{line}\n")
    _pipe(child.stdin).flush()


def hear(child: Child) -> str:
    """The next line of its stdout. Raises Unavailable when it has ended."""
    line = _pipe(child.stdout).readline()
    if not line:
        raise Unavailable(f"a process ended with exit code {child.wait()}; its messages are above")
    return line


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "opened with pipes"
    return stream


@dataclass
class Resident:
    """Bytes that processes held, by the seconds since the watch began: one list a look, in their order."""

    looks: list[tuple[float, list[int]]] = field(default_factory=list)

    def peaks(self) -> list[int]:
        """The most that each held at any look."""
        return [max(column) for column in zip(*(held for _, held in self.looks), strict=True)]


@contextmanager
def watched(children: Sequence[Child]) -> Iterator[Resident]:
    """Look at the resident memory of processes every quarter of a second, in a thread."""
    resident, stopping = Resident(), threading.Event()
    processes = [psutil.Process(child.pid) for child in children]

    def look(after: float) -> None:
        try:
            resident.looks.append((after, [process.memory_info().rss for process in processes]))
        except psutil.NoSuchProcess:
            stopping.set()

    def watch() -> None:
        after = 0.0
        look(after)
        while not stopping.wait(_LOOK_SECONDS):
            after += _LOOK_SECONDS
            look(after)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield resident
    finally:
        stopping.set()
        thread.join()
