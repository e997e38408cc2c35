"""Logging of all commands: structlog to standard error, as readable lines or JSON."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import warnings
from typing import Any

import structlog


class _Stderr:
    """Writes to the current `sys.stderr`, which a progress bar may replace for a while.

    It ignores a full disk or a closed pipe: a lost log line must not stop a step.
    """

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except OSError:
            return 0

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except OSError:
            return


def _discard_unwritten() -> None:
    """Discard what a full disk or a closed pipe did not accept, to keep the exit status."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def configure(program: str, *, form: str = "lines", level: str = "info") -> None:
    """Set up structlog for this process. Colour only on a terminal."""
    atexit.register(_discard_unwritten)
    warnings.showwarning = _show_warning
    if form == "json":
        renderer: Any = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=16, pad_level=False, sort_keys=False
        )
    processors: list[Any] = [structlog.processors.add_log_level]
    if form == "json":
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    elif "HONCHO_PROCESS_NAME" not in os.environ:  # honcho writes the time before each line
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(_Stderr()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Log a warning of a library without its source line and colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).removeprefix("WARN: ")
    structlog.get_logger().warning("library warning", category=category.__name__, text=text)


def logger() -> Any:
    """Return the logger. In a user's program that does not configure structlog, it only warns."""
    if structlog.is_configured():
        return structlog.get_logger()
    return structlog.wrap_logger(
        structlog.PrintLogger(_Stderr()),  # type: ignore[arg-type]
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=False, pad_level=False, sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
