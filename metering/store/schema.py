"""The version of the schema: bring it up to date, and refuse to work on another one."""

from functools import lru_cache
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util.exc import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from metering.errors import WrongWorld
from metering.settings import Settings


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.set_main_option("path_separator", "os")
    return config


@lru_cache(maxsize=1)
def head() -> str:
    """The schema version that this program is made for."""
    current = ScriptDirectory.from_config(_config()).get_current_head()
    assert current is not None
    return current


def upgrade(settings: Settings) -> None:
    """Migrate the database of `settings` to `head()`. Safe to run again, and by two at once.

    Raises WrongWorld for a database that a newer program has migrated.
    """
    config = _config()
    config.attributes["settings"] = settings
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        raise WrongWorld(
            f"the database is at migration {error.__cause__.argument}, newer than this program knows ({head()}); "
            "upgrade the program"
        ) from None


def version(connection: Connection) -> str | None:
    """The schema version of the database; None when it has none."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    found: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


def check_version(connection: Connection) -> None:
    """Raise WrongWorld unless the database is at the version that this program is made for."""
    try:
        found = version(connection)
    except ProgrammingError:
        found = None
    if found == head():
        return
    if found is None:
        raise WrongWorld("the database holds no metering tables; run `metering init`")
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found in known:
        raise WrongWorld(
            f"the database is at migration {found}, this program needs {head()}; run `metering init`"
        )
    raise WrongWorld(
        f"the database is at migration {found}, newer than this program knows ({head()}); upgrade the program"
    )
