"""Faults injected into real processes, and an oracle that sees every lost or doubled step."""
