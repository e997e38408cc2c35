"""How to install what a part of gymwire needs beyond gymwire's own requirements."""

from __future__ import annotations

from pathlib import Path

import gymwire


def install_line(extra: str) -> str:
    """Return the command that installs one of gymwire's extras into this installation."""
    clone = Path(gymwire.__file__).resolve().parents[1]
    if (clone / "run").is_file() and (clone / "pyproject.toml").is_file():
        return f"./run pip install -e '.[{extra}]'"
    return f"pip install 'gymwire[{extra}]'"
