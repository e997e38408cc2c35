"""The texts that name an environment: what can be wrong with them before anything is imported."""

from __future__ import annotations

from pathlib import Path

from gymwire.protocol.errors import ConfigurationError


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
