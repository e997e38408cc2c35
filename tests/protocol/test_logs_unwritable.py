"""A log line that cannot be written stops nothing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from gymwire.protocol import logs


class Raising:
    """A stream that raises whatever is done with it."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise RuntimeError("no")

    def flush(self) -> None:
        raise RuntimeError("no")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Any] = {
    "None": None,
    "closed": closed(),
    "ascii": io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "raising": Raising(),
    "an object": object(),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_line_is_written_or_dropped(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    logger = structlog.wrap_logger(structlog.PrintLogger(logs._Stderr()))  # type: ignore[arg-type]
    logger.warning("an event", value="ä€\U0001f600\udc80")


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("form", ["lines", "json"])
@pytest.mark.parametrize("redirect", ["", "2>&-", "<&- >&- 2>&-"])
def test_a_program_without_standard_streams_logs(form: str, redirect: str, tmp_path: Path) -> None:
    program = (
        "import os, socket, structlog; from gymwire.protocol import logs; "
        f"from {__name__} import Unshown; logs.configure(form={form!r}); "
        "log = structlog.get_logger(); log.warning('an event', value='\\u20ac'); "
        "log.warning('another', value=Unshown()); "
        "assert socket.socket().fileno() > 2"
    )
    command = f'exec "$0" -c "$1" {redirect}'
    done = subprocess.run(["/bin/sh", "-c", command, sys.executable, program], check=False)
    assert done.returncode == 0
