"""What a user imports: the names, what an import loads, and the registered environment ids."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gymwire
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv
from gymwire.protocol import errors

HEAVY = ("zmq", "numpy", "gymnasium")


def run(code: str) -> str:
    """Run this code in a Python process of its own, and return what it prints."""
    script = [sys.executable, "-c", code]
    ran = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


WITH_EXTRAS = {"ProxyAECEnv", "ProxyParallelEnv", "aio", "otel", "sb3"}


def test_all_lists_every_public_name_that_needs_no_extra() -> None:
    expected = {
        "ProxyEnv",
        "ProxyVectorEnv",
        "Simulation",
        "errors",
        "__version__",
        *errors.__all__,
    }
    assert gymwire.__all__ == sorted(expected)
    assert expected | WITH_EXTRAS <= set(dir(gymwire))
    assert gymwire.ProxyEnv is ProxyEnv
    assert gymwire.ProxyVectorEnv is ProxyVectorEnv


def test_every_error_is_importable_from_gymwire_and_from_gymwire_errors() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GymwireError)
    }
    assert set(gymwire.errors.__all__) == defined
    for name in defined:
        assert getattr(gymwire, name) is getattr(gymwire.errors, name) is getattr(errors, name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gymwire' has no attribute 'Proxy'"):
        gymwire.Proxy  # noqa: B018


def test_importing_the_proxies_loads_no_event_loop() -> None:
    loaded = "[name for name in ('anyio', 'gymwire.aio') if name in sys.modules]"
    assert run(f"import sys, gymwire; gymwire.ProxyEnv; print({loaded})") == "[]"


def test_importing_gymwire_loads_no_heavy_package() -> None:
    loaded = f"[name for name in {HEAVY} if name in sys.modules]"
    assert run(f"import gymwire, sys; gymwire.__version__; print({loaded})") == "[]"


def test_a_star_import_gives_the_public_names() -> None:
    code = "from gymwire import *; print(ProxyEnv.__name__, errors.Denied is Denied, __version__)"
    assert run(code) == f"ProxyEnv True {gymwire.__version__}"


def test_a_star_import_needs_no_extra() -> None:
    hidden = ("pettingzoo", "anyio", "opentelemetry", "stable_baselines3")
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden})); from gymwire import *"
    assert run(f"{code}; print(ProxyEnv.__name__)") == "ProxyEnv"


@pytest.mark.parametrize("name", ["aio", "errors", "otel"])
def test_a_public_module_is_loaded_when_it_is_first_used(name: str) -> None:
    code = f"import sys, gymwire; before = 'gymwire.{name}' in sys.modules; print(before, gymwire."
    assert run(f"{code}{name}.__name__)") == f"False gymwire.{name}"


def test_a_module_whose_extra_is_missing_says_how_to_install_it() -> None:
    code = """
import sys, gymwire
sys.modules["stable_baselines3"] = None
try:
    gymwire.sb3
except ModuleNotFoundError as error:
    print(error)
"""
    assert "pip install" in run(code)


IMPORTS = {
    "gymnasium alone": "import gymnasium",
    "gymnasium first": "import gymnasium, gymwire",
    "gymwire first": "import gymwire, gymnasium",
    "a part of gymwire first": "import gymwire.broker, gymnasium",
    "a part of gymnasium": "import gymwire, gymnasium.envs.registration",
    "gymwire searches for gymnasium": (
        "import gymwire, importlib.util; importlib.util.find_spec('gymnasium'); import gymnasium"
    ),
    "gymwire reloaded": "import gymwire, importlib; importlib.reload(gymwire); import gymnasium",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
def test_gymnasium_makes_what_gymwire_registers_in_every_import_order(imports: str) -> None:
    code = f"""
import os
os.environ.pop("GYMWIRE_ADDRESS", None)
{imports}
for make in (gymnasium.make, gymnasium.make_vec):
    try:
        make("gymwire:gymwire/Proxy-v0")
    except Exception as error:
        print(error)
print(gymnasium.make("gymwire:gymwire/PriceMarket-v0").spec.max_episode_steps)
"""
    single, vector, market = run(code).splitlines()
    assert single.startswith("No address given")
    assert vector.startswith("No address given")
    assert market == "200"


def test_an_env_agent_knows_the_demo_market() -> None:
    code = "import gymwire.env_agent.factory, gymnasium; gymnasium.make('gymwire/PriceMarket-v0')"
    run(code)


def test_the_import_hook_leaves_once_gymnasium_is_loaded() -> None:
    code = "import sys; before = [*sys.meta_path]; import gymwire, gymnasium"
    assert run(f"{code}\nprint(before == sys.meta_path, gymnasium.__spec__.origin[-11:])") == (
        "True __init__.py"
    )
