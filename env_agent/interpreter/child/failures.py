"""What the environment or the operator did wrong, as texts for the env agent."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

from .packing import printable
from .results import WrongResult

MAX_TEXT = 20_000  # characters of a traceback


class WrongTarget(Exception):
    """What the operator named is missing, or makes nothing that can be served.

    The text says what to do, so it needs no traceback.
    """


def is_not(made: Any, what: str, missing: str) -> str:
    """Return the text that what was made is not `what`, because it has no attribute `missing`."""
    made_what = f"{type(made).__name__}, which is not {what}: it has no {missing!r}"
    if inspect.isclass(made):
        made_what = f"class, {made.__name__}, and not an instance of it"
    return (
        f"the class or factory made a {made_what}. Check the class or factory that the env agent "
        f"was started with"
    )


def describe_exception(error: BaseException) -> list[str]:
    """Return the module, the name, the text and the traceback of an exception."""
    kind = type(error)
    if isinstance(error, WrongResult):  # its traceback is of our code only
        return ["builtins", "ValueError", printable(str(error)), ""]
    try:
        text = str(error)
    except BaseException as failure:  # noqa: BLE001 - its own __str__ raises anything
        text = f"<no text: its __str__ raised {type(failure).__name__}>"
    last = error.__traceback__
    lines = traceback.format_exception(kind, error, last.tb_next if last else None)
    texts = [kind.__module__, kind.__qualname__, text, "".join(lines)[-MAX_TEXT:]]
    return list(map(printable, texts))
