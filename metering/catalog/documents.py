"""Reading YAML: plain values with the line of every key, numbers as exact decimals, faults as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from metering.catalog.fields import PLAIN_NUMBER

FILE_BYTES_MAX: Final = 32 * 1024 * 1024
VALUE_CHARACTERS_MAX: Final = 60

KeyPath = tuple[str | int, ...]
MISSING: Final = object()


@dataclass(frozen=True, order=True)
class Fault:
    """One thing wrong in a catalog folder: where, which field, the value, and what to do about it."""

    file: str
    line: int
    field: str
    value: str
    problem: str

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.line}" if self.line else self.file, self.field, self.value]
        return ": ".join([*(part for part in parts if part), self.problem])


def shown(value: object) -> str:
    """A value as an error shows it: short, and nothing that would break the line."""
    if value is MISSING:
        return "(missing)"
    if value is None:
        return "(empty)"
    if isinstance(value, Mapping):
        return "(a mapping)"
    if isinstance(value, list | tuple):
        return "(a list)"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return repr(text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "...")


def shown_path(path: KeyPath) -> str:
    """A path as a person reads it: contracts[3].fees[0].currency."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


@dataclass(frozen=True)
class Document:
    """The content of one file (None if it cannot be used), the line of each path in it, and its faults."""

    file: str
    content: Any = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def line(self, path: KeyPath) -> int:
        """The line of a path, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def fault(self, path: KeyPath, value: object, problem: str) -> Fault:
        """A fault at a path of this file."""
        return Fault(self.file, self.line(path), shown_path(path), shown(value), problem)


class _Reading:
    """One walk over the nodes of a file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.faults: list[Fault] = []
        self._seen: set[int] = set()

    def fault(self, node: Node, path: KeyPath, value: object, problem: str) -> None:
        self.faults.append(
            Fault(self.file, node.start_mark.line + 1, shown_path(path), shown(value), problem)
        )

    def value(self, node: Node, path: KeyPath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self._seen:
            self.fault(node, path, None, "is an alias (*name); aliases are not supported: write it out")
            return None
        self._seen.add(id(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.fault(key_node, path, None, "has a key that is not text; write `field: value`")
                continue
            key = str(key_node.value)
            place = (*path, key)
            if key in content:
                first = self.lines[place]
                self.fault(key_node, place, key, f"is given twice (first on line {first}); keep one of them")
                continue
            if key == "<<":
                self.fault(key_node, path, key, "merge keys are not supported: write the fields out")
                continue
            self.lines[place] = key_node.start_mark.line + 1
            content[key] = self.value(value_node, place)
        return content

    def _scalar(self, node: ScalarNode, path: KeyPath) -> object:
        text = str(node.value)
        kind = str(node.tag).rpartition(":")[2]
        if str(node.tag).startswith("!"):
            self.fault(node, path, str(node.tag), "tags are not supported: write a plain value")
            return None
        if node.style is not None:
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in ("int", "float") and PLAIN_NUMBER.fullmatch(text):
            return Decimal(text)
        return text


def read_document(path: Path, file: str) -> Document:
    """Read one YAML file. Whatever is wrong with it is a fault of the result; only the disk can raise."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _unreadable(file, 0, f"cannot be read ({error.strerror}); check the file and its permissions")
    return read_text(file, content)


def _unreadable(file: str, line: int, problem: str) -> Document:
    return Document(file, faults=(Fault(file, line, "", "", problem),))


def read_text(file: str, content: bytes) -> Document:
    """Read the YAML of a file. Whatever is wrong with it is a fault of the result."""

    def unreadable(line: int, problem: str) -> Document:
        return _unreadable(file, line, problem)

    if len(content) > FILE_BYTES_MAX:
        return unreadable(0, f"is larger than {FILE_BYTES_MAX} bytes; split it into several files")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return unreadable(line, f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8")
    reading = _Reading(file)
    try:
        # Nodes rather than values: they keep the text of every number and the line of everything.
        node = YAML(typ="safe", pure=True).compose(text)
        value = None if node is None else reading.value(node, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context else ""
        return unreadable(mark.line + 1 if mark else 1, f"is not YAML: {error.problem}{context}")
    except YAMLError as error:
        first = (str(error).splitlines() or ["cannot be parsed"])[0]
        return unreadable(1, f"is not YAML: {first}; remove control characters")
    except RecursionError:
        return unreadable(1, "is nested too deeply; a catalog needs no more than eight levels")
    return Document(file, value, reading.lines, tuple(reading.faults))
