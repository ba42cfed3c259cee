"""The JSON Schema of a catalog file: what an editor needs to complete fields and to mark mistakes as they are typed."""

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from metering.catalog.objects import SECTIONS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """One schema for a file with any of the sections, each a list of its objects.

    It knows fields, types and which are required. What holds between fields and between objects (spans that
    overlap, names that exist, tiers that touch) only `metering catalog check` knows.
    """
    by_model, shared = models_json_schema(
        [(cls, "validation") for cls in SECTIONS.values()], ref_template="#/$defs/{model}"
    )
    return {
        "$schema": DIALECT,
        "title": "metering catalog",
        "description": "Customers, prices, costs, contracts and capacity; `metering catalog check` tells the rest.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            section: {
                "description": (cls.__doc__ or "").splitlines()[0],
                "type": ["array", "null"],
                "items": by_model[cls, "validation"],
            }
            for section, cls in SECTIONS.items()
        },
        "$defs": shared["$defs"],
    }
