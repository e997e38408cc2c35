"""Stable-Baselines3's own tests of vectors, over remote environments instead of its DummyVecEnv.

They come with its source distribution. `.ci/groups sb3-own` downloads it, and names the file of the
tests in the variable TEST_SB3_OWN.
"""

from __future__ import annotations

import itertools
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.processes import Program, Programs

VARIABLE = "TEST_SB3_OWN"
if VARIABLE not in os.environ:
    pytest.skip(
        "the tests of Stable-Baselines3 are not here; .ci/groups sb3-own downloads them",
        allow_module_level=True,
    )
with warnings.catch_warnings():
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")
    import cloudpickle
    from stable_baselines3.common import vec_env

    from gymwire.sb3 import ProxyVecEnv

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Stable-Baselines3's own
    pytest.mark.timeout(600),  # imports take long on a busy machine
]

EXPOSED = (
    *("dummy", "dummy1", "dummy2", "custom_method", "set_wrapper_attr"),
    *("current_step", "current_options"),
)
# An env agent makes its environments one after another, the first one to describe it.
FACTORY = """
import itertools, pathlib, pickle

makers = pickle.loads(pathlib.Path({path!r}).read_bytes())
count = itertools.count(-1)

def make():
    return makers[max(next(count), 0) % len(makers)]()
"""


class Remote(ProxyVecEnv):
    """Takes functions that make environments, as a DummyVecEnv does, and serves them."""

    serve: Callable[[list[Any]], tuple[str, str, Program]]

    def __init__(self, makers: list[Any]) -> None:
        address, url, self._agent = Remote.serve(makers)
        super().__init__(address, len(makers), url)

    def close(self) -> None:
        """End the sessions, and the env agent."""
        super().close()
        self._agent.stop()


# What the tests say about their classes, and what is tested here instead.
CHANGES = {
    "VEC_ENV_CLASSES = [DummyVecEnv, SubprocVecEnv]": "VEC_ENV_CLASSES = [DummyVecEnv]",
    "if vec_env_class == DummyVecEnv:": "if False:",  # looks at its list of environments
}


def load() -> types.ModuleType:
    """Import the tests, which find a Remote where they import a DummyVecEnv."""
    text = Path(os.environ[VARIABLE]).read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    module = types.ModuleType("sb3_own_tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vec_env, "DummyVecEnv", Remote)
        exec(compile(text, os.environ[VARIABLE], "exec"), vars(module))
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    return module


@pytest.fixture(autouse=True)
def _served(
    programs: Programs, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count()
    monkeypatch.setattr(processes, "PATIENCE_S", 120.0)  # the env agents import PyTorch

    def serve(makers: list[Any]) -> tuple[str, str, Program]:
        name = f"own-{next(count)}"
        path, factory = tmp_path / f"{name}.pkl", tmp_path / f"{name}.py"
        path.write_bytes(cloudpickle.dumps(makers))
        factory.write_text(FACTORY.format(path=str(path)))
        exposed = itertools.chain.from_iterable(("--expose", one) for one in EXPOSED)
        return name, broker_url, programs.env_agent(broker_url, name, f"{factory}:make", *exposed)

    monkeypatch.setattr(Remote, "serve", staticmethod(serve), raising=False)


# The tests left out, and why.
OTHERS = {
    "test_subproc_start_method": "of another class",
    "test_vecenv_func_checker": "whether the functions in the list make different environments",
    "test_framestack_vecenv": "steps before the first reset, which is an error here",
}
globals().update(
    {
        name: test
        for name, test in vars(load()).items()
        if name.startswith("test_") and name not in OTHERS
    }
)
