"""Events in: bytes of records become typed events and rejects, each event by itself, and get their identity."""

from metering.events.decoding import Decoded, RecordBytes, decode, pieces_of, refuse
from metering.events.laws import DecodeLimits
from metering.events.rejects import RejectCode

__all__ = ["DecodeLimits", "Decoded", "RecordBytes", "RejectCode", "decode", "pieces_of", "refuse"]
