"""A stand-in for Slack's incoming webhooks on loopback: keeps what it is sent, and shows it readably."""

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metering.errors import BadInput
from sandbox import processes

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text

NAME = "Slack receiver"
WEBHOOK_PATH = "/services/T0SANDBOX/B0SANDBOX/sandbox"
BODY_BYTES_MAX = 1024 * 1024
START_SECONDS_MAX = 20.0
STOP_SIGNALS = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

#: What Slack's mrkdwn marks: <url|label>, <url>, *bold*, _italic_, `code`.
MARKS = re.compile(
    r"<(?P<url>[^>|\s]+)(?:\|(?P<label>[^>]*))?>"
    r"|(?<!\w)\*(?P<bold>\S(?:[^*\n]*\S)?)\*(?!\w)|(?<!\w)_(?P<italic>\S(?:[^_\n]*\S)?)_(?!\w)|`(?P<code>[^`]+)`"
)
STYLES = {"bold": "bold", "italic": "italic", "code": "cyan"}


def pid_file(folder: Path) -> Path:
    """Which process is the receiver."""
    return folder / "slack.pid"


def messages_file(folder: Path) -> Path:
    """One JSON object a line: the body as it was posted, and `received_at` (UTC)."""
    return folder / "slack.jsonl"


def url(port: int) -> str:
    """The webhook's address."""
    return f"http://127.0.0.1:{port}{WEBHOOK_PATH}"


def begin(folder: Path, port: int) -> processes.Running:
    """Start the receiver; returns before it is ready."""
    roots = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return processes.start(
        pid_file(folder),
        [sys.executable, "-P", "-m", "sandbox.slack", str(messages_file(folder)), "--port", str(port)],
        log=folder / "slack.log",
        folder=folder,
        environment={**os.environ, "PYTHONPATH": os.pathsep.join(root for root in roots if root)},
    )


def stop(folder: Path) -> bool:
    """Stop this folder's receiver, if it runs. Returns whether it did."""
    return processes.stop(NAME, pid_file(folder), STOP_SIGNALS)


def read_messages(folder: Path) -> list[dict[str, Any]]:
    """What was received, oldest first. Raises BadInput naming the line that is not a message."""
    messages = []
    try:
        lines = messages_file(folder).read_text().splitlines()
    except FileNotFoundError:
        return []
    for number, line in enumerate(lines, start=1):
        try:
            messages.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise BadInput(
                f"{messages_file(folder)} line {number} is not a message ({error}): remove that line"
            ) from None
    return messages


def panel(message: Mapping[str, Any]) -> "Panel":
    """One message as a box for the terminal: header as title, sections, fields in two columns, context."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    blocks = [block for block in message.get("blocks") or [] if isinstance(block, dict)]
    header = next((block for block in blocks if block.get("type") == "header"), None)
    title = text_of(header.get("text")) if header else Text("Slack message")
    title.stylize("bold")
    body = list(_rows([block for block in blocks if block is not header])) or [text_of(message.get("text"))]
    return Panel(
        Group(*body),
        title=title,
        title_align="left",
        subtitle=Text(f"received {message.get('received_at', 'at an unknown time')}", style="dim"),
        subtitle_align="right",
        width=100,
    )


def text_of(text: object) -> "Text":
    """A Block Kit text object or a bare string: mrkdwn's marks become styles, its entities characters."""
    from rich.text import Text

    if isinstance(text, dict):
        content, plain = str(text.get("text", "")), text.get("type") == "plain_text"
    else:
        content, plain = str(text or ""), False
    styled, end = Text(), 0
    for match in () if plain else MARKS.finditer(content):
        styled.append(_characters(content[end : match.start()]))
        if match["url"]:
            styled.append(_characters(match["label"] or match["url"]), style="underline")
            if match["label"]:
                styled.append(f" ({_characters(match['url'])})", style="dim")
        else:
            kind = str(match.lastgroup)
            styled.append(_characters(match[kind]), style=STYLES[kind])
        end = match.end()
    styled.append(_characters(content[end:]))
    return styled


def _characters(text: str) -> str:
    from rich.emoji import Emoji

    text = Emoji.replace(text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _rows(blocks: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    for block in blocks:
        kind = block.get("type")
        if kind == "header":
            yield Text.assemble(text_of(block.get("text")), style="bold")
        elif kind == "section":
            if block.get("text"):
                yield text_of(block["text"])
            fields = [text_of(field) for field in block.get("fields") or []]
            if fields:
                table = Table.grid(padding=(0, 3))
                for first in range(0, len(fields), 2):
                    table.add_row(*fields[first : first + 2])
                yield table
        elif kind == "context":
            line = Text("  ").join(text_of(element) for element in block.get("elements") or [])
            line.stylize("dim")
            yield line
        elif kind == "actions":
            for element in block.get("elements") or []:
                yield Text.assemble(
                    "[", text_of(element.get("text")), "] ", (str(element.get("url", "")), "dim")
                )
        elif kind == "divider":
            yield Rule(style="dim")
        else:
            yield Text(f"(a block of type {kind})", style="dim")


class _Receiver(BaseHTTPRequestHandler):
    """Answers as Slack does: `ok`; 400 `invalid_payload` or `no_text`; 404 `no_service`; 413 too large."""

    messages: Path
    writing = threading.Lock()
    timeout = 10

    def do_POST(self) -> None:
        """Keep one message."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self._answer(413, "payload_too_large")
            return
        body = self.rfile.read(int(length))
        if not self.path.startswith("/services/"):
            self._answer(404, "no_service")
            return
        try:
            message = json.loads(body)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._answer(400, "invalid_payload")
        elif not message.get("text") and not message.get("blocks"):
            self._answer(400, "no_text")
        else:
            received_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            try:
                with self.writing, self.messages.open("a") as lines:
                    lines.write(json.dumps({"received_at": received_at, **message}) + "\n")
            except OSError as error:
                self.log_error("message not kept: %s", error)
                self._answer(500, "not_kept")
            else:
                self._answer(200, "ok")

    def do_GET(self) -> None:
        """Say what this is to somebody who opens it in a browser."""
        self._answer(405, "post a message here; `metering sandbox slack` shows what was received")

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("messages", type=Path)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(arguments)
    _Receiver.messages = given.messages
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    with ThreadingHTTPServer(("127.0.0.1", given.port), _Receiver) as server:
        server.serve_forever(poll_interval=0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
