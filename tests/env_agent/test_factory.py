from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire.env_agent.factory import Factory, resolve
from gymwire.env_agent.failure_reports import naming_known
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.protocol.errors import ConfigurationError

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
    def __init__(self): pass

def no_env(**kwargs):
    return 7

class Broken(Mine):
    def __init__(self, size):
        Inner(inner=size)

class Needy(Mine):
    def __init__(self, size=1, *more, speed):
        super().__init__(size + speed())

class Spaceless(gymnasium.Env):
    pass

number = 3
"""
OWN = """
from dataclasses import dataclass  # it looks its class's module up
import gymnasium

@dataclass(eq=False)
class Own(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    size: int = 0
    render_mode: str | None = None
"""
NEIGHBOURLY = f"{OWN}\nfrom neighbour import WHERE\nOwn.where = WHERE"
REGISTERING = f"{OWN}\ngymnasium.register('OwnOne-v0', Own, kwargs={{'size': 1}})"
NEEDING = """
import gymnasium, mine
gymnasium.register("NeedyOne-v0", mine.Needy, kwargs={"size": 1})
"""
NEEDY = """
import gymnasium
raise gymnasium.error.DependencyNotInstalled("Wheels are missing: pip install wheels")
"""
FILES = {
    "mine.py": MINE,
    "broken.py": BROKEN,
    "raising.py": "def divide():\n    1 / 0\n\ndivide()",
    "exiting.py": "import sys\nsys.exit(4)",
    "wrong.py": "x = (",
    "lazy.py": "def __getattr__(name): import needed_by_nobody_else",
    "needy.py": NEEDY,
    "needing.py": NEEDING,
    "own.py": OWN,
    "elsewhere/own.py": OWN,
    "elsewhere/random.py": NEIGHBOURLY,
    "elsewhere/neighbour.py": "WHERE = 'elsewhere'",
    "elsewhere/registering.py": REGISTERING,
    "package/__init__.py": f"{OWN}\ngymnasium.register('space/Two-v3', 'package:Own')",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a current folder with a user's modules; unload these modules afterwards."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = dict(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - modules.keys():
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    gymnasium.registry.pop("OwnOne-v0", None)
    gymnasium.registry.pop("NeedyOne-v0", None)
    gymnasium.registry.pop("space/Two-v3", None)


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium.envs:CartPole-v1"])
def test_a_gymnasium_id_makes_what_gymnasium_makes(name: str) -> None:
    env = resolve(name, {}).make("rgb_array", {})
    assert env.spec is not None
    assert (env.spec.id, env.render_mode) == ("CartPole-v1", "rgb_array")
    env.close()


def test_a_class_is_found_in_the_current_folder() -> None:
    env = resolve("mine:Mine", {"size": 2}).make("ansi", {})
    assert (type(env).__name__, env.size, env.render_mode) == ("Mine", 2, "ansi")  # type: ignore[attr-defined]


def test_the_learners_arguments_override_the_operators() -> None:
    assert resolve("mine:Inner.Deep", {"size": 2}).make(None, {"size": 3}).size == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("python", [None, sys.executable])
def test_an_outdated_module_of_pettingzoo_names_the_newer_one(python: str | None) -> None:
    name = "pettingzoo.classic:tictactoe_v0"
    factory = ChildFactory("a", name, python, {}) if python else resolve(name, {})
    with pytest.raises(Exception, match=r"tictactoe_v0 is now deprecated, use tictactoe_v[1-9]"):
        factory.make_first()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NoSuchEnv-v0", "no environment 'NoSuchEnv-v0'"),
        ("CartPole-v99", "no environment 'CartPole-v99'"),
        ("no_such_module:Env", "no module 'no_such_module'.*in the folder"),
        ("broken:Env", r"no module 'needed_by_nobody_else'.*\(\./run pip install PACKAGE\)"),
        ("lazy:Env", r"lazy needs it: .* provides it .*, or correct the import\. .*--python\.$"),
        (
            "./lazy.py:Env",
            r"lazy needs it: .* provides it .*, or correct the import\. .*--python\.$",
        ),
        ("raising:Env", "importing 'raising' raised ZeroDivisionError"),
        ("exiting:Env", "importing 'exiting' raised SystemExit: 4"),
        ("./exiting.py:Env", "importing 'exiting' raised SystemExit: 4"),
        ("wrong:Env", r"importing 'wrong' raised SyntaxError: .*\(wrong\.py, line 1\)\n"),
        (":Env", "'' is not the name of a module"),
        ("..mine:Env", r"'\.\.mine' is not the name of a module"),
        ("openenv:http://[::1", "is not the URL of an OpenEnv server"),
        ("openenv:http://here:port", "is not the URL of an OpenEnv server"),
        ("mine:", "^mine: ends with a colon. Behind it, name the class or factory in mine"),
        ("mine:number", "neither a class nor a factory"),
        ("mine", r"a file mine\.py\. To use it, name the class .* mine\.py:MyEnv"),
        ("elsewhere.own", r"a file elsewhere/own\.py\. To use it, .* elsewhere/own\.py:MyEnv"),
        ("mine.py", r"mine\.py is a file\. Also name the class or factory in it"),
        ("./absent.py:Mine", r"there is no file absent\.py in /"),
        ("mine:Nothing", "^mine:Nothing: mine has no 'Nothing'"),
        ("./mine.py:Nothing", r"^\./mine\.py:Nothing: \./mine\.py has no 'Nothing'"),
        ("./mine.py:number", r"^\./mine\.py:number: number is neither"),
        ("./raising.py:Env", "importing 'raising' raised ZeroDivisionError"),
        (
            "needy:Env",
            r"needy:Env cannot be used yet: Wheels are missing: \./run pip install wheels",
        ),
    ],
)
def test_what_cannot_be_found_is_refused_saying_what_to_do(name: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        resolve(name, {})


@pytest.mark.parametrize("name", ["raising:Env", "./raising.py:Env"])
def test_a_module_that_raises_is_reported_with_file_line_and_traceback(
    name: str, folder: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(name, {})
    first, empty, *trace = str(caught.value).splitlines()
    where = f"({folder / 'raising.py'}, line 2)"
    expected = "importing 'raising' raised ZeroDivisionError: division by zero"
    assert first == f"{name}: {expected} {where}"
    assert not empty
    assert trace[0] == "    Traceback (most recent call last):"
    # Nothing of gymwire or of importlib is above the user's file.
    assert trace[1].endswith('raising.py", line 4, in <module>')


@pytest.mark.parametrize("name", ["wrong:Env", "./wrong.py:Env"])
def test_a_syntax_error_is_reported_without_the_frames_of_the_import(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(name, {})
    _, _, place, *source = str(caught.value).splitlines()
    assert place.endswith('wrong.py", line 1')
    assert len(source) == 3  # the line, the mark below it, and the error


def test_the_copy_that_a_module_forks_ends_where_it_wants(folder: Path) -> None:
    fork = "import os, sys\npid = os.fork()\nif not pid:\n    sys.exit(7)\nEnv = dict"
    (folder / "forking.py").write_text(fork)
    pid = os.getpid()
    try:
        resolve("./forking.py:Env", {})
    finally:
        if os.getpid() != pid:
            os._exit(99)
    child = sys.modules["forking"].pid
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_factory_must_return_an_environment() -> None:
    with pytest.raises(ConfigurationError, match=r"returned int, not a gymnasium\.Env"):
        resolve("mine:no_env", {}).make(None, {})


def test_the_error_about_missing_spaces_says_where_to_set_them() -> None:
    said = r"^mine:Spaceless: its observation_space is NoneType, .* constructor of Spaceless\.$"
    with pytest.raises(ConfigurationError, match=said):
        resolve("mine:Spaceless", {}).make_first()


@pytest.mark.parametrize("place", ["", "./", "elsewhere/"])
def test_a_class_is_found_in_a_file(place: str) -> None:
    factory = resolve(f"{place}own.py:Own", {"size": 4})
    assert factory.make(None, {}).size == 4  # type: ignore[attr-defined]
    # Where the file is does not matter to what the agents of a pool must have in common.
    assert factory.name == "own:Own"


def test_a_file_may_have_the_name_of_a_module_and_import_the_files_beside_it() -> None:
    env = resolve("elsewhere/random.py:Own", {}).make(None, {})
    assert env.where == "elsewhere"  # type: ignore[attr-defined]
    assert random.Random(1).random()


def test_an_environment_that_a_file_registers_is_found_by_its_id() -> None:
    factory = resolve("elsewhere/registering.py:OwnOne-v0", {})
    assert factory.make(None, {}).unwrapped.size == 1  # type: ignore[attr-defined]


class WithoutModes(gymnasium.Env[Any, Any]):
    """An environment whose constructor does not take a render mode."""

    observation_space = action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, size: int = 1) -> None:
        self.size = size


def test_a_registered_constructor_need_not_take_a_render_mode() -> None:
    for name, kwargs in (("WithoutModes-v0", {}), ("Shown-v0", {"render_mode": "rgb_array"})):
        make: Any = WithoutModes if name == "WithoutModes-v0" else "gymnasium.envs.toy_text:TaxiEnv"
        gymnasium.register(name, make, kwargs=kwargs)
        try:
            for made in (resolve(name, {}).make_first(), resolve(name, {}).make(None, {})):
                assert made.render_mode == gymnasium.make(name).render_mode
                made.close()
        finally:
            del gymnasium.registry[name]


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("gymnasium.envs:CartPole-v1", "CartPole-v1"),
        ("gymnasium.envs.toy_text:FrozenLake-v1", "FrozenLake-v1"),
        ("elsewhere/registering.py:OwnOne-v0", "OwnOne-v0"),
        ("package:space/Two-v3", "space/Two-v3"),
    ],
)
def test_an_id_with_a_module_also_makes_vectors(
    name: str, env_id: str, mode: AutoresetMode
) -> None:
    vector = resolve(name, {}).make_vector(2, mode, None, {})
    assert vector.spec is not None
    assert (vector.spec.id, vector.num_envs) == (env_id, 2)
    vector.close()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("mine:Mine", "size"),
        ("FrozenLake-v1", "desc, map_name, is_slippery"),
        ("gymnasium.envs:FrozenLake-v1", "desc, map_name, is_slippery"),
        ("elsewhere/registering.py:OwnOne-v0", "size"),
        ("package:space/Two-v3", "size"),
    ],
)
def test_an_unknown_keyword_argument_is_named_with_the_known_ones(name: str, known: str) -> None:
    shown = name.rpartition(":")[2] if "-v" in name else name
    said = f"^{shown} takes no keyword argument 'colour'; it takes {known}"
    with pytest.raises(TypeError, match=said):
        resolve(name, {}).make(None, {"colour": 1})
    with pytest.raises(TypeError, match=said):
        resolve(name, {"colour": 1}).make_first()
    with pytest.raises(TypeError, match=said):
        resolve(name, {}).make_vector(2, AutoresetMode.NEXT_STEP, None, {"colour": 1})


@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_a_registered_constructor_needs_no_render_mode() -> None:
    factory = resolve("needing:NeedyOne-v0", {"speed": int})
    for env in (factory.make_first(), factory.make_vector(2, AutoresetMode.NEXT_STEP, None, {})):
        assert env.render_mode is None
        env.close()
    said = r"^NeedyOne-v0 takes no render_mode\. Open it without one .* without --render"
    with pytest.raises(TypeError, match=said):
        factory.make("rgb_array", {})


@pytest.mark.parametrize("constructor", ["", "def __init__(self, size=1): pass"])
def test_a_class_without_render_modes_says_so(constructor: str, tmp_path: Path) -> None:
    file = tmp_path / "modeless.py"
    file.write_text(
        f"import gymnasium\nclass Modeless(gymnasium.Env):\n    'x'\n    {constructor}\n"
    )
    said = r"^modeless:Modeless takes no render_mode\. Open it without one .*env-kwargs\)\.$"
    with pytest.raises(TypeError, match=said):
        resolve(f"{file}:Modeless", {}).make("ansi", {})


def test_the_operators_render_mode_is_the_default() -> None:
    factory = resolve("CartPole-v1", {"render_mode": "rgb_array"})
    assert factory.make(None, {}).render_mode == "rgb_array"
    assert factory.make("human", {"render_mode": "ansi"}).render_mode == "human"


@pytest.mark.parametrize("name", ["mine:Needy", "needing:NeedyOne-v0"])
def test_a_missing_keyword_argument_is_named(name: str) -> None:
    missing = "it needs the keyword argument 'speed'"
    assert naming_known(missing, "speed") == f"{missing}."
    said = (
        f"^{name.removeprefix('needing:')} needs the keyword argument 'speed'; it takes size, speed"
    )
    with pytest.raises(TypeError, match=said):
        resolve(name, {}).make_first()
    with pytest.raises(TypeError, match=said):
        resolve(name, {}).make_vector(2, AutoresetMode.NEXT_STEP, None, {"size": 2})
    with pytest.raises(TypeError, match="'str' object"):  # of the constructor itself
        resolve(name, {"speed": "high"}).make_first()


def test_other_exceptions_of_a_constructor_propagate() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'inner'"):
        resolve("mine:Broken", {}).make(None, {"size": 1})


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_has_the_requested_autoreset_mode(mode: AutoresetMode) -> None:
    for name in ("FrozenLake-v1", "mine:Mine"):
        vector = resolve(name, {}).make_vector(3, mode, None, {})
        assert isinstance(vector, SyncVectorEnv)
        assert (vector.num_envs, vector.metadata["autoreset_mode"]) == (3, mode)
        vector.close()


def test_a_factory_without_a_function_is_an_id() -> None:
    assert not Factory("CartPole-v1").makes_vectors


def test_a_vector_class_that_takes_a_mode_in_another_form_is_used_for_its_default_mode() -> None:
    factory = resolve("tests.offered_vectors:tests/TextFrames-v0", {})
    vector = factory.make_vector(2, AutoresetMode.NEXT_STEP, None, {})
    assert type(vector).__name__ == "TextFrames"
    with pytest.raises(KeyError, match="SAME_STEP"):
        factory.make_vector(2, AutoresetMode.SAME_STEP, None, {})


def test_an_unknown_keyword_of_a_vector_class_is_named_with_those_of_that_class() -> None:
    factory = resolve("tests.offered_vectors:tests/SizedFrames-v0", {})
    with pytest.raises(TypeError, match=r"no keyword argument 'colour'; it takes size, stack\.$"):
        factory.make_vector(2, AutoresetMode.NEXT_STEP, None, {"colour": 1})
    with pytest.raises(TypeError, match="no keyword argument 'colour'"):
        factory.make(None, {"colour": 1})
