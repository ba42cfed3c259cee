"""Real servers for the tests: one sandbox a session, a database and a topic of its own for each test."""

import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psycopg
import pytest

import metering.settings
from metering.settings import Settings, read_settings
from sandbox import postgres, servers

if TYPE_CHECKING:
    from kafka.admin import KafkaAdminClient

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("METERING_SANDBOX_CACHE") or CHECKOUT / "var" / "cache").absolute()
SESSIONS_MAX = 20
#: Processes of `-n auto`: each has servers of its own, about 0.8 GiB together.
PROCESSES_MAX = 4

# The settings of whoever runs the tests, and the addresses of their sandbox, are theirs alone.
for variable in [name for name in os.environ if name.upper().startswith("METERING_")]:
    del os.environ[variable]
Settings.model_config["env_file"] = None

hypothesis.settings.register_profile("metering", deadline=None)
hypothesis.settings.load_profile("metering")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means here: as many processes as cores, at least two, for much of a test is waiting."""
    return min(PROCESSES_MAX, max(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _settings_are_read_anew() -> Iterator[None]:
    """What one test puts into the environment, the next one does not see."""
    metering.settings.settings.cache_clear()
    yield
    metering.settings.settings.cache_clear()


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A sandbox folder that belongs to this session alone, also when another runs in the same checkout."""
    var = CHECKOUT / "var"
    var.mkdir(exist_ok=True)
    for number in range(1, SESSIONS_MAX + 1):
        folder = var / ("test-sandbox" if number == 1 else f"test-sandbox-{number}")
        with folder.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield folder
            return
    pytest.fail(f"{SESSIONS_MAX} test sessions run in {CHECKOUT} already")


@pytest.fixture(scope="session")
def cache_folder() -> Path:
    """Where Kafka's jars are kept between sessions (METERING_SANDBOX_CACHE, else var/cache)."""
    return CACHE


@pytest.fixture(scope="session")
def running_servers(servers_folder: Path, cache_folder: Path) -> Iterator[servers.Addresses]:
    """Postgres, Kafka and the Slack receiver, started empty; stopped when the session ends."""
    servers.down(servers_folder, erase=True)
    yield servers.up(servers_folder, cache=cache_folder)
    servers.down(servers_folder)


@pytest.fixture(scope="session", name="servers")
def servers_fixture(running_servers: servers.Addresses) -> servers.Addresses:
    """Addresses of the session's servers: database_url, kafka_bootstrap, slack_webhook_url, folder."""
    return running_servers


@pytest.fixture(scope="session")
def template_database(servers: servers.Addresses) -> str:
    """Name of a database at the newest migration, made once; every test's own is copied from it."""
    from metering.store import schema

    name = "metering_template"
    _administer(servers, f"CREATE DATABASE {name}")
    schema.upgrade(read_settings(database_url=postgres.url(servers.folder, name)))
    return name


@pytest.fixture
def database_url(servers: servers.Addresses, template_database: str) -> Iterator[str]:
    """URL of a migrated, empty database that only this test sees."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(servers, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    yield postgres.url(servers.folder, name)
    _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(servers: servers.Addresses) -> Iterator[str]:
    """URL of a database without any table that only this test sees."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(servers, f"CREATE DATABASE {name}")
    yield postgres.url(servers.folder, name)
    _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def kafka_admin(servers: servers.Addresses) -> Iterator["KafkaAdminClient"]:
    """An administrator's connection to the session's Kafka."""
    from kafka.admin import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)
    yield admin
    admin.close()


@pytest.fixture
def topic(kafka_admin: "KafkaAdminClient") -> str:
    """Name of a new topic as `metering init` makes it: 4 partitions, LogAppendTime, lz4, 8 MiB messages."""
    from kafka.admin import NewTopic

    name = f"test-{uuid.uuid4().hex}"
    configuration = {
        "message.timestamp.type": "LogAppendTime",
        "compression.type": "lz4",
        "max.message.bytes": str(8 * 1024 * 1024),
    }
    kafka_admin.create_topics([NewTopic(name, 4, 1, topic_configs=configuration)])
    return name


@pytest.fixture
def settings(servers: servers.Addresses, database_url: str, topic: str) -> Settings:
    """Settings that lead to this test's own database, topic and consumer group."""
    return read_settings(
        database_url=database_url,
        kafka_bootstrap=servers.kafka_bootstrap,
        kafka_topic=topic,
        consumer_group=f"group-{topic}",
        slack_webhook_url=servers.slack_webhook_url,
    )


@pytest.fixture
def environment(settings: Settings, servers: servers.Addresses) -> dict[str, str]:
    """The whole environment of a process started by this test, with the same settings."""
    assert settings.slack_webhook_url is not None
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")])),
        "METERING_DATABASE_URL": settings.database_url.get_secret_value(),
        "METERING_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "METERING_KAFKA_TOPIC": settings.kafka_topic,
        "METERING_CONSUMER_GROUP": settings.consumer_group,
        "METERING_SLACK_WEBHOOK_URL": settings.slack_webhook_url.get_secret_value(),
        "METERING_SANDBOX_DIR": str(servers.folder),
    }


def _administer(servers: servers.Addresses, statement: str) -> None:
    with psycopg.connect(postgres.url(servers.folder, postgres.USER), autocommit=True) as connection:
        connection.execute(statement)
