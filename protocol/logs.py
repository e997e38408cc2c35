"""Logging for all three programs: structlog to stderr, readable lines or JSON."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any, TextIO

import structlog

LEVELS = ("debug", "info", "warning", "error")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--log-format` and `--log-level`."""
    group = parser.add_argument_group("logging")
    group.add_argument("--log-format", choices=("lines", "json"), default="lines")
    group.add_argument("--log-level", choices=LEVELS, default="info")


class _Stream:
    """Writes that survive a full disk or a closed pipe: losing a log line must not stop a step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            return


def configure(program: str, *, form: str = "lines", level: str = "info") -> None:
    """Set up structlog for this process. Colour only on a terminal."""
    if form == "json":
        renderer: Any = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=28)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="iso" if form == "json" else "%H:%M:%S", utc=form == "json"
            ),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(_Stream(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
