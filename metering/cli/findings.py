"""`metering findings`: what is wrong in what was accepted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from metering.cli.listing import FormatOption, show, show_one

app = typer.Typer(
    help="What is wrong in what was accepted: voids without effect, requests billed twice.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command("list")
def list_findings(
    kind: Annotated[str | None, typer.Option("--kind", help="Only those of this kind.")] = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Only those of this customer.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that were resolved, too.")] = False,
    form: str = FormatOption,
) -> None:
    """List the findings that are open, the oldest first."""
    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.findings import KINDS, entries
    from metering.store.postgres import reading
    from workers.loop import database_errors

    if kind is not None and kind not in KINDS:
        raise BadInput(f"--kind '{kind}' is no kind of finding; they are {', '.join(KINDS)}")
    with database_errors(), reading(settings()) as connection:
        found = entries(connection, kind=kind, customer=customer, resolved=everything)
    rows = [
        {
            "kind": one.kind,
            "subject": one.subject,
            "state": one.state,
            "found_at": one.found_at,
            "day": one.day,
            "customer": one.customer,
            "events": ", ".join(one.event_ids()),
        }
        for one in found
    ]
    show(rows, form, empty="there are no such findings")


@app.command("show")
def show_finding(
    kind: Annotated[str, typer.Argument(help="As `metering findings list` names it.")],
    subject: Annotated[str, typer.Argument(help="As `metering findings list` names it.")],
    form: str = FormatOption,
) -> None:
    """Show one finding: what it says, which events, and when it was opened and resolved."""
    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.findings import KINDS, history
    from metering.store.postgres import reading
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        found = history(connection, kind, subject)
    if not found:
        raise BadInput(f"there is no finding {kind} {subject}; `metering findings list --all` names them")
    last = found[-1]
    facts: dict[str, Any] = {
        "kind": kind,
        "says": KINDS.get(kind, ""),
        "subject": subject,
        "state": last.state,
    }
    facts |= {name: getattr(last, name) for name in ("day", "customer")}
    facts |= {f"{entry.state}_{entry.sequence}": entry.found_at for entry in found}
    details = last.details if form == "json" else dict(_lines(last.details))
    show_one({**facts, **details}, form)


def _lines(details: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested details, a value a line, named by its path."""
    if isinstance(details, dict):
        return [line for key, value in details.items() for line in _lines(value, f"{name} {key}".strip())]
    if isinstance(details, list):
        return [line for at, value in enumerate(details, 1) for line in _lines(value, f"{name} {at}")]
    return [] if details is None else [(name, str(details))]
