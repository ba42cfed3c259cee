"""The table of faults in docs/reliability.md names tests that there are, and misses no row."""

import ast
import re
from functools import cache

from tests.conftest import CHECKOUT


@cache
def defined_in(file: str) -> frozenset[str]:
    """The names of the tests in a file below tests/."""
    tree = ast.parse((CHECKOUT / "tests" / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_fault_of_the_table_is_injected_by_a_test_that_there_is() -> None:
    text = (CHECKOUT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 37))
    for number, tests in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named, f"fault {number} names no test"
        missing = [f"{file}::{name}" for file, name in named if name not in defined_in(file)]
        assert missing == [], f"fault {number} names tests that are not there"
