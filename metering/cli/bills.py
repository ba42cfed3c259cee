"""`metering bills`: suppliers' invoices as data, corrected by revisions, never changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli.listing import FormatOption, show

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from metering.store.bills import Entered

app = typer.Typer(
    help="What suppliers invoiced, credited and trued up: docs/bills.md names the columns.",
    no_args_is_help=True,
    add_completion=False,
)
SupplierOption = Annotated[
    str | None,
    typer.Option("--supplier", help="Whose document it is, where two suppliers use the same name."),
]


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="CSV or YAML of ours, or a FOCUS file as CSV or Parquet.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the lines as they would stand.")] = False,
    correction: Annotated[
        bool, typer.Option("--correction", help="The documents were entered before: enter what differs now.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; a correction needs one.")] = "",
    zone: Annotated[
        str | None, typer.Option("--zone", help="Whose time it is where none is given: Europe/Berlin.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option("--map", help="YAML that says how names of a FOCUS file are ours.")
    ] = None,
    author: Annotated[str | None, typer.Option("--author", help="Who enters it.", show_default="you")] = None,
    form: str = FormatOption,
) -> None:
    """Enter the documents of a file, all of them or none, and show their lines.

    A document that was entered with the same content is refused, one with other content needs --correction.
    """
    from datetime import UTC, datetime

    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.positions import checked_reason, operator_name
    from metering.store.postgres import reading
    from workers import bills
    from workers.loop import database_errors

    if author is not None and not (author.strip() and author.isprintable()):
        raise BadInput("--author must be one line of printable text")
    if reason or (correction and not dry_run):
        reason = checked_reason(reason)
    if not file.name.isprintable():
        raise BadInput(f"the name of the file {file.name!r} is not printable text and is kept: rename it")
    content = _content(file)
    names = None if mapping is None else (str(mapping), _content(mapping))
    now = datetime.now(UTC)
    with database_errors(), reading(settings()) as connection:
        books = bills.read_catalog_books(connection)
        found, notes = bills.read_file(settings(), books, file.name, content, zone=_zone(zone), mapping=names)
        made = bills.plan(connection, settings(), books, found, correction=correction, now=now)
    for one in made.planned:
        typer.echo(one.caption(), err=True)
    for note in (*notes, *made.notes):
        typer.echo(note, err=True)
    rows = [row for one in made.planned for row in bills.change_rows(one.bill, one.changes)]
    show(rows, form, empty="no line differs")
    if made.refusals:
        raise BadInput("\n".join((*made.refusals, "nothing was entered")))
    if dry_run:
        typer.echo("nothing was entered: --dry-run", err=True)
        return
    numbers = bills.append(
        settings(),
        books,
        made,
        file=file.name,
        correction=correction,
        by=author or operator_name(),
        reason=reason,
        now=now,
    )
    typer.echo(f"{len(numbers):,} documents entered", err=True)


@app.command("list")
def list_bills(form: str = FormatOption) -> None:
    """List every document and revision, the newest first."""
    from metering.bills.document import shortest
    from metering.settings import settings
    from metering.store.bills import listed
    from metering.store.postgres import reading
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        rows = [
            {**row, "amount": shortest(row["amount"]), "posted_month": f"{row['posted_month']:%Y-%m}"}
            for row in listed(connection)
        ]
    show(rows, form, empty="no bill was entered; `metering bills add FILE` enters one")


@app.command("show")
def show_bill(
    document: Annotated[str, typer.Argument(help="The document, as its invoice calls it.")],
    supplier: SupplierOption = None,
    revision: Annotated[
        int | None, typer.Option("--revision", min=1, help="As it stood then.", show_default="the last")
    ] = None,
    changes: Annotated[
        bool, typer.Option("--changes", help="In place of the lines: what each revision changed.")
    ] = False,
    form: str = FormatOption,
) -> None:
    """Show a document: its revisions, its lines with what was split, and with --changes what differs."""
    from itertools import pairwise

    from metering.bills.revisions import changes as compare
    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store import bills as store
    from metering.store.postgres import reading
    from workers import bills
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        suppliers = [supplier] if supplier else store.suppliers_of(connection, document)
        if len(suppliers) > 1:
            raise BadInput(f"'{document}' is a document of {', '.join(suppliers)}; say which with --supplier")
        found = store.revisions(connection, suppliers[0], document) if suppliers else []
    if not found:
        raise BadInput(f"no document '{document}' was entered; `metering bills list` names them")
    for one in found:
        typer.echo(_about(one), err=True)
    if changes:
        rows = [
            {"revision": after.revision, **row}
            for before, after in pairwise(found)
            for row in bills.change_rows(after.bill, compare(before.bill, after.bill))
        ]
        show(rows, form, empty="there is one revision: nothing was changed")
        return
    if revision is not None and revision > len(found):
        raise BadInput(f"'{document}' has revisions 1 to {len(found)}, not {revision}")
    show(bills.line_rows(found[(revision or len(found)) - 1]), form, empty="it has no lines")


def _about(one: Entered) -> str:
    from metering.bills.document import shortest

    why = f", because: {one.reason}" if one.reason else ""
    return (
        f"{one.bill.name}, revision {one.revision}: {shortest(one.bill.total):,f} {one.bill.currency}, posted to "
        f"{one.posted_month:%Y-%m}, entered {one.added_at:%Y-%m-%d %H:%M:%S} UTC by {one.added_by} from {one.file}{why}"
    )


def _content(file: Path) -> bytes:
    from metering.bills.rows import FILE_BYTES_MAX
    from metering.errors import BadInput

    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise BadInput(f"{file} is larger than {FILE_BYTES_MAX:,} bytes; cut it by document")
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None


def _zone(name: str | None) -> ZoneInfo | None:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from metering.errors import BadInput

    try:
        return None if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput(f"--zone '{name}' is no time zone; give an IANA name such as Europe/Berlin") from None
