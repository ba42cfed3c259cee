"""compose.yaml and the Dockerfile, by parsing and by reading: no container engine is asked."""

import re
import tomllib
from typing import Any

import click
import pytest
import typer
from ruamel.yaml import YAML

from metering.cli import _mount
from metering.settings import Settings
from tests.conftest import CHECKOUT
from workers import supervise

COMPOSE: dict[str, Any] = YAML(typ="safe").load((CHECKOUT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
#: An image with a version, from no registry by name.
PINNED = re.compile(r"([a-z0-9-]+/)?[a-z0-9-]+:\d[\w.-]*")


@pytest.fixture(scope="module")
def command() -> click.Command:
    from metering.cli import app

    if not app.registered_groups:
        _mount()
    return typer.main.get_command(app)


def ours() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in SERVICES.items() if one["image"].startswith("metering:")}


def test_every_worker_has_its_service() -> None:
    assert set(SERVICES) == {"postgres", "kafka", "migrate", "ingest", *supervise.SINGLE}
    assert set(ours()) == set(SERVICES) - {"postgres", "kafka"}
    assert {name: one["command"] for name, one in ours().items()} == {
        "migrate": ["init"],
        **{name: ["work", name] for name in ("ingest", *supervise.SINGLE)},
    }


def test_every_command_is_one_of_ours(command: click.Command) -> None:
    commands = [one["command"] for one in ours().values()]
    commands += [one["healthcheck"]["test"][2:] for one in ours().values() if "healthcheck" in one]
    commands.append(re.findall(r'"(\w+)"', DOCKERFILE.split("\nCMD ")[1]))
    assert len(commands) == len(ours()) + 2
    for words in commands:
        found: Any = command
        for word in words:
            found = found.commands[word]
        assert not isinstance(found, click.Group), words


def test_every_variable_is_a_setting() -> None:
    known = {f"METERING_{name.upper()}" for name in Settings.model_fields}
    for name, service in ours().items():
        assert set(service["environment"]) <= known, name
        assert {"METERING_DATABASE_URL", "METERING_KAFKA_BOOTSTRAP"} <= set(service["environment"]), name
    asked = set(re.findall(r"\$\{(METERING_\w+)", (CHECKOUT / "compose.yaml").read_text()))
    assert asked <= known


def test_images_are_pinned_and_what_is_waited_for_is_there() -> None:
    for name, service in SERVICES.items():
        assert PINNED.fullmatch(service["image"]), name
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] in ("service_healthy", "service_completed_successfully")
            assert ("healthcheck" in SERVICES[other]) == (condition["condition"] == "service_healthy")
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "reachable from this machine only"
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in ours().values()} == {f"metering:{version}"}
    grace = {service["stop_grace_period"] for service in ours().values()}
    assert all(int(one.removesuffix("s")) > Settings().worker_stop_seconds_max for one in grace)


def test_the_image_is_built_from_what_is_pinned_and_does_not_run_as_root() -> None:
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    images = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(images) == 2
    assert all(PINNED.fullmatch(image) for image in images)
    last = lines[max(at for at, line in enumerate(lines) if line.startswith("FROM ")) :]
    (user,) = [line.split()[1] for line in last if line.startswith("USER ")]
    assert int(user.partition(":")[0]) > 0
    assert f"--uid {user.partition(':')[0]} " in DOCKERFILE
    assert not re.search(r"https?://|--index-url|--extra-index-url", DOCKERFILE)
    copied = [word for line in lines if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]]
    kept = {
        line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied) == kept
    assert all((CHECKOUT / name).exists() for name in copied)
    packages = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.rstrip("*") for name in packages["find"]["include"]} <= kept
