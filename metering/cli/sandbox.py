"""`metering sandbox`: a real Postgres, a real Kafka and a stand-in for Slack on this machine."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="A throw-away Postgres, Kafka and Slack receiver on this machine.",
    no_args_is_help=True,
    add_completion=False,
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        help="Where its data is. [default: METERING_SANDBOX_DIR, else var/sandbox]",
        show_default=False,
    ),
]


@app.command()
def up(
    folder: Folder = None,
    kafka_port: Annotated[
        int | None,
        typer.Option(
            "--kafka-port", help="Port for Kafka. [default: a free one]", min=1, max=65535, show_default=False
        ),
    ] = None,
) -> None:
    """Start what does not run yet, on the data it had. The first time fetches Kafka (about 44 MB)."""
    from sandbox import servers

    where = folder or servers.default_folder()
    found = servers.up(where, _say, kafka_port=kafka_port)
    for name, value in found.variables().items():
        typer.echo(f"{name}={value}")
    if found.folder != Path("var/sandbox").absolute():
        _say('other commands find it after: eval "$(metering sandbox env)" (with the same --folder, if any)')


@app.command()
def down(
    folder: Folder = None,
    erase: Annotated[bool, typer.Option("--erase", help="Also remove all its data.")] = False,
) -> None:
    """Stop what `up` started, and nothing else. The data stays for the next `up`."""
    from sandbox import servers

    where = folder or servers.default_folder()
    stopped = servers.down(where, _say, erase=erase)
    _say(f"stopped: {', '.join(stopped)}" if stopped else f"nothing was running in {where}")
    if erase:
        _say(f"erased the data in {where}")


@app.command()
def status(folder: Folder = None) -> None:
    """Say what runs and where. Exit code 3 if not all of it runs."""
    from metering.errors import Unavailable
    from sandbox import servers

    where = folder or servers.default_folder()
    found = servers.status(where)
    colours = {
        "running": typer.colors.GREEN,
        "stopped": typer.colors.YELLOW,
        "absent": typer.colors.BRIGHT_BLACK,
    }
    typer.echo(f"{'server':<15} {'state':<8} {'pid':>8}  {'since (UTC)':<20} address")
    for server in found:
        state = typer.style(f"{server.state:<8}", fg=colours[server.state])
        since = f"{server.since:%Y-%m-%d %H:%M:%S}" if server.since else ""
        typer.echo(f"{server.name:<15} {state} {server.pid or '':>8}  {since:<20} {server.address}".rstrip())
    _say(f"its data is in {where}")
    if any(server.state != "running" for server in found):
        raise typer.Exit(Unavailable.exit_code)


@app.command()
def env(folder: Folder = None) -> None:
    """Print the settings that lead to the sandbox, for a shell: eval "$(metering sandbox env)"."""
    from sandbox import servers

    typer.echo(servers.addresses(folder or servers.default_folder()).shell(), nl=False)


@app.command()
def slack(
    folder: Folder = None,
    last: Annotated[int, typer.Option("--last", help="How many messages, the newest last.", min=1)] = 10,
) -> None:
    """Show the messages that the stand-in for Slack has received."""
    from rich.console import Console

    from sandbox import servers
    from sandbox import slack as receiver

    where = folder or servers.default_folder()
    messages = receiver.read_messages(where)
    console = Console()
    for message in messages[-last:]:
        console.print(receiver.panel(message))
    _say(f"{len(messages)} message{'' if len(messages) == 1 else 's'} in {receiver.messages_file(where)}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
