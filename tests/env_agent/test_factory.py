from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from env_agent.factory import Factory, resolve
from protocol.errors import ConfigurationError

BROKEN = """
import gymnasium
import needed_by_nobody_else
"""
MINE = """
import gymnasium

class Mine(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, size=1, render_mode=None):
        self.size, self.render_mode = size, render_mode

class Inner:
    Deep = Mine

def no_env(**kwargs):
    return 7

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a user's module in it; forgotten afterwards."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "raising.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "broken", "raising"):
        sys.modules.pop(name, None)
    return tmp_path


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium.envs:CartPole-v1"])
def test_a_gymnasium_id_makes_what_gymnasium_makes(name: str) -> None:
    env = resolve(name, {}).make("rgb_array", {})
    assert env.spec is not None
    assert (env.spec.id, env.render_mode) == ("CartPole-v1", "rgb_array")
    env.close()


def test_a_class_is_found_in_the_current_folder() -> None:
    env = resolve("mine:Mine", {"size": 2}).make("ansi", {})
    assert (type(env).__name__, env.size, env.render_mode) == ("Mine", 2, "ansi")  # type: ignore[attr-defined]


def test_the_learners_arguments_come_after_the_operators() -> None:
    assert resolve("mine:Inner.Deep", {"size": 2}).make(None, {"size": 3}).size == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NoSuchEnv-v0", "no environment 'NoSuchEnv-v0'"),
        ("CartPole-v99", "no environment 'CartPole-v99'"),
        ("no_such_module:Env", "no module 'no_such_module'.*in the folder"),
        ("broken:Env", "no module 'needed_by_nobody_else'.*pip install"),
        ("raising:Env", "importing 'raising' raised ZeroDivisionError"),
        ("mine:Nothing", "has no 'Nothing'"),
        ("mine:number", "neither a class nor a factory"),
    ],
)
def test_what_cannot_be_found_is_refused_saying_what_to_do(name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        resolve(name, {})


def test_a_factory_must_return_an_environment() -> None:
    with pytest.raises(ConfigurationError, match=r"returned int, not a gymnasium\.Env"):
        resolve("mine:no_env", {}).make(None, {})


def test_bad_arguments_raise_what_the_constructor_raises() -> None:
    with pytest.raises(TypeError, match="colour"):
        resolve("mine:Mine", {}).make(None, {"colour": 1})


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_has_the_mode_that_was_asked_for(mode: AutoresetMode) -> None:
    for name in ("FrozenLake-v1", "mine:Mine"):
        vector = resolve(name, {}).make_vector(3, mode, None, {})
        assert isinstance(vector, SyncVectorEnv)
        assert (vector.num_envs, vector.metadata["autoreset_mode"]) == (3, mode)
        vector.close()


def test_a_factory_without_a_function_is_an_id() -> None:
    assert not Factory("CartPole-v1").makes_vectors
