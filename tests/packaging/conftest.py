"""The sdist and the wheel, built as for a release."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distributions:
    """The files that a release consists of, and the wheel unpacked as pip would install it."""

    sdist: Path
    wheel: Path
    installed: Path

    def sdist_files(self) -> set[str]:
        """Return the paths in the sdist, without its top folder."""
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive if member.isfile()}

    def wheel_files(self) -> set[str]:
        """Return the paths in the wheel."""
        return set(zipfile.ZipFile(self.wheel).namelist())


def build(folder: Path, *arguments: str) -> None:
    """Build from the clone into `folder`, with the installed hatchling."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *arguments, ROOT],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build the sdist from the clone, and the wheel from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    installed = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(installed)
    return Distributions(sdist, wheel, installed)
