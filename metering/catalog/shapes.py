"""What every object of a catalog has: strict fields, a name over all revisions, lists in one order."""

from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from metering.catalog.fields import Instant

ANY: Final = "*"


def unsaid(default: object) -> Any:
    """A field with a default that is the same said or unsaid: no body holds it.

    So the digest of an object stays what it was when the field did not exist yet.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


def no_rows() -> Any:
    """A list that may be empty; no body holds an empty one, as with `unsaid`."""
    return Field(default_factory=list, exclude_if=lambda rows: rows == [])


def all_unless_said() -> Any:
    """A list that means all where it is left out: an empty one could mean none as well, and is refused."""
    return Field(default_factory=list, exclude_if=lambda rows: rows == [], min_length=1)


class Strict(BaseModel):
    """Fields that cannot change, and no field that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Span(Strict):
    """Half-open [effective_from, effective_until), UTC, on quarter hours; without an end: open."""

    effective_from: Instant
    effective_until: Instant | None = None


class CatalogObject(Strict):
    """One thing that the catalog names. `kind` and `object_name` identify it over all revisions."""

    kind: ClassVar[str]
    #: The YAML key that holds a list of these.
    section: ClassVar[str]
    #: The field that holds the name.
    name_field: ClassVar[str]

    @property
    def object_name(self) -> str:
        """The name under which revisions follow this object."""
        return str(getattr(self, self.name_field))

    def canonical(self) -> "CatalogObject":
        """The same object with its lists in one order: the order they were written in means nothing."""
        return self
