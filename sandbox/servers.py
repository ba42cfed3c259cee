"""The sandbox: Postgres, Kafka and a Slack receiver on this machine, brought up and taken down together."""

import errno
import fcntl
import json
import os
import shlex
import shutil
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from metering.errors import BadInput, MeteringError, Unavailable
from sandbox import kafka, postgres, processes, slack

#: A cluster, its WAL between two checkpoints, the jars, and a day of events.
DISK_FREE_BYTES_MIN = 1024**3
#: Everything that the sandbox puts in its folder; `down(erase=True)` removes this and nothing else.
CONTENTS = (
    *("postgres", "postgres.new", "postgres.conf", "postgres.log", "postgres.pid", "postgres.pid.new", "run"),
    *("kafka", "server.properties", "kafka.log", "kafka.pid", "kafka.pid.new"),
    *("slack.jsonl", "slack.log", "slack.pid", "slack.pid.new"),
    *("ports.json", "ports.json.new", "env", "env.new", "lock"),
)


@dataclass(frozen=True)
class Addresses:
    """Where the servers of one sandbox are."""

    database_url: str
    kafka_bootstrap: str
    slack_webhook_url: str
    folder: Path

    def variables(self) -> dict[str, str]:
        """The settings that lead there."""
        return {
            "METERING_DATABASE_URL": self.database_url,
            "METERING_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "METERING_SLACK_WEBHOOK_URL": self.slack_webhook_url,
        }

    def shell(self) -> str:
        """The settings as lines for a POSIX shell to evaluate."""
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.variables().items())

    def dotenv(self) -> str:
        """The settings as a dotenv file, which `metering.settings` reads."""
        return "".join(f"{name}='{value}'\n" for name, value in self.variables().items())


@dataclass(frozen=True)
class Status:
    """One server: `state` is running, stopped (its data is kept) or absent (it was never started here)."""

    name: str
    state: str
    address: str
    pid: int | None
    since: datetime | None


def default_folder() -> Path:
    """Where the sandbox is: METERING_SANDBOX_DIR, else var/sandbox below the current folder."""
    return Path(os.environ.get("METERING_SANDBOX_DIR") or "var/sandbox").absolute()


def default_cache() -> Path:
    """Where the jars are: METERING_SANDBOX_CACHE, else var/cache below the current folder."""
    return Path(os.environ.get("METERING_SANDBOX_CACHE") or "var/cache").absolute()


def up(
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
    *,
    cache: Path | None = None,
    kafka_port: int | None = None,
) -> Addresses:
    """Bring up whatever of the three servers does not run, on the data it had; returns when all answer.

    `progress` gets a line before every slow step. Kafka and the receiver keep their ports from one start to
    the next unless another program has taken them; `kafka_port` insists on one. Raises Unavailable or
    WrongWorld with what to do; what had started by then keeps running for the next `up` or `down`.
    """
    folder = folder.absolute()
    with _disk_errors(folder), _locked(folder, progress):
        database = postgres.found(folder)
        broker = processes.running(kafka.pid_file(folder))
        receiver = processes.running(slack.pid_file(folder))
        if not (database and broker and receiver):
            _check_disk(folder)
        ports = _choose_ports(folder, broker, receiver, kafka_port, progress)
        if broker is None:
            jars = kafka.ensure_jars((cache or default_cache()).absolute(), progress)
            progress(f"starting Kafka on 127.0.0.1:{ports['kafka']}")
            broker = kafka.begin(folder, jars, ports["kafka"], ports["kafka_controller"])
        if receiver is None:
            receiver = slack.begin(folder, ports["slack"])
        if database is None:
            database = postgres.begin(folder, progress)
        postgres.await_ready(folder, database)
        processes.await_ready(
            slack.NAME,
            receiver,
            lambda: kafka.answers(ports["slack"]),
            log=folder / "slack.log",
            pid_file=slack.pid_file(folder),
            seconds=slack.START_SECONDS_MAX,
        )
        kafka.await_ready(folder, broker, ports["kafka"])
        addresses = _addresses(folder, ports)
        _write(folder / "env", addresses.dotenv())
    return addresses


