"""The texts that name an environment, a class or a function: check and import what they name."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

from gymwire.env_agent.failure_reports import CodeRaised
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.interpreter.child.targets import find
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import not_installed, pip


def check_name(name: str) -> None:
    """Raise ConfigurationError if this can name nothing, as a file or a module alone."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        if name.endswith(".py"):
            raise ConfigurationError(
                f"{name} is a file. Also name the class or factory in it, such as {name}:MyEnv."
            )
        return
    if not attribute:
        raise ConfigurationError(
            f"{name} ends with a colon. Behind it, name the class or factory in {module_name}."
        )
    check_module(module_name, name)


def check_module(module_name: str, name: str) -> None:
    """Raise ConfigurationError, which begins with `name`, if no module can be named so."""
    if not module_name.endswith(".py") and not all(module_name.split(".")):
        raise ConfigurationError(
            f"{name}: {module_name!r} is not the name of a module. Write package.module:MyEnv or "
            f"./file.py:MyEnv."
        )


def check_no_file(name: str) -> None:
    """Raise ConfigurationError if there is a file that an unknown id was meant to name."""
    for file in (f"{name}.py", f"{name.replace('.', '/')}.py"):
        if Path(file).is_file():
            raise ConfigurationError(
                f"There is no environment {name!r}, but a file {file}. To use it, name the class "
                f"or factory in it, such as {file}:MyEnv."
            )


def add_current_folder() -> None:
    """Let modules be imported from the current folder, too."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def look_up(name: str, option: str = "") -> Any:
    """Return what `package.module:NAME` or `./file.py:NAME` names; None if there is no NAME.

    Raises ConfigurationError if the module cannot be imported; it begins with `option` and `name`.
    """
    add_current_folder()
    module_name, _, attribute = name.rpartition(":")
    name = option + name
    if module_name.endswith(".py"):
        path = Path(module_name)
        return import_(path.stem, name, lambda: find(_load(path, name), attribute))
    check_module(module_name, name)
    return import_(module_name, name, lambda: find(importlib.import_module(module_name), attribute))


def _load(path: Path, name: str) -> Any:
    if not path.is_file():
        raise ConfigurationError(f"{name}: there is no file {path} in {Path.cwd()}.")
    return load_file(path)


def load_file(path: Path) -> Any:
    """Import a file as a module; like a script, it can import the modules in its folder."""
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that it does not hide other modules
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    # The file may have the name of a module that is in use already, such as random.py.
    called = path.stem if known is None else f"{path.stem} in {path.parent}"
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[called] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[called]
        raise
    return module


def import_(module_name: str, name: str, load: Callable[[], Any]) -> Any:
    """Return what `load` returns, which imports the module.

    Raises ConfigurationError, which begins with `name`, if that raises.
    """
    pid = os.getpid()
    try:
        return load()
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing == module_name or module_name.startswith(f"{missing}."):
            hint = (
                "Install its package on this machine, start the env agent in the folder that "
                "contains it, or name its file: ./path/to/file.py:MyEnv"
            )
        else:
            hint = (
                f"{module_name} needs it: install the package that provides it "
                f"({pip()} install PACKAGE), or correct the import"
            )
            if not name.startswith("--"):  # an environment
                hint += ". An interpreter that has the module can be given with --python"
        raise ConfigurationError(f"{name}: there is no module {missing!r}. {hint}.") from None
    except gymnasium.error.DependencyNotInstalled as error:
        raise not_installed(name, error) from None
    except (Exception, SystemExit) as error:
        end_if_forked(pid, error)
        raise CodeRaised(f"{name}: importing {module_name!r} raised", error) from error
