"""Environments, made of what the operator names."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .agents import constructor, is_module
from .failures import WrongTarget
from .signatures import parameters, render_takes_mode


def make(target: Any, render_mode: str | None, kwargs: dict[str, Any], kind: str = "env") -> Any:
    """Make an environment with a class, a function, a module of PettingZoo, or a registered id.

    `kind`: that of an environment with several agents, if a module offers both. Raises WrongTarget.
    """
    if is_module(target):
        target = constructor(target, kind)
    if not isinstance(target, str):
        if render_mode is None:
            return target(**kwargs)
        try:
            return target(render_mode=render_mode, **kwargs)
        except TypeError as error:
            # Python says "takes no arguments" of a class without a constructor.
            if "render_mode" not in str(error) and "takes no arguments" not in str(error):
                raise
            made = target(**kwargs)
            if not render_takes_mode(getattr(made, "unwrapped", made)):
                raise
            return made
    return _make_registered(target, render_mode, kwargs)


def _make_registered(target: str, render_mode: str | None, kwargs: dict[str, Any]) -> Any:
    failure: BaseException | None = None
    module_name, _, target = target.rpartition(":")
    for name in ("gymnasium", "gym"):
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        given = dict(kwargs)
        if render_mode is not None and "disable_env_checker" in parameters(library.make)[0]:
            given["render_mode"] = render_mode
        try:
            return library.make(target, **given)
        except library.error.Error as error:
            is_malformed = "alformed environment ID" in str(error)
            if not is_malformed and not isinstance(error, library.error.UnregisteredEnv):
                raise
            failure = failure or error
    names = (target.rpartition("-v")[0] or target).split("/")
    # Another name is that of one that this environment makes itself.
    if failure is not None and not any(name in str(failure) for name in names):
        raise failure
    if module_name:
        raise WrongTarget(
            f"{module_name} has no {target!r}, and does not register an environment with that id. "
            f"Check the spelling"
        )
    if failure is None:
        raise WrongTarget(
            f"{sys.executable} has neither gymnasium nor gym, which make environments by an id "
            f"such as {target}. Name a class or a function: module:MyEnv or ./file.py:MyEnv"
        )
    raise WrongTarget(
        f"{sys.executable} knows no environment {target!r}: {str(failure).rstrip('.?')}. Check the "
        f"spelling, or write module:{target} with the module that registers it"
    )
