"""The list of modules in docs/modules.md: each with the first line of its docstring.

Run `python -m tests.docs.modules` to write it again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.processes import ROOT

PATH = ROOT / "docs" / "modules.md"
FOLDERS = ("gymwire", "protocol", "broker", "env_agent", "learner_agent")
HEAD = """# Modules

Every module, with the first line of its docstring. [Design](design.md) explains how they fit
together. This page is generated: `./run python -m tests.docs.modules` writes it again.
"""


def _modules(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__main__.py":
            yield path
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and (path / "__init__.py").exists():
            yield from _modules(path)


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    lines = docstring.partition("\n\n")[0].splitlines()
    return " ".join(lines).removesuffix(":").replace("|", "\\|")


def page() -> str:
    """Return the content of docs/modules.md."""
    parts = [HEAD]
    for folder in FOLDERS:
        rows = [
            f"| `{path.relative_to(ROOT).as_posix()}` | {_summary(path)} |"
            for path in _modules(ROOT / folder)
            if path.name != "__init__.py" or path.parent.name in FOLDERS
        ]
        parts += [f"## {folder}\n\n| module | |\n|---|---|", *rows, ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
