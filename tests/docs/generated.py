"""The pages that are generated: the list of modules, and the table of variables.

Run `python -m tests.docs.generated` to write them again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.processes import ROOT

DOCS = ROOT / "docs"
FOLDERS = (
    *("gymwire", "protocol", "broker", "env_agent", "learner_agent", "gateway", "conformance"),
    "fleet",
)
MODULES = """# Modules

Every module, with the first line of its docstring. [Design](design.md) explains how they fit
together. This page is generated: `./run python -m tests.docs.generated` writes it again.
"""
VARIABLES = """# Variables

Every option of the [command](command.md) can also be set by an environment variable. An option on
the command line wins over the variable. A keyword of `ProxyEnv` has the same name as the option:
`wait_s` is `--wait` and `GYMWIRE_WAIT`. Scripts read `GYMWIRE_ADDRESS`, `GYMWIRE_BROKER`,
`GYMWIRE_KEY` and `GYMWIRE_BROKER_KEY` if the argument is not given.

This page is generated: `./run python -m tests.docs.generated` writes it again.
"""


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name not in ("__init__.py", "__main__.py"):
            yield path
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and (path / "__init__.py").exists():
            yield from _sources(path)


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).removesuffix(":").replace("|", "\\|")


def modules() -> str:
    """Return the content of docs/modules.md."""
    parts = [MODULES]
    for folder in FOLDERS:
        paths = [ROOT / folder / "__init__.py", *_sources(ROOT / folder)]
        rows = [f"| `{path.relative_to(ROOT).as_posix()}` | {_summary(path)} |" for path in paths]
        parts += [f"## {folder}\n\n| module | |\n|---|---|", *rows, ""]
    return "\n".join(parts)


def variables() -> str:
    """Return the content of docs/reference/variables.md."""
    from gymwire.cli import options

    return f"{VARIABLES}\n{options.markdown().rstrip()}\n"


PAGES = {DOCS / "modules.md": modules, DOCS / "reference" / "variables.md": variables}

if __name__ == "__main__":
    for path, content in PAGES.items():
        path.write_text(content(), encoding="utf-8")
