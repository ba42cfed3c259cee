"""The meters: quantities with a unit, disjoint, so that every token lands in exactly one."""

from typing import Final

#: Tokens of the input side; their sum is the request's total input.
INPUT_METERS: Final = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
)
#: Tokens of the output side; visible plus reasoning is the request's total output.
OUTPUT_METERS: Final = ("output_tokens", "reasoning_tokens")
TOKEN_METERS: Final = INPUT_METERS + OUTPUT_METERS
#: All stored meters, in the order of the ledger's columns and of every digest.
METERS: Final = (*TOKEN_METERS, "accelerator_ms")
#: Largest quantity of one meter in one event.
QUANTITY_MAX: Final = 2**31 - 1

#: Where long-context prices change (k = 1,000 tokens of total input), lowest first.
CONTEXT_BREAKPOINTS: Final = (128_000, 200_000, 256_000, 272_000, 512_000)


def context_breakpoint(input_tokens: int) -> int:
    """Return the highest breakpoint strictly exceeded by a request's total input, else 0.

    Both sides of the edge: 200,000 tokens give 128,000; 200,001 give 200,000.
    """
    return max((edge for edge in CONTEXT_BREAKPOINTS if input_tokens > edge), default=0)
