from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.transport.private_folder import FOLDER_PREFIX, PrivateFolder
from tests.processes import ROOT

MAKE = """
from gymwire.protocol.transport.private_folder import PrivateFolder
folder = PrivateFolder()
print(folder.path, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def of_another_process(*, killed: bool) -> tuple[Path, subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    if killed:
        process.kill()
        process.communicate()
    return path, process


def test_the_folder_is_private_and_removed_with_its_content(temporary: Path) -> None:
    folder = PrivateFolder()
    assert folder.path.parent == temporary
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "direct").touch()
    folder.remove()
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed() -> None:
    path, _ = of_another_process(killed=True)
    assert path.is_dir()
    PrivateFolder().remove()
    assert not path.exists()


def test_the_folder_of_a_living_process_stays() -> None:
    path, process = of_another_process(killed=False)
    PrivateFolder().remove()
    assert path.is_dir()
    process.communicate("\n")


def test_a_new_folder_without_the_lock_stays_and_a_link_is_not_followed(temporary: Path) -> None:
    (temporary / f"{FOLDER_PREFIX}new").mkdir()
    (temporary / "target").mkdir()
    (temporary / "target" / "kept").touch()
    (temporary / "lock").touch()
    (temporary / f"{FOLDER_PREFIX}linked").symlink_to(temporary / "target")
    (temporary / f"{FOLDER_PREFIX}odd").mkdir()
    (temporary / f"{FOLDER_PREFIX}odd" / "lock").symlink_to(temporary / "lock")
    PrivateFolder().remove()
    assert (temporary / "target" / "kept").exists()
    assert (temporary / f"{FOLDER_PREFIX}new").is_dir()
    assert (temporary / f"{FOLDER_PREFIX}odd").is_dir()


@pytest.mark.parametrize("content", [[], ["locking"], ["direct"]])
def test_an_old_folder_without_the_lock_is_removed(temporary: Path, content: list[str]) -> None:
    folder = temporary / f"{FOLDER_PREFIX}old"
    folder.mkdir()
    for name in content:
        (folder / name).touch()
    os.utime(folder, (0, 0))
    PrivateFolder().remove()
    assert not folder.exists()


def test_an_old_folder_of_a_living_process_stays() -> None:
    path, process = of_another_process(killed=False)
    os.utime(path, (0, 0))
    PrivateFolder().remove()
    assert path.is_dir()
    process.communicate("\n")


def test_without_a_writable_temporary_folder_the_error_names_the_variable(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        PrivateFolder()
