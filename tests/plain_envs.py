"""Environments for an interpreter of Python 3.7 or later without any package."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from array import array
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any, Generic, TypeVar


class Values:
    """A space by its attributes alone."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def box(low: Any, high: Any, *shape: int, dtype: str = "float32") -> Values:
    """Return what looks like a Box."""
    return Values(low=low, high=high, shape=shape, dtype=dtype)


INFO = {
    "none": None,
    "flag": True,
    "small": -3,
    "big": 2**63,
    "bigger": -(2**200),
    "float": 0.1,
    "nan": float("nan"),
    "text": "Grüße 😀",
    "bytes": b"\0\xff",
    "list": [1, [2.5, "x"], []],
    "tuple": (1, (None,), ()),
    "long": "x" * 70_000,
    "many": list(range(70_000)),
    "dict": {1: "a", (2, "b"): b"c", None: {}, b"k": 1.5, 2.5: [{}]},
}


class Kinds:
    """Tells the type and the value of each action."""

    observation_space: Any = box(0, 1, 1)
    action_space: Any = Values(n=10, dtype="int64")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return [0.0], {}

    def step(self, action: Any) -> Any:
        return [0.0], 0.0, False, False, {"kind": type(action).__name__, "value": int(action)}

    def close(self) -> None:
        """Close nothing."""


class Asynchronous:
    """All its methods are asynchronous."""

    observation_space: Any = Values(n=10)
    action_space: Any = Values(n=10)

    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        async with self.lock:
            await asyncio.sleep(0)
        return 1, {}

    async def step(self, action: Any) -> Any:
        await asyncio.sleep(0)
        if action == 9:
            raise asyncio.CancelledError("cancelled in the step")
        return int(action), 1.0, False, False, {}

    async def double(self, number: int) -> int:
        return 2 * number

    async def close(self) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("closed")


class Plain:
    """Observes a point; what an action does is said in `step`."""

    metadata = {"render_modes": ["ansi"], "render_fps": 7}  # noqa: RUF012 - as in gymnasium.Env
    observation_space: Any = box(-1, 1, 3)
    action_space: Any = Values(n=10)
    made = 0

    def __init__(self, render_mode: str | None = None, text: str = "", ground: float = 1.0) -> None:
        self.render_mode = render_mode
        self.text = text
        self.ground = ground
        self.steps = 0
        self.main = threading.current_thread() is threading.main_thread()
        Plain.made += 1
        self.number = Plain.made

    def _see(self) -> list[float]:
        return [self.steps / 100, 0.5, self.random.uniform(-1, 1)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start; the info tells about the process."""
        self.random = random.Random(seed)
        self.steps = 0
        return self._see(), {
            "pid": os.getpid(),
            "main": self.main,
            "options": options,
            "variables": sorted(os.environ),
            "descriptors": _connections(),
            "modules": sorted({"gymwire", "zmq", "msgpack", "gymnasium"} & set(sys.modules)),
            "version": list(sys.version_info[:2]),
        }

    def step(self, action: Any) -> Any:
        """Step, print, raise, or end the process."""
        self.steps += 1
        number = int(action)
        info: dict[str, Any] = {}
        if number == 1:
            info = dict(INFO)
        elif number == 2:
            sys.stdout.write("first line\nsecond line\n")
            sys.stderr.write("to the error output\n")
        elif number == 3:
            raise Peculiar("not to my taste")
        elif number == 4:
            raise SystemExit(4)
        elif number == 5:
            os._exit(5)
        elif number == 6:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif number == 7:
            self._hold_the_interpreter()
        elif number == 8:
            sys.stdout.write("\n".join(f"line {i}" for i in range(5000)) + "\n")
        elif number == 9:
            subprocess.Popen(["sleep", "600"], close_fds=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return self._see(), float(number), self.steps == 5, False, info

    def _hold_the_interpreter(self) -> None:
        """Sleep in a call that does not release the interpreter's lock, if there is one."""
        try:
            import ctypes

            sleep: Any = ctypes.PyDLL(None).sleep
        except (ImportError, AttributeError):
            sleep = time.sleep
        sys.stdout.write("holds the interpreter\n")
        sleep(600)

    def render(self) -> Any:
        """Return a line of text."""
        return f"step {self.steps}"

    def action_masks(self) -> list[bool]:
        """Return which actions are harmless."""
        return [number < 3 for number in range(10)]

    def scaled(self, by: float, *, offset: float = 0.0) -> float:
        """Return a value that depends on the arguments."""
        return self.steps * by + offset

    def close(self) -> None:
        """Leave a mark if asked to."""
        if self.text:
            with Path(self.text).open("a") as file:
                file.write("closed\n")


def _connections() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(str(path)))
    return [name for name in found if name.startswith(("socket:", "pipe:"))]


