"""Other Python interpreters on this machine, for `gymwire serve --python`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import venv
from collections.abc import Iterable
from functools import cache
from pathlib import Path

NAMES = [*(f"python3.{minor}" for minor in range(7, 15)), "pypy3", "pypy"]
VARIABLE = "TEST_INTERPRETERS"  # these instead: paths with colons between them


@cache
def others() -> dict[str, str]:
    """Return the oldest and the newest other CPython from 3.7 on, and a PyPy: names and paths."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return _known(chosen.split(":"))
    known = _known([*map(shutil.which, NAMES), *Path.home().glob(".pyenv/versions/*/bin/python")])
    known.pop(f"cpython-{platform.python_version()}", None)
    cpythons = [name for name in known if name.startswith("cpython")]
    ends = sorted(cpythons, key=lambda name: [int(part) for part in name[8:].split(".")])
    pypys = [name for name in known if name.startswith("pypy")]
    return {name: known[name] for name in dict.fromkeys([*ends[:1], *ends[-1:], *pypys[:1]])}


def _known(paths: Iterable[str | Path | None]) -> dict[str, str]:
    """Return the names and the paths of those that are interpreters of 3.7 or later."""
    code = "import platform, sys; sys.version_info >= (3, 7) or sys.exit(1); "
    code += "print(platform.python_implementation(), platform.python_version())"
    found: dict[str, str] = {}
    for path in paths:
        if not path:
            continue
        try:
            ran = subprocess.run(
                [path, "-c", code], capture_output=True, text=True, timeout=60, check=False
            )
        except OSError:
            continue
        if ran.returncode == 0:
            found.setdefault(ran.stdout.strip().lower().replace(" ", "-"), str(path))
    return found


def bare(folder: Path) -> str:
    """Make an interpreter of this version without any package; return its path."""
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")
