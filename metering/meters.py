"""The meters: quantities with a unit, disjoint, so that every token lands in exactly one."""

from typing import Final

#: Tokens of the input side; their sum is the request's total input. Cached tokens of audio or images are
#: cache reads and writes; an uncached token of text, audio or image lands in the meter of its kind.
INPUT_METERS: Final = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "audio_input_tokens",
    "image_input_tokens",
)
#: Tokens of the output side; visible text, reasoning, audio and images are the request's total output.
OUTPUT_METERS: Final = ("output_tokens", "reasoning_tokens", "audio_output_tokens", "image_output_tokens")
TOKEN_METERS: Final = INPUT_METERS + OUTPUT_METERS
#: Meters that few events have: packed into one value of the ledger, in this order, and empty for the others.
FURTHER_METERS: Final = (
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
    "tool_calls",
)
#: Meters with a column of the ledger each, in the order of the columns and of every digest.
FIRST_METERS: Final = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "accelerator_ms",
)
#: All stored meters.
METERS: Final = FIRST_METERS + FURTHER_METERS
#: Largest quantity of one meter in one event.
QUANTITY_MAX: Final = 2**31 - 1

#: Where long-context prices change (k = 1,000 tokens of total input), lowest first.
CONTEXT_BREAKPOINTS: Final = (128_000, 200_000, 256_000, 272_000, 512_000)


def context_breakpoint(input_tokens: int) -> int:
    """Return the highest breakpoint strictly exceeded by a request's total input, else 0.

    Both sides of the edge: 200,000 tokens give 128,000; 200,001 give 200,000.
    """
    return max((edge for edge in CONTEXT_BREAKPOINTS if input_tokens > edge), default=0)
