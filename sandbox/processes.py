"""Processes that outlive the command which started them, and the pid files that know them again.

A pid alone names nothing: the system hands it out again. A pid file therefore also holds when the process
started and its command line, and a process that differs in either is a stranger that is never signalled.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metering.errors import Unavailable, WrongWorld

#: The kernel's clock and ours may be corrected between two looks at one process.
START_TOLERANCE_SECONDS = 2.0
LOG_LINES_SHOWN = 15


@dataclass(frozen=True)
class Running:
    """A process as its pid file knows it; `started_at` in seconds since 1970, UTC."""

    pid: int
    started_at: float
    command: tuple[str, ...]


@dataclass(frozen=True)
class Account:
    """The user and group that a server runs as, where it must not run as root."""

    uid: int
    gid: int


def look(pid: int) -> Running | None:
    """The process that has this pid now, or None if there is none, it is a zombie, or we may not see it."""
    psutil = _psutil()
    _reap(pid)
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Running(pid, process.create_time(), tuple(process.cmdline()))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def running(pid_file: Path) -> Running | None:
    """The process that this pid file names, if it still is that process; else None."""
    try:
        noted = json.loads(pid_file.read_text())
        known = Running(int(noted["pid"]), float(noted["started_at"]), tuple(noted["command"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    found = look(known.pid)
    if found is None or found.command[1:] != known.command[1:]:  # a launcher may rewrite the program's path
        return None
    return known if abs(found.started_at - known.started_at) <= START_TOLERANCE_SECONDS else None


def note(pid_file: Path, process: Running) -> None:
    """Write the pid file, whole or not at all."""
    draft = pid_file.with_suffix(".pid.new")
    draft.write_text(json.dumps(asdict(process)) + "\n")
    draft.replace(pid_file)


def start(
    pid_file: Path,
    command: Sequence[str],
    *,
    log: Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> Running:
    """Start a server in a session of its own, in `folder`, its output in `log` (begun anew); note its pid.

    It survives the end and the Ctrl-C of its parent. Raises WrongWorld if the program cannot be executed.
    If this process dies between start and note, the server runs unnoted: Postgres is found again by its own
    postmaster.pid, Kafka refuses a second start on its data and says so.
    """
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=None if environment is None else dict(environment),
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as error:
            raise WrongWorld(f"{command[0]} cannot be executed on this machine: {error}") from error
    child.returncode = 0  # else Python warns that it still runs, which is what it is for
    found = look(child.pid)
    if found is None:
        raise Unavailable(f"{Path(command[0]).name} ended at once; its log, {log}:\n{last_lines(log)}")
    started = Running(child.pid, found.started_at, tuple(command))  # its own command line may not show yet
    try:
        note(pid_file, started)
    except OSError:
        os.kill(child.pid, signal.SIGKILL)
        raise
    return started


def await_ready(
    name: str, process: Running, ready: Callable[[], bool], *, log: Path, pid_file: Path, seconds: float
) -> None:
    """Wait until `ready()`. Raises Unavailable with the log's end if the process ends or time is up."""
    deadline = time.monotonic() + seconds
    while not ready():
        if look(process.pid) is None:
            pid_file.unlink(missing_ok=True)
            raise Unavailable(f"{name} did not come up; the last lines of {log}:\n{last_lines(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{name} (pid {process.pid}) is not ready after {seconds:g} s; the last lines of {log}:\n"
                f"{last_lines(log)}\n"
                "Try again if the machine is busy, or `metering sandbox down` to start afresh."
            )
        time.sleep(0.05)


def stop(name: str, pid_file: Path, signals: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Send each signal and wait its seconds, until the process that the pid file names has ended.

    Returns whether there was such a process. A stranger with that pid is left alone. The pid file is gone
    afterwards. Raises Unavailable if the process outlives the last signal.
    """
    process = running(pid_file)
    if process is None:
        pid_file.unlink(missing_ok=True)
        return False
    for which, seconds in signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, which)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if _has_ended(process):
                pid_file.unlink(missing_ok=True)
                return True
            time.sleep(0.02)
    raise Unavailable(
        f"{name} (pid {process.pid}) does not end, not even by {signals[-1][0].name}: look at it by hand"
    )


def last_lines(log: Path, lines: int = LOG_LINES_SHOWN) -> str:
    """The end of a log, indented, for an error message."""
    try:
        text = log.read_text(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        text = []
    return "\n".join(f"    {line}" for line in text) or "    (empty)"


def _has_ended(process: Running) -> bool:
    """Whether all its threads are gone, and with them its files, locks and ports."""
    psutil = _psutil()
    _reap(process.pid)
    try:
        found = psutil.Process(process.pid)
        if abs(found.create_time() - process.started_at) > START_TOLERANCE_SECONDS:
            return True
        return bool(found.status() == psutil.STATUS_ZOMBIE and found.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def _reap(pid: int) -> None:
    """If it is a child of this process and has ended, take its exit code: else it stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise extras_missing("psutil") from error
    return psutil


def extras_missing(module: str) -> WrongWorld:
    """The error for a module of the `sandbox` extra that is not installed."""
    return WrongWorld(
        f"the sandbox needs the Python module `{module}`, which is not installed: "
        "run `make setup` in a checkout, or pip install 'metering[sandbox]'"
    )
