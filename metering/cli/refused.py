"""`metering rejects` and `metering conflicts`: what was refused, why, and letting it in after a fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from metering.cli.listing import FormatOption, as_text, instant_option, show, show_one

if TYPE_CHECKING:
    from metering.store.refused import Chosen
    from workers.replay import Progress

rejects = typer.Typer(help="What could not be accepted, kept with its bytes.", no_args_is_help=True)
conflicts = typer.Typer(
    help="Events whose identity was accepted before with other content.", no_args_is_help=True
)

_CODE = typer.Option(None, "--code", help="Only those with this code (docs/events.md lists them).")
_SOURCE = typer.Option(None, "--source", help="Only those of this source.")
_SINCE = typer.Option(None, "--since", metavar="TIME", help="Only those kept at or after this day or time.")
_UNTIL = typer.Option(None, "--until", metavar="TIME", help="Only those kept before this day or time.")
_LIMIT = typer.Option(50, "--limit", metavar="N", min=1, help="The newest N at most.")


def mount(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.add_typer(rejects, name="rejects")
    app.add_typer(conflicts, name="conflicts")


def _chosen(code: str | None, source: str | None, since: str | None, until: str | None) -> Chosen:
    from metering.errors import BadInput
    from metering.events import RejectCode
    from metering.store.refused import Chosen

    if code is not None and code not in set(RejectCode):
        raise BadInput(f"--code '{code}' is no reject code; they are {', '.join(RejectCode)}")
    return Chosen(code, source, instant_option(since, "--since"), instant_option(until, "--until"))


def _list(table: str, chosen: Chosen, limit: int, form: str) -> None:
    from metering.settings import settings
    from metering.store.postgres import reading
    from metering.store.refused import listed
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        rows = listed(connection, table, chosen, limit)
    show(rows, form, empty=f"there are no such {table}")


@rejects.command("list")
def list_rejects(
    code: str | None = _CODE,
    source: str | None = _SOURCE,
    since: str | None = _SINCE,
    until: str | None = _UNTIL,
    limit: int = _LIMIT,
    form: str = FormatOption,
) -> None:
    """List rejects, the newest first, and when they were replayed."""
    _list("rejects", _chosen(code, source, since, until), limit, form)


@rejects.command("show")
def show_reject(number: int = typer.Argument(metavar="ID"), form: str = FormatOption) -> None:
    """Show a reject: its position, code, field and detail, and the bytes that are kept of it."""
    from metering.settings import settings
    from metering.store.postgres import reading
    from metering.store.refused import read_reject
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        facts = read_reject(connection, number)
    payload = _bytes(number)
    if form in ("auto", "table"):
        show_one(facts, form)
        for line in (payload or "").splitlines():
            typer.echo(as_text(line))
    else:
        show_one({**facts, "payload": payload}, form)


def _bytes(number: int) -> str | None:
    """The kept bytes as text, where this user may read them; else stderr says who may."""
    from metering.errors import MeteringError
    from metering.settings import settings
    from metering.store.postgres import reading
    from metering.store.refused import read_bytes
    from workers.comparing import pretty
    from workers.loop import database_errors

    try:
        with database_errors(), reading(settings(), "rejects") as connection:
            return pretty(read_bytes(connection, "rejects", number))
    except MeteringError as error:
        typer.echo(f"its bytes are not shown: {error}", err=True)
        return None


@rejects.command("replay")
def replay(
    numbers: list[int] = typer.Argument(None, metavar="ID", help="These rejects.", show_default=False),
    code: str | None = _CODE,
    source: str | None = _SOURCE,
    since: str | None = _SINCE,
    until: str | None = _UNTIL,
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would enter; change nothing."),
) -> None:
    """Let in what is acceptable now, after a fix: once, however often it is replayed. The rest stays."""
    from dataclasses import replace

    from metering.settings import settings
    from workers import replay as worker

    chosen = replace(_chosen(code, source, since, until), ids=tuple(numbers or ()))
    done = worker.replay(settings(), chosen, dry_run=dry_run, progress=_progress())
    still = done.still.total()
    if still:
        show(
            [
                {
                    "code": name,
                    "rejects": count,
                    "for_example": done.examples[name].reject_id,
                    "detail": done.examples[name].detail,
                }
                for name, count in done.still.most_common()
            ],
            "auto",
            empty="",
        )
    split = (
        f", {done.refused_events:,} events of them became rejects of their own" if done.refused_events else ""
    )
    would = "would be: " if dry_run else ""
    typer.echo(
        f"{would}{done.accepted:,} entered, {done.duplicate:,} duplicate, {done.conflict:,} conflict, "
        f"{still:,} still refused ({done.done:,} rejects are done{split})",
        err=True,
    )


def _progress() -> Progress:
    from workers.loop import show_progress

    return lambda done, of: show_progress(f"replay: {done:,} of {of:,} rejects" if done < of else "")


@conflicts.command("list")
def list_conflicts(
    source: str | None = _SOURCE,
    since: str | None = _SINCE,
    until: str | None = _UNTIL,
    limit: int = _LIMIT,
    form: str = FormatOption,
) -> None:
    """List conflicts, the newest first."""
    _list("conflicts", _chosen(None, source, since, until), limit, form)


@conflicts.command("show")
def show_conflict(number: int = typer.Argument(metavar="ID"), form: str = FormatOption) -> None:
    """Show what was accepted and what was refused, side by side, and which fields differ."""
    from metering.settings import settings
    from workers.comparing import compare

    found = compare(settings(), number)
    rows = [
        {
            "differs": "≠" if line.differs else "",
            "field": line.field,
            "accepted": as_text(line.accepted),
            "refused": as_text(line.refused),
        }
        for line in found.lines
    ]
    if form == "json":
        show_one({**found.place, "fields": rows}, form)
    else:
        show_one(found.place, form)
        show(rows, form, empty="nothing can be compared")
    for note in found.notes:
        typer.echo(note, err=True)
