"""Call a signal handler at any line of a call, those of the standard library included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def interrupt(line: int, call: Callable[[], object], handler: Callable[[], object]) -> bool:
    """Call, and call the handler before the line with this number is executed.

    Returns whether the call executed so many lines.
    """
    left = line

    def trace(_frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                handler()
                return None
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(former)
    return left < 0
