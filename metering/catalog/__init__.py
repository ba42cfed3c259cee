"""The catalog: what a folder of YAML files says about customers, prices, costs and capacity, checked."""

from metering.catalog.books import books
from metering.catalog.documents import Fault
from metering.catalog.files import load_folder, read_folder
from metering.catalog.objects import CatalogObjects, Entry
from metering.catalog.plan import Change, Plan, plan, result

__all__ = [
    "CatalogObjects",
    "Change",
    "Entry",
    "Fault",
    "Plan",
    "books",
    "load_folder",
    "plan",
    "read_folder",
    "result",
]
