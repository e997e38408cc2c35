"""Test what the sdist and the wheel contain."""

from __future__ import annotations

import os
import re
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import gymwire
from tests.packaging.conftest import ROOT, Distributions, build

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def clone_files() -> set[str]:
    """Return the paths in the folder gymwire, behind its links, without compiled files."""
    return {
        Path(parent, name).relative_to(ROOT).as_posix()
        for parent, _, names in os.walk(ROOT / "gymwire", followlinks=True)
        for name in names
        if not name.endswith(".pyc")
    }


def in_package(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("gymwire/")}


@pytest.fixture(scope="module")
def metadata(distributions: Distributions) -> Message:
    (name,) = (one for one in distributions.wheel_files() if one.endswith(".dist-info/METADATA"))
    return Parser().parsestr(zipfile.ZipFile(distributions.wheel).read(name).decode())


def test_the_clone_has_each_part() -> None:
    parts = (
        *("protocol", "broker", "env_agent", "learner_agent", "gateway", "conformance"),
        "fleet",
    )
    assert {f"gymwire/{part}/__init__.py" for part in parts} < clone_files()


def test_the_sdist_contains_the_package_of_the_clone(distributions: Distributions) -> None:
    assert in_package(distributions.sdist_files()) == clone_files()


def test_the_wheel_from_the_sdist_contains_the_package_of_the_clone(
    distributions: Distributions,
) -> None:
    assert in_package(distributions.wheel_files()) == clone_files()


def test_the_wheel_from_the_clone_is_the_same(distributions: Distributions, tmp_path: Path) -> None:
    build(tmp_path, "--wheel")
    (wheel,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(wheel).namelist()) == distributions.wheel_files()


def test_the_wheel_installs_one_package_and_nothing_else(distributions: Distributions) -> None:
    tops = {name.partition("/")[0] for name in distributions.wheel_files()}
    assert tops == {"gymwire", f"gymwire-{gymwire.__version__}.dist-info"}


def test_the_sdist_contains_each_source_file_once(distributions: Distributions) -> None:
    others = distributions.sdist_files() - in_package(distributions.sdist_files())
    assert not [name for name in others if name.endswith(".py")]
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= others


def test_type_checkers_find_the_annotations(distributions: Distributions) -> None:
    assert "gymwire/py.typed" in distributions.wheel_files()


def test_the_wheel_installs_one_command(distributions: Distributions) -> None:
    (name,) = (n for n in distributions.wheel_files() if n.endswith("entry_points.txt"))
    text = zipfile.ZipFile(distributions.wheel).read(name).decode()
    console, *_ = text.partition("[console_scripts]\n")[2].split("\n[")
    assert console.strip() == "gymwire = gymwire.cli:main"


def test_each_requirement_is_listed_once() -> None:
    project = PYPROJECT["project"]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        names = [re.split(r"[\[<>=~! ]", one, maxsplit=1)[0] for one in requirements]
        assert len(names) == len(set(names)), requirements


def test_the_version_is_the_same_everywhere(metadata: Message) -> None:
    assert metadata["Version"] == gymwire.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == gymwire.__version__


def test_the_oldest_python_is_the_same_everywhere(metadata: Message) -> None:
    oldest = metadata["Requires-Python"].removeprefix(">=")
    minors = [
        int(match[1])
        for one in metadata.get_all("Classifier", [])
        if (match := re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", one))
    ]
    assert oldest == f"3.{min(minors)}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == oldest
    assert f"Python {oldest} or newer" in (ROOT / "run").read_text()


def test_each_extra_that_a_text_names_exists(metadata: Message) -> None:
    """`./run pip install -e '.[plot]'` and `pip install 'gymwire[plot]'`."""
    texts = [path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
    texts += [(ROOT / name).read_text() for name in sorted(clone_files()) if name.endswith(".py")]
    named = {
        extra
        for text in texts
        for match in re.finditer(r"install [^\n`]*['\"](?:\.|gymwire)\[([a-z0-9_, -]+)\]", text)
        for extra in match[1].replace(" ", "").split(",")
    }
    assert named <= set(metadata.get_all("Provides-Extra", []))
