"""Quotas: how much a provider lets us use on demand in a minute, and what a token counts in that."""

import math
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import Field

from metering.catalog.documents import MISSING, Fault, KeyPath
from metering.catalog.fields import Count, Name, Provider, Weight
from metering.catalog.placed import Placed, priced_meters, spans
from metering.catalog.shapes import ANY, CatalogObject, Span, all_unless_said
from metering.catalog.spans import interval, span_columns
from metering.catalog.supply import OTHER_METERS
from metering.meters import METERS

REQUESTS = "requests"
_WEIGHED = (*METERS, REQUESTS)


class QuotaStep(Span):
    """How much may be used in a minute, by dimension, over a span."""

    per_minute: dict[str, Count] = Field(min_length=1)


class Quota(CatalogObject):
    """A provider's rate limit on what runs on demand there, overflow included: it costs nothing and is no pool."""

    kind: ClassVar[str] = "quota"
    section: ClassVar[str] = "quotas"
    name_field: ClassVar[str] = "quota"
    quota: Name
    provider: Provider
    #: left out: every model of the provider counts
    models: list[Name] = all_unless_said()
    #: left out: every region counts
    regions: list[Name] = all_unless_said()
    #: by dimension what one unit of each meter counts; `requests` may be weighed too
    weights: dict[str, dict[str, Weight]] = Field(min_length=1)
    steps: list[QuotaStep] = Field(min_length=1)

    def canonical(self) -> "Quota":
        return self.model_copy(
            update={
                "models": sorted(self.models),
                "regions": sorted(self.regions),
                "steps": sorted(self.steps, key=lambda row: row.effective_from),
            }
        )


def quota_rows(quota: Quota, ended_at: datetime | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of frames.QUOTAS and frames.QUOTA_WEIGHTS; what ended keeps its rows, cut at its end."""
    steps = [
        {
            "quota": quota.quota,
            "provider": quota.provider,
            "model": model,
            "region": region,
            "dimension": dimension,
            "per_minute": step.per_minute[dimension],
            **span_columns(span),
        }
        for step in quota.steps
        for span in interval(step.effective_from, step.effective_until, ended_at)
        for dimension in quota.weights
        for model in quota.models or [ANY]
        for region in quota.regions or [ANY]
    ]
    weights = []
    for dimension, given in quota.weights.items():
        others = given.get(OTHER_METERS)
        named = {meter: Fraction(weight) for meter, weight in given.items() if meter != OTHER_METERS}
        if "output_tokens" in named:
            named.setdefault("reasoning_tokens", named["output_tokens"])
        if others is not None:
            named = {meter: Fraction(others) for meter in METERS} | named
        denominator = math.lcm(*(weight.denominator for weight in named.values()))
        weights += [
            {
                "quota": quota.quota,
                "dimension": dimension,
                "meter": meter,
                "weight": int(weight * denominator),
                "denominator": denominator,
            }
            for meter, weight in named.items()
        ]
    return steps, weights


def quota_faults(one: Placed, quota: Quota) -> Iterator[Fault]:
    """Every fault of a quota that needs no other object to be seen."""
    yield from spans(one, ("steps",), quota.steps, lambda row: ())
    for index, step in enumerate(quota.steps):
        path: KeyPath = ("steps", index, "per_minute")
        for dimension, most in step.per_minute.items():
            if dimension not in quota.weights:
                yield one.fault(
                    (*path, dimension),
                    dimension,
                    f"has no weights; the quota weighs {', '.join(quota.weights)}",
                )
            elif most == 0:
                yield one.fault(
                    (*path, dimension), 0, "must be more than 0; end the step instead, or take the quota out"
                )
        for dimension in quota.weights:
            if dimension not in step.per_minute:
                yield one.fault(path, MISSING, f"does not say how much of {dimension} a minute has; add it")
    for dimension, weights in quota.weights.items():
        here: KeyPath = ("weights", dimension)
        for meter in weights:
            if meter not in (*_WEIGHED, OTHER_METERS):
                yield one.fault(
                    (*here, meter), meter, f"is not a meter; meters are {', '.join(METERS)} and {REQUESTS}"
                )
        lacking = [meter for meter in METERS if meter not in priced_meters(weights)]
        if lacking and OTHER_METERS not in weights and set(weights) != {REQUESTS}:
            yield one.fault(
                here,
                MISSING,
                f"has no weight for {', '.join(lacking)}; name them, or say `{OTHER_METERS}: 0`",
            )
