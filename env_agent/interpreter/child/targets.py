"""What the operator names: a class, a function, a module, or a registered id."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .agents import is_module
from .failures import WrongTarget
from .signatures import parameters

# Set by other options, or not an argument.
_NOT_KEYWORDS = {"autoreset_mode", "num_envs", "render_mode", "self"}


def load(name: str) -> Any:
    """Return a class, a function, a module, or the text if it may be a registered id.

    Raises WrongTarget.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        return name
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if not path.is_file():
            raise WrongTarget(f"there is no file {path}")
        sys.path.append(str(path.parent))
        spec: Any = importlib.util.spec_from_file_location(path.stem, str(path))
        found = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        _imported(module_name, lambda: spec.loader.exec_module(found))
    else:
        found = _imported(module_name, lambda: importlib.import_module(module_name))
    target = _imported(module_name, lambda: find(found, attribute))
    if target is None:
        return name
    if not callable(target) and not is_module(target):
        raise WrongTarget(f"{attribute} is neither a class nor a factory. Name one that is")
    return target


def find(target: Any, names: str) -> Any:
    """Return what `NAME` or `NAME.NAME` names in a module, which may import it only now."""
    for name in names.split("."):
        target = getattr(target, name, None)
    return target


def _imported(module_name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if (module_name + ".").startswith(missing + "."):
            hint = (
                "Install its package there, start the env agent in the folder that contains it, or "
                "name its file: ./path/to/file.py:MyEnv"
            )
        else:
            hint = f"{module_name} needs it: install its package there, or correct the import"
        raise WrongTarget(f"{sys.executable} has no module {missing!r}. {hint}") from None


def keywords(target: Any) -> list[str]:
    """Return the keyword arguments of a class, a function or an id; [] if they are unknown."""
    if isinstance(target, str):
        registration: Any = sys.modules.get("gymnasium.envs.registration")
        spec = getattr(registration, "registry", {}).get(target.rpartition(":")[2])
        target = getattr(spec, "entry_point", None)
        if isinstance(target, str):
            target = registration.load_env_creator(target)
    names, others = parameters(target)
    return [] if others else [name for name in names if name not in _NOT_KEYWORDS]
