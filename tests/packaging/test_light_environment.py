"""Test that gymwire and its demo run with the declared dependencies alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gymwire.protocol.extras import install_line
from tests.packaging.conftest import ROOT
from tests.packaging.test_distributions import PYPROJECT, clone_files

# Where the name of the distribution is not that of the module.
DISTRIBUTIONS = {"zmq": "pyzmq"}
# Imported only by what needs it, which names the extra when it is missing.
IN_EXTRAS = {
    "anyio", "greenlet", "matplotlib", "minari", "moviepy", "pettingzoo", "stable_baselines3",
    "starlette", "uvicorn", "websockets", "openenv", "pydantic", "mcp", "PIL", "prometheus_client",
    "opentelemetry", "ray", "submitit", "h11", "torch",
}  # fmt: skip


def libraries(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def run(program: str) -> None:
    """Run a Python program that finds none of the packages of the extras."""
    hidden = (
        *("pygame", "matplotlib", "cv2", "moviepy", "Box2D", "pytest", "hypothesis"),
        *("stable_baselines3", "torch", "starlette", "uvicorn", "websockets"),
        *("anyio", "greenlet", "prometheus_client", "opentelemetry", "ray", "submitit"),
    )
    prologue = f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
    done = subprocess.run(
        [sys.executable, "-c", prologue + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_each_library_is_a_declared_dependency() -> None:
    declared = {re.split(r"[^\w.-]", one)[0] for one in PYPROJECT["project"]["dependencies"]}
    modules = [ROOT / name for name in clone_files() if name.endswith(".py")]
    used = {name for path in modules for name in libraries(path)} - sys.stdlib_module_names
    assert {
        DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in used - IN_EXTRAS - {"gymwire"}
    } == declared


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1"])
def test_gymnasiums_small_environments_step_without_an_extra(env: str) -> None:
    run(
        "import gymnasium\n"
        f"env = gymnasium.make({env!r})\n"
        "env.reset(seed=1)\n"
        "env.step(env.action_space.sample())"
    )


def test_each_module_can_be_imported_without_an_extra() -> None:
    run(IMPORT_ALL)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("gymwire.sb3", "sb3"),
        ("gymwire.learner_agent.adapters.sb3", "sb3"),
        ("gymwire.otel", "otel"),
        ("gymwire.aio", "aio"),
        ("gymwire.learner_agent.aio.connection", "aio"),
        ("gymwire.gateway.app", "web"),
        ("gymwire.fleet.ray_engine", "ray"),
        ("gymwire.fleet.slurm", "slurm"),
    ],
)
def test_a_module_that_needs_an_extra_names_it(module: str, extra: str) -> None:
    run(
        "try:\n"
        f"    import {module}\n"
        "except ModuleNotFoundError as error:\n"
        f"    assert {install_line(extra)!r} in str(error), error\n"
        "else:\n"
        "    raise SystemExit('it was imported')"
    )


def test_each_module_can_be_imported_on_windows() -> None:
    """On what looks like Windows: without these modules, Unix sockets, epoll and fork."""
    absent = {
        "os": ("fork", "getuid", "geteuid", "sched_setaffinity", "sched_getaffinity"),
        "select": ("epoll", "poll", "EPOLLIN", "EPOLLOUT", "EPOLLET", "POLLIN", "POLLOUT"),
        "signal": ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGCHLD"),
        "socket": ("AF_UNIX", "SO_PEERCRED", "MSG_DONTWAIT", "SCM_RIGHTS"),
    }
    run(
        # The libraries were imported on the real platform before the modules disappear.
        "import gymnasium, numpy, rich.console, rich_click, structlog, zmq\n"
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['fcntl', 'grp', 'pwd', 'resource', 'termios']))\n"
        f"for module, names in {absent}.items():\n"
        "    for name in names:\n"
        "        vars(__import__(module)).pop(name)\n"
        "sys.platform = 'win32'\n" + IMPORT_ALL
    )


IMPORT_ALL = """
import importlib, pkgutil, gymwire
for module in pkgutil.walk_packages(gymwire.__path__, "gymwire."):
    # See the test that names the extra.
    needy = (".sb3", ".gateway", ".aio", ".otel", ".ray_engine", ".ray_driver", ".slurm")
    if not any(part in module.name for part in needy):
        importlib.import_module(module.name)
"""
