"""Benchmarks: how fast this machine ingests, folds, verifies and reports, against references of one run."""
