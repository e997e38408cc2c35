"""The documents, and the commands and scripts in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.processes import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


def read(name: str | Path) -> str:
    """Return the text of a page, named by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text)


def blocks(name: str | Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in these languages, without the indentation of a list."""
    found = []
    for indent, language, text in _FENCE.findall(read(name)):
        if language in languages:
            lines = (line.removeprefix(indent) for line in text.splitlines())
            found.append(Block(language, "\n".join(lines)))
    return found


def commands(name: str | Path) -> list[str]:
    """Return the lines of a page's shell blocks, those that continue joined."""
    lines = (block.text.replace("\\\n", "") for block in blocks(name, "sh"))
    return [line for text in lines for line in text.splitlines() if line]
