"""What the engine `ray` says when Ray fails, with a program in the place of Ray."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gymwire.fleet.description import load
from gymwire.fleet.engine import PENDING, Resources
from gymwire.protocol.errors import ConfigurationError, Refused
from tests.fleet.fleets import write
from tests.processes import ROOT

INIT = """
import os, sys, time

def init(**_):
    {init}

def nodes():
    return [{{"Alive": True, "Resources": {{"CPU": 2.0}}, "Labels": {{}}}}]
"""
UTIL = """
import os, sys

def list_named_actors(**_):
    {actors}
"""


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that installs a Ray that does this; it returns the module of the engine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = os.pathsep.join((str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path)

    def install(init: str = "pass", actors: str = "return []") -> Any:
        package = tmp_path / "ray"
        package.mkdir()
        (package / "__init__.py").write_text(INIT.format(init=init))
        (package / "util.py").write_text(UTIL.format(actors=actors))
        (package / "exceptions.py").write_text("")
        return importlib.import_module("gymwire.fleet.ray_engine")

    return install


def open_engine(module: Any, folder: Path, agents: str = "count = 1") -> Any:
    return module.RayEngine(load(write(folder, "tcp://b:1", agents)))


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ("os._exit(0)", r"ended its driver \(exit 0\).*no output"),
        ("sys.exit(15)", r"ended its driver \(exit 15\)"),
        ("os.kill(os.getpid(), 9)", r"ended its driver \(SIGKILL\)"),
        ("print('GCS is gone'); sys.stdout.flush(); os._exit(1)", "last words: GCS is gone"),
        ("raise RuntimeError('Version mismatch:\\n   Ray 1')", "Version mismatch: Ray 1"),
    ],
)
def test_a_ray_that_does_not_connect_is_one_error(
    ray: Any, tmp_path: Path, init: str, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"Cannot connect to a Ray cluster.*{said}"):
        open_engine(ray(init), tmp_path)


def test_a_ray_that_does_not_answer_is_given_up(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ray("time.sleep(3600)")
    monkeypatch.setattr(module, "CONNECT_S", 0.1)
    with pytest.raises(ConfigurationError, match=r"does not answer within 0\.1 s"):
        open_engine(module, tmp_path)


def test_an_address_without_a_cluster_is_named(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1 \(RAY_ADDRESS\).*refused"):
        open_engine(ray(), tmp_path)


def test_a_driver_that_ends_is_reported_and_replaced(ray: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    once = f"open({str(mark)!r}, 'x').close() if not os.path.exists({str(mark)!r}) else None"
    actors = f"is_first = not os.path.exists({str(mark)!r}); {once}\n    "
    actors += "print('GCS is gone'); sys.stdout.flush()\n    "
    actors += "return os._exit(1) if is_first else []"
    engine = open_engine(ray(actors=actors), tmp_path)
    with pytest.raises(Refused, match=r"ended its driver \(exit 1\).*GCS is gone"):
        engine.running()
    assert engine.running() == []


def test_an_error_of_ray_is_one_line(ray: Any, tmp_path: Path) -> None:
    engine = open_engine(ray(actors=r"raise RuntimeError('a\n  b')"), tmp_path)
    with pytest.raises(Refused, match=r"Ray failed: a b$"):
        engine.running()


def test_an_agent_that_no_node_can_take_says_what_is_missing(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ray()
    agent = {"name": "lab/0", "state": PENDING}
    asked = module.RayEngine._ask

    def ask(self: Any, do: str, **fields: Any) -> Any:
        return {"agents": [agent]} if do == "running" else asked(self, do, **fields)

    monkeypatch.setattr(module.RayEngine, "_ask", ask)
    for agents, detail in (
        ("count = 1\ncpus = 2", "no node with room"),
        ("count = 1\ncpus = 64", "no node of the Ray cluster has 64 CPU"),
        ("count = 1\nplace = { zone = 'b' }", "has 1 CPU and the label zone=b"),
    ):
        [found] = open_engine(module, tmp_path, agents).running()
        assert detail in found.detail


def test_the_needs_of_an_agent_have_rays_names(ray: Any) -> None:
    assert ray().needs(Resources(0.5, 0, 1024)) == {"CPU": 0.5, "memory": 1024}