def down(
    folder: Path, progress: Callable[[str], None] = lambda line: None, *, erase: bool = False
) -> list[str]:
    """Stop what `up` started here and keep the data, or remove it with `erase`; returns what was stopped.

    A process that only happens to have a noted pid is left alone. Raises Unavailable if one does not end.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        return []
    with _disk_errors(folder), _locked(folder, progress):
        (folder / "env").unlink(missing_ok=True)
        stops = {slack.NAME: slack.stop, kafka.NAME: kafka.stop, postgres.NAME: postgres.stop}
        stopped = [name for name, stop in stops.items() if stop(folder)]
        if erase:
            postgres.erase(folder)
            for name in CONTENTS:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
    if erase and not any(folder.iterdir()):
        folder.rmdir()
    return stopped


def addresses(folder: Path) -> Addresses:
    """Where the running servers are. Raises Unavailable naming those that do not run."""
    folder = folder.absolute()
    missing = [server.name for server in status(folder) if server.state != "running"]
    if missing:
        raise Unavailable(f"not running in {folder}: {', '.join(missing)}; run `metering sandbox up`")
    return _addresses(folder, _read_ports(folder))


def status(folder: Path) -> list[Status]:
    """The three servers as they are now."""
    folder = folder.absolute()
    ports = _read_ports(folder)
    return [
        _status(postgres.NAME, postgres.found(folder), postgres.url(folder), folder / "postgres"),
        _status(
            kafka.NAME,
            processes.running(kafka.pid_file(folder)),
            f"127.0.0.1:{ports['kafka']}" if "kafka" in ports else "",
            folder / "kafka",
        ),
        _status(
            slack.NAME,
            processes.running(slack.pid_file(folder)),
            slack.url(ports["slack"]) if "slack" in ports else "",
            folder / "slack.log",
        ),
    ]


def _status(name: str, process: processes.Running | None, address: str, traces: Path) -> Status:
    if process is None:
        return Status(name, "stopped" if traces.exists() else "absent", "", None, None)
    return Status(name, "running", address, process.pid, datetime.fromtimestamp(process.started_at, UTC))


def _addresses(folder: Path, ports: dict[str, int]) -> Addresses:
    return Addresses(postgres.url(folder), f"127.0.0.1:{ports['kafka']}", slack.url(ports["slack"]), folder)


def _choose_ports(
    folder: Path,
    broker: processes.Running | None,
    receiver: processes.Running | None,
    kafka_port: int | None,
    progress: Callable[[str], None],
) -> dict[str, int]:
    """A port for each purpose: the running server's, else that of last time if it is free, else a new one."""
    known = _read_ports(folder)
    ports = {}
    if kafka_port is not None:
        if broker is not None and known.get("kafka") != kafka_port:
            raise BadInput(
                f"Kafka already runs on port {known.get('kafka')}, not on {kafka_port}: "
                "run `metering sandbox down` first"
            )
        if broker is None and not _is_free(kafka_port):
            raise Unavailable(
                f"port {kafka_port} on 127.0.0.1 is taken by another program: choose another one, "
                "or none at all and the sandbox finds a free one"
            )
        known["kafka"] = kafka_port
    for purpose, server in (("kafka", broker), ("kafka_controller", broker), ("slack", receiver)):
        before = known.get(purpose)
        if server is not None and not before:
            raise Unavailable(
                f"{folder / 'ports.json'} does not say which port is for {purpose}, which runs: "
                "run `metering sandbox down`, then `metering sandbox up`"
            )
        if before and (server is not None or _is_free(before)):
            ports[purpose] = before
            continue
        ports[purpose] = _free_port(ports.values())
        if before:
            progress(f"port {before} is taken by another program: {purpose} moves to {ports[purpose]}")
    if ports != _read_ports(folder):
        _write(folder / "ports.json", json.dumps(ports) + "\n")
    return ports


def _read_ports(folder: Path) -> dict[str, int]:
    try:
        noted = json.loads((folder / "ports.json").read_text())
        return {str(purpose): int(port) for purpose, port in noted.items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(taken: Collection[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < DISK_FREE_BYTES_MIN:
        raise Unavailable(
            f"only {free // 1024**2} MiB are free at {folder}, and the sandbox needs "
            f"{DISK_FREE_BYTES_MIN // 1024**2}: free some, "
            "or set METERING_SANDBOX_DIR to a folder on another disk"
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's refusals to write into errors that say what to do."""
    try:
        yield
    except MeteringError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"the disk of {error.filename or folder} is full: free some space, "
                "or set METERING_SANDBOX_DIR and METERING_SANDBOX_CACHE to folders on another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise Unavailable(
                f"cannot use {error.filename or folder}: {error.strerror}; "
                "set METERING_SANDBOX_DIR to a folder that you can write to"
            ) from error
        raise


@contextmanager
def _locked(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """One `up` or `down` in a folder at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another command that works on {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    draft.replace(path)
