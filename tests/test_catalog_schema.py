"""The JSON Schema of catalog files: the examples are valid by it, what an editor should mark is not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from metering.catalog.objects import SECTIONS
from metering.catalog.schema import json_schema
from metering.cli.catalog import app
from tests.test_catalog import EXAMPLES, SOUND

SCHEMA = json_schema()
#: The keywords that `wrong` understands; the schema uses no others but those that only describe.
CHECKED = {
    *(
        "$ref",
        "$defs",
        "anyOf",
        "type",
        "enum",
        "const",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
    ),
    *("minItems", "minProperties", "items", "properties", "required", "additionalProperties"),
}
DESCRIBING = {"$schema", "title", "description", "default"}
KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}


def keywords(schema: dict[str, Any]) -> set[str]:
    found = set(schema)
    for inner in [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]:
        found |= keywords(inner)
    for inner in [schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", [])]:
        found |= keywords(inner) if isinstance(inner, dict) else set()
    return found


def wrong(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """What of JSON Schema the catalog's schema uses, checked: a line for each thing that is wrong."""
    if "$ref" in schema:
        return wrong(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], path)
    if "anyOf" in schema:
        tried = [wrong(value, one, path) for one in schema["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    kinds = schema.get("type", list(KINDS))
    allowed = tuple(KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        return [f"{path}: {value!r} is no {kinds}"]
    if value not in schema.get("enum", [schema.get("const", value)]):
        return [f"{path}: {value!r} is not one of {schema.get('enum', schema.get('const'))}"]
    found = []
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            found.append(f"{path}: its length")
        if not re.search(schema.get("pattern", ""), value):
            found.append(f"{path}: {value!r} does not match")
    if isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        found.append(f"{path}: {value} is too small or too large")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            found.append(f"{path}: is empty")
        for index, row in enumerate(value):
            found += wrong(row, schema.get("items", {}), f"{path}[{index}]")
    if isinstance(value, dict):
        if len(value) < schema.get("minProperties", 0):
            found.append(f"{path}: is empty")
        found += [f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            known = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            if known is False:
                found.append(f"{path}: {name} is not known")
            elif known is not True:
                found += wrong(inner, known, f"{path}.{name}")
    return found


def read(text: str) -> Any:
    """YAML as an editor reads it: dates are text."""
    yaml = YAML(typ="safe", pure=True)
    yaml.constructor.add_constructor(
        "tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node)
    )
    return yaml.load(text)


def test_every_example_is_valid_by_the_schema() -> None:
    assert keywords(SCHEMA) <= CHECKED | DESCRIBING
    files = sorted(EXAMPLES.glob("catalog/*.yaml")) + sorted(EXAMPLES.glob("*/**/catalog.yaml"))
    assert len(files) > 10
    for path in files:
        assert wrong(read(path.read_text()), SCHEMA) == [], path


@pytest.mark.parametrize(
    ("old", "new", "marked"),
    [
        ("name: Acme\n", "nmae: Acme\n", ".customers[0]: nmae is not known"),
        ("kind: paying", "kind: payng", ".customers[0].dated[0].kind: 'payng' is not one of"),
        ("currency: USD\n    steps", "currency: dollars\n    steps", "'dollars' does not match"),
        ("units: 10", "units: ten", "'ten' is no"),
        ("effective_from: 2026-01-01, per", "effective_from: soon, per", "'soon' does not match"),
        ("customer: acme, price_book", "price_book", ".contracts[0]: customer is missing"),
        ("sources:", "soruces:", ": soruces is not known"),
    ],
)
def test_what_an_editor_should_mark_is_not_valid(old: str, new: str, marked: str) -> None:
    assert wrong(read(SOUND), SCHEMA) == []
    assert old in SOUND
    assert any(marked in line for line in wrong(read(SOUND.replace(old, new)), SCHEMA))


def test_the_command_prints_it_with_every_section_and_what_it_is(tmp_path: Path) -> None:
    printed = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    assert printed == SCHEMA
    assert set(printed["properties"]) == set(SECTIONS)
    assert printed["properties"]["contracts"]["description"] == "What was agreed with a customer."
    assert all("description" in one for one in printed["$defs"].values())
