"""Environments, and vectors of them, for the tests of ProxyVectorEnv."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tests.processes import PATIENCE_S
from tests.space_zoo import ZooEnv

Result = tuple[Any, Any, bool, bool, dict[str, Any]]


class Moody(gymnasium.Env[Any, Any]):
    """Episodes of chance length, and infos whose keys come and go, in all the types there are."""

    observation_space = Box(-np.inf, np.inf, (2,), dtype=np.float64)
    action_space: gymnasium.Space[Any] = Discrete(4)
    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.mood = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.mood = float(self.np_random.normal())
        return self._observe(), self._info()

    def step(self, action: Any) -> Result:
        self.mood += float(action)
        terminated, truncated = self.np_random.random(2) < (0.2, 0.1)
        return self._observe(), self.mood, bool(terminated), bool(truncated), self._info()

    def render(self) -> Any:
        return f"{self.mood:.3f}"

    def action_masks(self) -> Any:
        """Which actions are possible, bool (4,)."""
        return np.arange(4) > self.mood

    def _observe(self) -> Any:
        return np.array([self.mood, float(self.np_random.random())])

    def _info(self) -> dict[str, Any]:
        draw = float(self.np_random.normal())
        info = {
            "int": int(100 * draw),
            "float": draw,
            "bool": draw > 0,
            "float32": np.float32(draw),
            "array": np.full((2, 3), draw, np.float16),
            "text": f"{draw:.2f}",
            "none": None,
            "list": [draw, "x"],
            "texts": np.array(["ab", "c"]),
            "nested": {"deeper": {"uint8": np.uint8(7), "tuple": (1, None)}},
            "bytes": b"\x00\xff",
        }
        return {key: value for key, value in info.items() if self.np_random.random() < 0.5}


class VectorZooEnv(ZooEnv):
    """A zoo environment whose infos SyncVectorEnv can merge."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        del info["big"], info["scalar"]
        return observation, reward, terminated, truncated, info


class Gated(gymnasium.Env[Any, Any]):
    """Action 1 waits until the file `gate` exists, 8 kills the process, 9 raises."""

    observation_space = Discrete(1000)
    action_space = Discrete(10)

    def __init__(self, gate: str = "") -> None:
        self._gate = Path(gate)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return 0, {}

    def step(self, action: Any) -> Result:
        while action == 1 and not self._gate.exists():
            time.sleep(0.002)
        if action == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == 9:
            raise ValueError("nine is not to my taste")
        self._steps += 1
        return self._steps, float(action), False, False, {"action": int(action)}


class Sociable(Gated):
    """Can only be made `party` at a time: each waits in the folder `meet` for the others.

    The last of `late` that come there fails.
    """

    def __init__(self, meet: str = "", party: int = 1, late: int = 0) -> None:
        super().__init__()
        if not meet:  # to be described
            return
        (Path(meet) / uuid4().hex).touch()
        number = len(list(Path(meet).iterdir()))
        here = -(-number // party) * party
        deadline = time.monotonic() + PATIENCE_S
        while len(list(Path(meet).iterdir())) < here:
            if time.monotonic() > deadline:
                raise TimeoutError("nobody else has come")
            time.sleep(0.002)
        if number == late:
            raise RuntimeError("the last one to come found no chair")


class Counters(VectorEnv[Any, Any, Any]):
    """A vector of its own kind, as other libraries have them: no environments inside."""

    def __init__(self, num_envs: int = 1, first: int = 0) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = Discrete(1000)
        self.single_action_space = Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._counts = np.full(num_envs, first, np.int64)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._counts[:] = 0
        return self._counts, {"players": np.arange(self.num_envs)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._counts += np.asarray(actions)
        no = np.zeros(self.num_envs, np.bool_)
        rewards = np.ones(self.num_envs, np.float32)
        return self._counts, rewards, no, no, {"players": np.arange(self.num_envs)}


def make_counters(num_envs: int = 1, first: int = 0) -> Counters:
    """Make a vector, as a factory that cannot make a single environment does."""
    return Counters(num_envs, first)
