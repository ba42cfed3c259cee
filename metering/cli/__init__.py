"""The `metering` command: one module per group of commands; heavy imports happen inside the commands."""

import errno
import sys
from collections.abc import Sequence

import typer

from metering import __version__
from metering.errors import MeteringError, WrongWorld

#: What the system says of a full disk, a used-up quota and a file that may not grow.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="metering",
    help="Which customers are served at a profit, and how well contracted compute is used.",
    epilog="Start with `metering demo`. Settings come from METERING_* variables: `metering settings` lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"metering {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Usage metering: Kafka events to cost, margin and utilization per customer."""


def _mount() -> None:
    from metering.cli import (
        adjustments,
        archive,
        bills,
        catalog,
        closing,
        demo,
        events,
        explain,
        findings,
        knowledge,
        ledger,
        periods,
        planning,
        probe,
        rebuild,
        refused,
        reports,
        rerating,
        sandbox,
        standing,
        work,
    )

    ledger.mount(app)
    app.add_typer(catalog.app, name="catalog")
    events.mount(app)
    app.add_typer(work.app, name="work")
    app.add_typer(archive.app, name="archive")
    app.add_typer(adjustments.app, name="adjustments")
    app.add_typer(bills.app, name="bills")
    app.add_typer(periods.app, name="period")
    app.add_typer(findings.app, name="findings")
    app.add_typer(probe.app, name="probe")
    reports.mount(app)
    explain.mount(app)
    closing.mount(app)
    standing.mount(reports.app)
    knowledge.mount(app)
    planning.mount(app)
    rerating.mount(app)
    app.add_typer(rebuild.app, name="rebuild")
    refused.mount(app)
    app.add_typer(sandbox.app, name="sandbox")
    demo.mount(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error of the house becomes its message on stderr and its exit code."""
    _mount()
    try:
        app(args=arguments, prog_name="metering", standalone_mode=True)
    except MeteringError as error:
        typer.echo(f"metering: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # the reader of a pipe has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        typer.echo(f"metering: cannot write: {error.strerror}; make room and run it again", err=True)
        sys.exit(WrongWorld.exit_code)