class Asked(Plain):
    """A wrapper that keeps the names that it passes on, for which gymnasium 0.29 warns."""

    names: list[str] = []  # noqa: RUF012 - of all instances

    @property
    def unwrapped(self) -> Plain:
        """The environment inside."""
        return Plain()

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(self.unwrapped, name)


class Peculiar(Exception):
    """An exception that nobody else knows."""


class Nested(Plain):
    """Has composite spaces, and observes lists in their place."""

    observation_space = Values(
        spaces={
            "box": box([[0, 1], [2, 3]], [[4, 5], [6, 7]], 2, 2, dtype="uint8"),
            "pair": Values(spaces=[Values(n=3, start=1), Values(nvec=[2, 3])]),
            "bits": Values(n=4, shape=(4,), dtype="int8"),
            "word": Values(max_length=5, min_length=0, characters="abc"),
        }
    )
    action_space = box(-1.0, 1.0, 2, 3, dtype="float64")

    def _see(self) -> Any:
        return {"box": [[1, 2], [3, 4]], "pair": [2, [1, 2]], "bits": [0, 1, 1, 0], "word": "ab"}

    def step(self, action: Any) -> Any:
        """Tell the action."""
        return self._see(), 0.0, False, False, {"action": repr(action)}


class Long(Plain):
    """Says much at each step."""

    def step(self, action: Any) -> Any:
        """Return a long text."""
        return self._see(), 0.0, False, False, {"long": "x" * 70_000}


class Odd(Plain):
    """Has a space that nobody knows."""

    observation_space = Values(colour="red")


class Suit(enum.Enum):
    HEARTS = "h"


Card = namedtuple("Card", ["suit", "rank"])


@dataclasses.dataclass
class Hand:
    cards: Any


class Cards(Plain):
    """Has types of its own in infos."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start."""
        hand = Hand([Card(Suit.HEARTS, 7)])
        info: dict[Any, Any] = {"hand": hand, "counts": Counter("aab")}
        info["scores"] = array("i", [1, 2])
        info[Suit.HEARTS] = {Card(Suit.HEARTS, 7): 1}
        return [0, 0, 0], info


class Changing(Plain):
    """Makes a new space in each reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start; the option "low" is that of the space."""
        self.observation_space = box((options or {}).get("low", -1), 1, 3)
        return super().reset(seed=seed, options=options)


class Spaceless:
    """Says nothing about its spaces."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start."""
        return 0, {}

    def step(self, action: Any) -> Any:
        """Return the action."""
        return action, 0.0, False, False, {}


class Old:
    """An environment as gym 0.21 had them."""

    metadata = {"render.modes": ["ansi"], "video.frames_per_second": 5}  # noqa: RUF012 - as in gym
    observation_space = Values(n=100)
    action_space = Values(n=3)

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self.seeded: int | None = None

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed."""
        self.seeded = seed
        return [seed]

    def reset(self) -> int:
        """Return only an observation."""
        self.steps = 0
        return self.seeded or 0

    def step(self, action: Any) -> Any:
        """Return four results."""
        self.steps += 1
        info = {"TimeLimit.truncated": int(action) == 2} if self.steps == self.limit else {}
        return self.steps, 1.0, self.steps == self.limit, info

    def render(self, mode: str = "human") -> str:
        """Return the mode."""
        return f"rendered as {mode}"


class Forgetful(Old):
    """An environment that forgets the info."""

    def step(self, action: Any) -> Any:
        """Return the other four values."""
        return 1, 0.5, False, False


class OldRandom(Old):
    """An environment that draws from something else than NumPy's Generator."""

    np_random: Any = random.Random(3)


