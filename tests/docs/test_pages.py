"""The documents are readable as plain Markdown: links that work, and one name for each thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gymwire.broker.journal import Drop, Loss
from gymwire.protocol import errors
from gymwire.protocol.messages import BusyReason
from tests.docs import generated
from tests.docs.pages import PAGES, prose, read
from tests.processes import ROOT

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
# How things were called before; the documents use the new names only.
OLD_COMMANDS = (
    r"python -m (broker|env_agent|learner_agent|protocol)\b",
    r"--allow\b",
    r"--no-lanes\b",
)
OLD_NAMES = (
    r"\blanes?\b",
    r"\btickets?\b",
    r"\bsealed\b",
    r"\bhand(s|ed)? out\b",
    r"\bcannot travel\b",
)
CODE = re.compile(r"`[^`]*`")
WRITTEN = [page for page in PAGES if page not in generated.PAGES]
page_by_page = pytest.mark.parametrize(
    "page", WRITTEN, ids=[str(page.relative_to(ROOT)) for page in WRITTEN]
)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(read(page)), re.MULTILINE)
    plain = (re.sub(r"[^\w -]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@page_by_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(read(page))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


@page_by_page
def test_only_the_new_names_are_used(page: Path) -> None:
    text = CODE.sub("", prose(read(page)))  # without the names of fields on the wire
    for old in (*OLD_COMMANDS, *OLD_NAMES):
        assert not re.search(old, read(page) if old in OLD_COMMANDS else text), old


@page_by_page
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "broker|docs|env_agent|examples|gymwire|learner_agent|protocol|tests"
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", read(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", generated.PAGES, ids=lambda page: page.name)
def test_a_generated_page_is_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == generated.PAGES[page]()


def test_the_glossary_explains_each_term_once() -> None:
    entries = re.findall(r"^\*\*([^*]+)\*\*:", read("docs/glossary.md"), re.MULTILINE)
    assert len(entries) <= 25, "a short list of terms is one that readers learn"
    terms = [term for entry in entries for term in entry.split(", ")]
    assert len(terms) == len(set(terms))
    assert {"broker", "env agent", "learner agent", "session", "lease", "local channel"} <= {*terms}


def test_every_error_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", read("docs/reference/errors.md"), re.MULTILINE)
    assert sorted(explained) == sorted(errors.__all__)


@pytest.mark.parametrize("reasons", [BusyReason, Loss, Drop])
def test_the_reasons_that_the_third_line_of_ps_counts_are_explained(reasons: type) -> None:
    section = (ROOT / "docs/how-to/observe.md").read_text("utf-8").partition("## Look")[2]
    look = section.partition("\n## ")[0]
    values = [value for name, value in vars(reasons).items() if name.isupper()]
    assert [value for value in values if f"`{value}`" not in look] == []
