"""Declared frames of what comes in: usage, events, and the books that the catalog compiles into."""
