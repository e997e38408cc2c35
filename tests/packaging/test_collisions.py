"""Test that a user's own protocol.py, broker.py and so on do not matter to gymwire.

The programs run from the unpacked wheel, without the clone: its folder would offer packages of
these names, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.conftest import Distributions

NAMES = (
    "protocol",
    "broker",
    "env_agent",
    "learner_agent",
    "cli",
    "gateway",
    "conformance",
    "fleet",
)

# -S leaves out the .pth file through which the clone is installed; so the libraries are added here.
START = """
import runpy, sys
sys.path[1:1] = {others} + {site}
program, *sys.argv = {argv}
sys.argv = [program, *sys.argv]
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""

IMPORT_ALL = """
import importlib, pkgutil, gymwire
needy = (".sb3", ".gateway", ".aio", ".otel", ".ray_engine", ".ray_driver", ".slurm")
for module in pkgutil.walk_packages(gymwire.__path__, "gymwire."):
    needs_an_extra = any(part in module.name for part in needy)
    if not module.name.endswith(".__main__") and not needs_an_extra:
        importlib.import_module(module.name)
gymwire.ProxyEnv, gymwire.ProxyVectorEnv
"""

LEARNER = """
import sys
import broker, env_agent, learner_agent, protocol
from gymwire import ProxyEnv

assert [broker.OWNER, env_agent.OWNER, learner_agent.OWNER, protocol.OWNER] == ["the user"] * 4
with ProxyEnv("mine", broker=sys.argv[1], wait_s=20) as env:
    env.reset(seed=1)
    print("reward:", env.step(0)[1])
"""

ENVIRONMENT = """
import gymnasium
import protocol

class Mine(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, 1.5 if protocol.OWNER == "the user" else 0.0, True, False, {}
"""


@dataclass(frozen=True)
class Place:
    """Where a user's programs run, and how they find gymwire."""

    folder: Path
    site: tuple[Path, ...]

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs a script or a module of the installed wheel."""
        libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        start = START.format(
            others=[str(path) for path in self.site], site=libraries, argv=list(arguments)
        )
        return [sys.executable, "-S", "-E", "-c", start]

    def run(self, *arguments: str) -> str:
        """Run it to its end and return its output."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run it during the block."""
        program = subprocess.Popen(
            self.command(*arguments), cwd=self.folder, stderr=subprocess.PIPE, text=True
        )
        with program:
            try:
                yield program
            finally:
                program.kill()


def url_of(broker: subprocess.Popen[str]) -> str:
    """Return the URL that the broker says it listens at."""
    assert broker.stderr is not None
    seen = ""
    for line in broker.stderr:
        seen += line
        if found := re.search(r"tcp://127\.0\.0\.1:\d+", line):
            return found[0]
    pytest.fail(f"The broker ended: {seen}")


@pytest.fixture
def beside(distributions: Distributions, tmp_path: Path) -> Place:
    """A folder in which the user's modules have the names of gymwire's parts."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text('OWNER = "the user"\n')
    return Place(tmp_path, (distributions.installed,))


@pytest.fixture
def distribution(distributions: Distributions, tmp_path: Path) -> Place:
    """An environment in which another distribution installs packages of these names."""
    site = tmp_path / "site-packages"
    for name in NAMES:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text('OWNER = "the user"\n')
        (site / name / "errors.py").write_text("raise RuntimeError('not gymwire')\n")
    info = site / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (tmp_path / "work").mkdir()
    return Place(tmp_path / "work", (site, distributions.installed))


@pytest.fixture(params=["beside", "distribution"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the two."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


def test_every_module_of_gymwire_finds_its_own(place: Place) -> None:
    script = place.folder / "script.py"
    script.write_text(IMPORT_ALL)
    place.run(str(script))


def test_broker_env_agent_and_script_of_the_user_work(place: Place) -> None:
    (place.folder / "learn.py").write_text(LEARNER)
    (place.folder / "mine.py").write_text(ENVIRONMENT)
    with place.started("gymwire.broker", "--bind", "tcp://127.0.0.1:*") as broker:
        url = url_of(broker)
        offer = ["--address", "mine", "--env", "./mine.py:Mine"]
        with place.started("gymwire.env_agent", "--broker", url, *offer):
            assert "reward: 1.5" in place.run("learn.py", url)
