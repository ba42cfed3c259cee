"""Faults: each one injected on the real servers, seen to have struck, and survived with nothing lost or doubled."""
