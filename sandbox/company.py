"""The example company as its traffic sees it: customers, products, pools; names as in examples/catalog."""

from dataclasses import dataclass
from typing import Final

import numpy as np

#: Accelerator milliseconds that block-a gives in a minute, and the share of it that a mean minute asks for.
BLOCK_A_UNITS: Final = 48
BLOCK_A_MINUTE: Final = BLOCK_A_UNITS * 60_000
BLOCK_A_MEAN: Final = 0.72
#: Burn units that ptu-west gives in a minute: input tokens, cache reads weigh 0.1, output 4.
PTU_WEST_UNITS: Final = 40
PTU_WEST_MINUTE: Final = PTU_WEST_UNITS * 3_400
LARGE, SMALL, CODE, PREVIEW, ATLAS = range(5)
PRODUCTS: Final = ("lumen-large", "lumen-small", "lumen-code", "lumen-preview", "atlas-mini")
#: Mean accelerator milliseconds per 1,000 tokens of input and of output, before scaling to the block.
INPUT_MS: Final = np.array([40.0, 12.0, 30.0, 40.0, 0.0])
OUTPUT_MS: Final = np.array([900.0, 220.0, 600.0, 800.0, 0.0])


@dataclass(frozen=True)
class Customer:
    """How one customer uses the company: share of requests, mix of products, size of a request."""

    name: str
    share: float
    mix: tuple[float, ...]  # of PRODUCTS
    input_tokens: int
    output_tokens: int
    cached: float  # share of the input read from the cache
    batch: float = 0.0
    ptu: float = 0.0  # share of its lumen-large requests meant for ptu-west
    seats: int = 0
    projects: tuple[str, ...] = ()


CUSTOMERS: Final = (
    Customer(
        "acme-robotics", 14, (5, 3, 2, 0.2, 0), 3_200, 420, 0.5, 0.3, 0.4, projects=("arm", "fleet", "sim")
    ),
    Customer("bluefin-legal", 9, (8, 2, 0, 0, 0), 9_000, 650, 0.6, projects=("discovery", "contracts")),
    Customer("corvid-games", 13, (1, 7, 0, 0.1, 3), 1_100, 180, 0.3),
    Customer("delta-health", 8, (7, 3, 0, 0, 0), 4_200, 520, 0.4, 0, 0.9, projects=("triage",)),
    Customer("ember-news", 8, (2, 5, 0, 0, 3), 2_600, 600, 0.1, 0.5),
    Customer("fjord-bank", 9, (6, 3, 1, 0, 0), 3_000, 380, 0.45, 0, 0.7, projects=("kyc", "desk")),
    Customer("granite-edu", 9, (3, 6, 1, 0, 0), 1_500, 350, 0.3, seats=400, projects=("tutor", "grading")),
    Customer("harbor-law", 5, (6, 4, 0, 0, 0), 3_500, 480, 0.4, seats=120, projects=("drafting", "research")),
    Customer("iris-support", 10, (3, 7, 0, 0, 0), 2_200, 220, 0.7, seats=60, projects=("chat", "mail")),
    Customer("juniper-travel", 6, (4, 4, 0, 0.3, 2), 2_000, 300, 0.4, seats=40, projects=("booking",)),
    Customer("internal-research", 3, (4, 0, 4, 2, 0), 2_500, 900, 0.2, projects=("evals", "agents")),
    Customer("lattice-voice", 6, (10, 0, 0, 0, 0), 5_000, 1_900, 0.2),
    Customer("mystery-co", 0, (1, 1, 0, 0, 0), 1_000, 200, 0.0),
)
LONG_CONTEXT_CUSTOMER: Final = 11  # lattice-voice
UNKNOWN_CUSTOMER: Final = 12
#: internal-research runs on units of block-a that are set aside for it, the carve-out `research`.
RESEARCH_CUSTOMER: Final = 10
NO_TEXT: Final = "null"


def profile(
    customer: int, product: int, served: int, batch: int, ptu: int, overflow: int, end: int, project: int
) -> tuple[str, str]:
    """The CloudEvents attributes and the part of the data that follow from these.

    `customer`, `product` and `served` are places in CUSTOMERS and PRODUCTS, `project` one in the customer's
    projects; `end`: 0 the attempt that is billed, 1 a failure, 2 a retry.
    """
    who = CUSTOMERS[customer]
    tier = "batch" if batch else "standard"
    if product == ATLAS:
        provider, region, pool, ran_on = "cirrus", "us-east", NO_TEXT, "on_demand"
    elif ptu:
        provider, region, pool, ran_on = "cirrus", "us-west", '"ptu-west"', "overflow" if overflow else "pool"
    elif overflow:
        provider, region, pool, ran_on = "cirrus", "us-east", '"block-a"', "overflow"
    else:
        named_pool = '"research"' if customer == RESEARCH_CUSTOMER else '"block-a"'
        provider, region, pool, ran_on = "own", "us-west", named_pool, "pool"
    billable = '"billable":true' if end == 0 else '"billable":false'
    reason = "" if end == 0 else f',"nonbillable_reason":"{("failure", "retry")[end - 1]}"'
    named = f'"{who.projects[project]}"' if who.projects else NO_TEXT
    source = "gateway/us-east" if region == "us-east" else "gateway/us-west"
    head = f'"source":"{source}","subject":"{who.name}"'
    # what is resold is passed on as its provider says it: the tier stands in the usage
    what = (
        f'"model":"{PRODUCTS[served]}","usage_format":"anthropic_messages"'
        if product == ATLAS
        else f'"model_served":"{PRODUCTS[served]}","tier_served":"{tier}","usage_convention":"inclusive"'
    )
    body = (
        f'"provider":"{provider}","product":"{PRODUCTS[product]}","tier_sold":"{tier}",'
        f'"region":"{region}","capacity_pool":{pool},"ran_on":"{ran_on}",{billable}{reason},"project":{named},'
        f'{what},"usage_source":"{"partial" if end == 1 else "provider"}"'
    )
    return head, body
