"""Fuzz: a decoder of plain Python written from docs/events.md, mutations of real records, and what must hold."""
