"""The checks, in the order in which they run."""

from gymwire.conformance.check import Check
from gymwire.conformance.checks import (
    attributes,
    dialogue,
    exactly_once,
    frames,
    opening,
    peers,
    progress,
    reconnecting,
    time_stamps,
    values,
    vectors,
)

CHECKS: tuple[Check, ...] = (
    *peers.CHECKS,
    *opening.CHECKS,
    *dialogue.CHECKS,
    *exactly_once.CHECKS,
    *frames.CHECKS,
    *values.CHECKS,
    *attributes.CHECKS,
    *time_stamps.CHECKS,
    *vectors.CHECKS,
    *progress.CHECKS,
    *reconnecting.CHECKS,
)