class OldWithoutConstructor:
    """An environment of old gym that leaves the constructor to Python."""

    metadata, observation_space, action_space = (
        Old.metadata,
        Old.observation_space,
        Old.action_space,
    )
    limit, seeded = 2, None
    reset, step, render = Old.reset, Old.step, Old.render


T = TypeVar("T")


class OldBase(Generic[T]):
    """The base class of gym 0.21, whose signature was the one of Generic before Python 3.9."""


class OldGeneric(Old, OldBase[int]):
    """An environment with this base class."""


def make_old(**kwargs: Any) -> Old:
    """Make an environment of old gym in a function that takes anything."""
    return Old(**kwargs)


class Unseedable:
    """An environment whose reset takes nothing."""

    observation_space = Values(n=3)
    action_space = Values(n=3)

    def reset(self) -> int:
        """Return only an observation."""
        return 1

    def step(self, action: Any) -> Any:
        """Say that a time limit was hit, but not that the episode has ended."""
        return 2, 0.5, False, {"TimeLimit.truncated": True}


class Flock:
    """A vector without any package: each bird flies where its action says, and lands at 3."""

    metadata = {"autoreset_mode": "next-step"}  # noqa: RUF012 - as in gymnasium.Env
    single_observation_space: Any = box(-9, 9, 2)
    single_action_space: Any = Values(n=10, dtype="int64")

    def __init__(self, num_envs: int = 1, ground: float = 0.5) -> None:
        self.num_envs = num_envs
        self.ground = ground
        self.observation_space = box(-9, 9, num_envs, 2)
        self.action_space = Values(nvec=[10] * num_envs, shape=(num_envs,), dtype="int64")
        self.heights = [0] * num_envs

    def _see(self) -> list[list[float]]:
        return [[height, self.ground] for height in self.heights]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start; the info says what was given."""
        first = (options or {}).get("first", 0)
        self.heights = [first] * self.num_envs
        return self._see(), {"seed": seed, "birds": {"pid": os.getpid()}}

    def step(self, actions: Any) -> Any:
        """Step all; 9 ends the process, 8 raises."""
        if 9 in actions:
            os.kill(os.getpid(), signal.SIGKILL)
        if 8 in actions:
            raise Peculiar("eight is not to my taste")
        landed = [height >= 3 for height in self.heights]
        self.heights = [
            0 if ends else height + int(action)
            for height, ends, action in zip(self.heights, landed, actions)
        ]
        no = [False] * self.num_envs
        infos = {
            "kinds": [type(action).__name__ for action in actions],
            "batch": type(actions).__name__,
        }
        return self._see(), [float(a) for a in actions], [h >= 3 for h in self.heights], no, infos

    def average(self, weight: float) -> float:
        """Return a number."""
        return weight * sum(self.heights) / self.num_envs

    def render(self) -> list[str]:
        """Show the heights."""
        return [str(height) for height in self.heights]

    def close(self) -> None:
        """Say so."""
        sys.stdout.write("the flock is gone\n")


class ShortFlock(Flock):
    """Returns nothing but an observation from a step."""

    def step(self, actions: Any) -> Any:
        """Return too few values."""
        return (self._see(),)


def make_flock(num_envs: int = 1, **kwargs: Any) -> Flock:
    """Make a vector, as a factory does."""
    return Flock(num_envs, **kwargs)


class VectorOfGym21(Flock):
    """A vector of gym 0.21: its reset takes no seed, and returns only the observations."""

    def reset(self) -> Any:  # type: ignore[override]
        """Start."""
        return super().reset()[0]


class VectorOfGym25(Flock):
    """A vector of gym 0.22 to 0.25: its reset returns infos only if it is told so."""

    def reset(self, *, seed: Any = None, return_info: bool = False, options: Any = None) -> Any:
        """Start."""
        return super().reset()[0]


def make_vector_of_gym(num_envs: int, version: int) -> Flock:
    """Make a vector, with the class of vectors that gym of this version has."""
    gym: Any = types.ModuleType("gym.vector")
    gym.VectorEnv = kind = {21: VectorOfGym21, 25: VectorOfGym25, 26: Flock}[version]
    sys.modules["gym.vector"] = gym
    return kind(num_envs)


class Stepless(Spaceless):
    """Cannot step."""

    step: Any = None


def make_nothing() -> None:
    """Forget to return the environment."""


def make_class() -> Any:
    """Return the class."""
    return Plain
