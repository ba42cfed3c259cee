"""The command that tells the whole story on real servers."""

import typer


def mount(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("demo")(demo)


def demo(
    events: int = typer.Option(320_000, "--events", min=1_000, help="Distinct events of the synthetic day."),
) -> None:
    """Start real servers, send a day of an AI company's traffic, and show what came of it."""
    from sandbox import demo as story
    from sandbox import servers

    story.tell(servers.default_folder(), events, story.now())
