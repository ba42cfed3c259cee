"""A catalog folder: every YAML file in it becomes objects, and everything wrong in it becomes a list."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from metering.catalog.documents import MISSING, Document, Fault, KeyPath, read_document
from metering.catalog.objects import SECTIONS, CatalogObjects, Entry
from metering.catalog.placed import Placed
from metering.catalog.rules import Named, check
from metering.catalog.shapes import CatalogObject
from metering.errors import BadInput


def load_folder(folder: Path) -> CatalogObjects:
    """The catalog of `folder`, or BadInput that lists every fault of every file, by file and line."""
    objects, faults = read_folder(folder)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(str(fault) for fault in faults)
        raise BadInput(f"{folder}: {count} in the catalog, nothing was changed\n{lines}")
    return objects


def read_folder(folder: Path) -> tuple[CatalogObjects, list[Fault]]:
    """Read `*.yaml` and `*.yml` below `folder` (hidden ones left out) into objects and faults.

    Objects are only complete when there are no faults. Raises BadInput if there is no folder or no file.
    """
    documents = [read_document(path, path.relative_to(folder).as_posix()) for path in _files(folder)]
    faults = [fault for document in documents for fault in document.faults]
    references = not faults
    placed: list[Placed] = []
    broken = Named()
    for document in documents:
        for found in _objects(document, broken):
            if isinstance(found, Fault):
                faults.append(found)
            else:
                placed.append(found)
    faults += check(placed, broken, references=references)
    entries = {
        (item.item.kind, item.item.object_name): Entry(item.item.canonical(), item.document.file, item.line)
        for item in reversed(placed)
    }
    if not entries and not faults:
        raise BadInput(
            f"{folder}: its files name nothing; a catalog lists at least one of {', '.join(SECTIONS)}"
        )
    return CatalogObjects(entries), sorted(faults)


def _files(folder: Path) -> list[Path]:
    if not folder.exists():
        raise BadInput(
            f"{folder}: there is no such folder; give the folder that holds the catalog's YAML files"
        )
    if not folder.is_dir():
        raise BadInput(f"{folder}: is a file; give the folder that holds it: a folder is the whole catalog")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".yaml", ".yml")
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise BadInput(f"{folder}: holds no .yaml file; `docs/catalog.md` shows what a catalog looks like")
    return files


def _objects(document: Document, broken: Named) -> Iterator[Placed | Fault]:
    content = document.content
    if content is None:
        return
    if not isinstance(content, dict):
        yield document.fault((), content, f"must be a mapping with one of these keys: {', '.join(SECTIONS)}")
        return
    for section, rows in content.items():
        if section not in SECTIONS:
            yield document.fault((section,), section, _unknown(section, list(SECTIONS), "a section"))
        elif rows is not None and not isinstance(rows, list):
            yield document.fault((section,), rows, "must be a list: start each entry with `- `")
        else:
            for index, row in enumerate(rows or []):
                yield from _object(document, (section, index), SECTIONS[section], row, broken)


def _object(
    document: Document, path: KeyPath, cls: type[CatalogObject], row: Any, broken: Named
) -> Iterator[Placed | Fault]:
    try:
        yield Placed(cls.model_validate(row), document, path)
    except ValidationError as invalid:
        if isinstance(row, dict):
            broken.add(cls, row.get(cls.name_field), row.get("provider", row.get("supplier")))
        for error in invalid.errors(include_url=False):
            place = (*path, *error["loc"])
            value = MISSING if error["type"] == "missing" else error["input"]
            yield document.fault(place, value, problem(cls, error))


def problem(cls: type[BaseModel], error: ErrorDetails) -> str:
    """What is wrong with a field, and what would be right, in words."""
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "catalog":
            return str(context["problem"])
        case "missing":
            return "is required; add it"
        case "extra_forbidden":
            fields = _model_at(cls, error["loc"]).model_fields
            known = [field.alias or name for name, field in fields.items()]
            return _unknown(str(error["loc"][-1]), known, "a field here")
        case "literal_error":
            return f"must be one of {context['expected']}"
        case "list_type":
            return "must be a list: start each entry with `- `"
        case "too_short":
            return "must not be empty"
        case "model_type" | "dict_type":
            return "must be a mapping of `field: value` lines"
        case _:
            return error["msg"]


def _unknown(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return f"is not {what}; {hint}"


def _model_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The class of the mapping that holds the last part of `path`."""
    for part in path[:-1]:
        if isinstance(part, str) and part in cls.model_fields:
            cls = next(_models(cls.model_fields[part].annotation), cls)
    return cls


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
