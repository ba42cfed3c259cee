"""`metering rebuild`: derived tables made again from the ledger."""

import typer

app = typer.Typer(
    help="Make derived tables again from the ledger.", no_args_is_help=True, add_completion=False
)


@app.callback()
def _root() -> None:
    """Make derived tables again from the ledger."""


@app.command("rollups")
def rollups(
    dry_run: bool = typer.Option(False, "--dry-run", help="Only compare. Exit code 1 at a difference."),
) -> None:
    """Fold the ledger again from zero, say where the rollups differ, and put them right. Safe beside a fold."""
    from metering.settings import settings
    from workers.loop import show_progress
    from workers.rebuild import rebuild

    done = rebuild(settings(), dry_run=dry_run, progress=show_progress)
    show_progress("")
    for each in done.differences:
        state = f"{each.differing:,} differ" if each.differing else "all as they are kept"
        typer.echo(f"{each.rollup}: {each.rows:,} rows, {state}")
        if each.first is not None:
            typer.echo(f"     first difference: {each.first}")
    if done.swapped:
        typer.echo("the rollups were put right", err=True)
    elif any(each.differing for each in done.differences):
        typer.echo("nothing was changed; without --dry-run they are put right", err=True)
        raise typer.Exit(1)
