"""Test that the lines of the documentation fit into 100 columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

MAX_COLUMNS = 100
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/**/*.rst")])


def can_be_wrapped(line: str) -> bool:
    """Return whether the part beyond the limit could go to a line of its own.

    The row of a table and a list item or a paragraph that is one long word, such as a link, cannot.
    """
    if line.lstrip().startswith("|"):
        return False
    return any(len(word) <= MAX_COLUMNS // 2 for word in line.split()[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_line_is_wider_than_100_columns(page: Path) -> None:
    too_wide = [
        f"{page.name}:{number}: {len(line)} columns"
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > MAX_COLUMNS and can_be_wrapped(line)
    ]
    assert too_wide == []
