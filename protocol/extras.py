"""How to install what gymwire or an environment needs beyond gymwire's own requirements."""

from __future__ import annotations

import re
from pathlib import Path

import gymwire
from gymwire.protocol.errors import ConfigurationError


def pip() -> str:
    """Return the command that runs pip for this installation: `./run pip` in a clone."""
    clone = Path(gymwire.__file__).resolve().parents[1]
    is_clone = (clone / "run").is_file() and (clone / "pyproject.toml").is_file()
    return "./run pip" if is_clone else "pip"


def install_line(extra: str) -> str:
    """Return the command that installs one of gymwire's extras into this installation."""
    command = pip()
    return f"{command} install " + (
        f"'gymwire[{extra}]'" if command == "pip" else f"-e '.[{extra}]'"
    )


def missing(need: str, extra: str) -> str:
    """Return the text that `need`, such as "Plots need matplotlib", is not met without an extra."""
    return f"{need}, which is not installed. Install it with: {install_line(extra)}"


def not_installed(name: str, error: Exception) -> ConfigurationError:
    """Return the error that says what to install for an environment, as its package advises."""
    advice = re.sub(r"(?<!-m )\bpip(?= install\b)", pip(), str(error))
    return ConfigurationError(f"{name} cannot be used yet: {advice}")
