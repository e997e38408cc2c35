"""Hostile bytes for every parser; `python -m tests.fuzz` runs any number of them."""
