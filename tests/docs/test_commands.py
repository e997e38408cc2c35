"""The commands and the scripts of the documents run as they are written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.docs.pages import blocks, commands
from tests.docs.terminals import Terminals

# Other programs, and a broker that is open to the network.
OTHERS = ("ssh ", "pip ", "./run honcho ", "./run pytest ", "./run pip ", "./run sphinx-build ")

PRELUDE = """
import os
from gymwire import ProxyEnv, ProxyVectorEnv

env = ProxyEnv("cartpole")
env.reset(seed=0)
action = env.action_space.sample()
if os.path.exists("token"):
    with open("token", "rb") as file:
        token = file.read()
"""
POSTLUDE = """
if "token" in globals():
    with open("token", "wb") as file:
        file.write(token)
"""


def walk_through(page: str, terminals: Terminals, *, trains: bool = True) -> str:
    """Run the commands of a page, without those that train a policy if not `trains`.

    Returns what they print.
    """
    ours = [line for line in commands(page) if not line.startswith(OTHERS)]
    if not trains or importlib.util.find_spec("stable_baselines3") is None:
        ours = [line for line in ours if not line.endswith("gymwire train cartpole")]
    assert ours
    return "".join(terminals.run(line) for line in ours if "--insecure" not in line)


@pytest.mark.timeout(300)
@pytest.mark.thorough  # most of its commands are in the README, too
def test_the_five_minutes_of_the_start_page(tmp_path: Path) -> None:
    [script] = blocks("docs/start.md", "python")
    with Terminals(tmp_path) as terminals:
        printed = walk_through("docs/start.md", terminals, trains=False)  # as the README does
        assert "checker: passed" in printed
        assert terminals.script(script.text).startswith("return ")


@pytest.mark.timeout(300)  # it trains a policy
def test_the_commands_and_scripts_of_the_readme(tmp_path: Path) -> None:
    with Terminals(tmp_path) as terminals:
        printed = walk_through("README.md", terminals)
        assert "thermostat" in printed
        for script in blocks("README.md", "python"):
            terminals.script(script.text)


def test_the_commands_that_serve_an_environment_of_ones_own(tmp_path: Path) -> None:
    page = "docs/how-to/own-environment.md"
    [offers] = blocks(page, "toml")
    (tmp_path / "offers.toml").write_text(offers.text)
    with Terminals(tmp_path) as terminals:
        terminals.run("gymwire broker")
        terminals.run("gymwire serve cartpole CartPole-v1")
        walk_through(page, terminals)
        terminals.wait_for("cartpole", "frozen-lake", "warm-room", "maze", "pole")
        for script in blocks(page, "python"):
            terminals.script(PRELUDE + script.text)


@pytest.mark.parametrize("page", ["asyncio", "recovery", "vectors", "video"])
def test_the_scripts_of_a_how_to(page: str, tmp_path: Path) -> None:
    if page == "asyncio":
        pytest.importorskip("anyio")
        pytest.importorskip("greenlet")
    with Terminals(tmp_path) as terminals:
        terminals.run("gymwire broker")
        terminals.run("gymwire serve cartpole CartPole-v1 --max-sessions 32")
        terminals.wait_for("cartpole")
        for script in blocks(f"docs/how-to/{page}.md", "python"):
            if "RecordVideo" in script.text and importlib.util.find_spec("moviepy") is None:
                continue
            terminals.script(PRELUDE + script.text + POSTLUDE)


def test_the_commands_of_pools_workers_and_slow_steps(tmp_path: Path) -> None:
    with Terminals(tmp_path) as terminals:
        terminals.run("gymwire broker")
        walk_through("docs/how-to/pools-and-workers.md", terminals)
        printed = walk_through("docs/how-to/slow-steps.md", terminals)
        assert "p50" in printed
