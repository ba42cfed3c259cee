"""Suppliers' bills: files as data, read strictly into documents of lines; what a correction changes."""
