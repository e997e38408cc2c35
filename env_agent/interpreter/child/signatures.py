"""The parameters of what the operator or an environment defines."""

from __future__ import annotations

import inspect
from typing import Any


def parameters(target: Any) -> tuple[list[str], bool]:
    """Return the names of the parameters, and whether it takes others as well."""
    if inspect.isclass(target) and inspect.isfunction(target.__init__):
        target = target.__init__  # before Python 3.9, that of a Generic is the one of __new__
    try:
        found = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return [], True
    return list(found), any(one.kind is one.VAR_KEYWORD for one in found.values())


def render_takes_mode(env: Any) -> bool:
    """Return whether `render` takes a mode, as in gym before 0.26."""
    return "mode" in parameters(getattr(env, "render", None))[0]
