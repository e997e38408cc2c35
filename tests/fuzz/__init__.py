"""Hostile bytes for everything that parses them; `python -m tests.fuzz` for as many as wanted."""
