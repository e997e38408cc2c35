"""Logging of all commands: structlog to standard error, as readable lines or JSON."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

EVENT_COLUMNS = 16  # width of the column of events
LONG_S = 1.0  # what takes longer than this is logged before it ends


class _Stderr:
    """Writes to the current `sys.stderr`, which a progress bar may replace for a while.

    It ignores what prevents that, such as a full disk or a closed pipe, and an environment may have
    set `sys.stderr` to anything: a lost log line must not stop a step.
    """

    def write(self, text: str) -> int:
        for stream in (sys.stderr, sys.__stderr__):
            try:
                encoding = getattr(stream, "encoding", None) or "utf-8"
                return stream.write(text.encode(encoding, "backslashreplace").decode(encoding))  # type: ignore[union-attr]
            except Exception:  # noqa: BLE001 - see the class
                continue
        return 0

    def flush(self) -> None:
        # Whatever `sys.stderr` is by now: see the class.
        with contextlib.suppress(Exception):
            sys.stderr.flush()


def _discard_unwritten() -> None:
    """Discard what a full disk or a closed pipe did not accept, to keep the exit status."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    except Exception:  # noqa: BLE001 - an environment may have set anything
        return


def _reopen_standard_streams() -> None:
    """Open the null device as each standard stream that is closed.

    Otherwise a socket would get the descriptor 2, and the messages of libraries.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end


def _or_plain(renderer: Any) -> Any:
    """Return a renderer that also renders values whose text cannot be made."""

    def render(logger: Any, name: str, event: Any) -> str:
        try:
            return str(renderer(logger, name, dict(event)))
        except Exception as error:  # noqa: BLE001 - a value of an environment may raise
            return f"{event.get('event')} (values not shown: {type(error).__name__})"

    return render


def _without_control(logger: Any, name: str, event: Any) -> Any:
    """Escape control characters in text: a peer may choose it, and terminals obey them."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(
                c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in value
            )
    return event


def configure(*, form: str = "lines", level: str = "info") -> None:
    """Set up structlog for this process. Colour only on a terminal."""
    _reopen_standard_streams()
    atexit.register(_discard_unwritten)
    warnings.showwarning = _show_warning
    if form == "json":
        renderer: Any = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=EVENT_COLUMNS, pad_level=False, sort_keys=False
        )
    processors: list[Any] = [structlog.processors.add_log_level]
    if form == "json":
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    elif "HONCHO_PROCESS_NAME" not in os.environ:  # honcho writes the time before each line
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
    structlog.configure(
        processors=[*processors, _without_control, _or_plain(renderer)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(_Stderr()),  # type: ignore[arg-type]
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


_WARNINGS = structlog.wrap_logger(
    structlog.WriteLogger(_Stderr()),  # type: ignore[arg-type]
    processors=[
        structlog.processors.add_log_level,
        _without_control,
        structlog.dev.ConsoleRenderer(colors=False, pad_level=False, sort_keys=False),
    ],
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
)


class _Logger:
    """Logs as structlog is configured at the time; until it is, only warnings."""

    def __getattr__(self, name: str) -> Any:
        return getattr(structlog.get_logger() if structlog.is_configured() else _WARNINGS, name)


def logger() -> Any:
    """Return the logger. In a user's program that does not configure structlog, it only warns."""
    return structlog.get_logger() if structlog.is_configured() else _Logger()


@contextlib.contextmanager
def logged_if_long(event: str, **facts: Any) -> Iterator[None]:
    """Log this event once if the block has not ended after LONG_S, so that people know of it."""
    timer = threading.Timer(LONG_S, logger().info, (event,), facts)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
