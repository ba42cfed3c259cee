"""Declared frames of what the core computes."""
