"""Every Gymnasium space in many shapes, and an environment that uses them."""

from __future__ import annotations

import hashlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)

_INF = np.inf


def _deep(levels: int) -> Space[Any]:
    space: Space[Any] = Discrete(3)
    for level in range(levels):
        space = Tuple([space]) if level % 2 else Dict({"inner": space})
    return space


def _boxes() -> dict[str, Space[Any]]:
    boxes: dict[str, Space[Any]] = {}
    for name in ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]:
        boxes[f"box-{name}"] = Box(0, 100, (2, 3), dtype=np.dtype(name))
    for name in ["float16", "float32", "float64"]:
        boxes[f"box-{name}"] = Box(-1.5, 2.5, (2, 3), dtype=np.dtype(name))
    bounds = np.array([-_INF, 0, -1], np.float32), np.array([0, _INF, 1], np.float32)
    false, true = np.zeros(3, np.bool_), np.ones(3, np.bool_)
    boxes |= {
        "box-bool": Box(false, true, dtype=np.bool_),  # type: ignore[arg-type]
        "box-unbounded": Box(-_INF, _INF, (4,)),
        "box-unbounded-int": Box(-_INF, _INF, (2,), dtype=np.int32),
        "box-half-bounded-int": Box(0, _INF, (2,), dtype=np.int32),
        "box-per-element": Box(*bounds),
        "box-scalar": Box(-1, 1, ()),
        "box-empty": Box(-1, 1, (0, 3)),
        "box-widest": Box(0, 2**64 - 1, (3,), dtype=np.uint64),
        "box-image": Box(0, 255, (84, 84, 4), dtype=np.uint8),
        "box-large-float": Box(-1, 1, (40, 50), dtype=np.float64),
        "box-big-endian": Box(-1, 1, (3,), dtype=np.dtype(">f4")),
    }
    return boxes


def _leaves() -> dict[str, Space[Any]]:
    return {
        "discrete": Discrete(5),
        "discrete-start": Discrete(4, start=-2),
        "discrete-int8": Discrete(7, dtype=np.int8),
        "discrete-uint64": Discrete(9, start=2**62, dtype=np.uint64),
        "multi-discrete": MultiDiscrete([3, 4, 5]),
        "multi-discrete-same": MultiDiscrete([3, 3, 3], dtype=np.uint8),
        "multi-discrete-start": MultiDiscrete(
            np.array([[2, 3], [4, 5]]), np.dtype("int32"), start=np.array([[0, 1], [-1, 2]])
        ),
        "multi-binary": MultiBinary(6),
        "multi-binary-list": MultiBinary([4]),
        "multi-binary-nd": MultiBinary((2, 3, 2)),
        "text": Text(8),
        "text-empty-allowed": Text(3, min_length=0, charset="zyx"),
        "text-unicode": Text(5, charset="äß語😀\0"),
    }


def _composites() -> dict[str, Space[Any]]:
    # Never one object in two places: built again, it would be two objects with two generators.
    def box() -> Box[Any]:
        return Box(-1, 1, (2,))

    def text() -> Text:
        return Text(4)

    return {
        "dict": Dict({"b": Box(0, 1, (3,)), "a": Discrete(2)}),
        "dict-order": Dict([("z", Discrete(2)), ("a", box())]),
        "dict-int-keys": Dict({2: Discrete(2), 1: box()}),  # type: ignore[dict-item]
        "dict-empty": Dict({}),
        "dict-image": Dict({"i": Box(0, 255, (64, 64, 3), dtype=np.uint8), "n": Discrete(3)}),
        "tuple": Tuple([Discrete(3), box(), text()]),
        "tuple-empty": Tuple([]),
        "sequence": Sequence(Box(0, 1, (2,))),
        "sequence-stacked": Sequence(Box(0, 1, (2,)), stack=True),
        "sequence-dict": Sequence(Dict({"x": Discrete(3), "y": text()})),
        "sequence-dict-stacked": Sequence(Dict({"x": Discrete(3), "y": box()}), stack=True),
        "graph": Graph(Box(-1, 1, (3,)), Discrete(4)),
        "graph-without-edges": Graph(Discrete(3), None),
        "one-of": OneOf([Discrete(3), box(), text()]),
        "nested": Dict(
            {
                "t": Tuple([box(), Dict({"m": MultiBinary(3), "s": Sequence(Discrete(2))})]),
                "o": OneOf([Tuple([text(), Discrete(2)]), Graph(box(), None)]),
                "d": Dict({"d": Dict({"d": MultiDiscrete([2, 3])})}),
            }
        ),
        "deep": _deep(60),
    }


ZOO: dict[str, Space[Any]] = {**_boxes(), **_leaves(), **_composites()}


def canonical(value: Any) -> str:
    """Return text that differs whenever two values differ in type, dtype, shape, order or bits."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{kind}({value.dtype.str},{value.shape},{value.tobytes().hex()})"
    if isinstance(value, np.generic):
        return f"{kind}({value.dtype.str},{value.tobytes().hex()})"
    if isinstance(value, dict):
        items = (f"{canonical(key)}:{canonical(item)}" for key, item in value.items())
        return f"{kind}{{{','.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"{kind}[{','.join(map(canonical, value))}]"
    return f"{kind}({value.hex() if isinstance(value, float) else repr(value)})"


class ZooEnv(gymnasium.Env[Any, Any]):
    """Observes seeded samples of one space of the zoo and digests actions of another.

    `observation` and `action` are names in `ZOO`. Every seventh step terminates the episode; the
    reward's type and the info's values go through all serializable types.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(self, observation: str = "dict", action: str = "discrete") -> None:
        # Fresh copies: two environments must not draw from one generator.
        zoo = {**_boxes(), **_leaves(), **_composites()}
        self.observation_space = zoo[observation]
        self.action_space = {**_boxes(), **_leaves(), **_composites()}[action]
        self._steps = 0
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self.observation_space.seed(int(self.np_random.integers(2**31 - 1)))
            self._seeded = True
        self._steps = 0
        return self.observation_space.sample(), {"options": options, "steps": 0}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        draw = float(self.np_random.normal())
        reward = [draw, np.float32(draw), np.float64(draw), int(100 * draw)][self._steps % 4]
        info: dict[Any, Any] = {
            "digest": hashlib.sha256(canonical(action).encode()).hexdigest(),
            "scalar": [np.int16(self._steps), np.float16(draw), np.bool_(True), np.uint64(2**63)][
                self._steps % 4
            ],
            "tuple": (self._steps, (None, "x"), ()),
            "nested": {"array": np.full((2, 2), draw), 3: [np.arange(self._steps, dtype=np.int32)]},
            "big": -(2**70) * self._steps,
            "none": None,
            "bytes": bytes(range(self._steps)),
            ("a", 1): np.array(["é", "ab"]),
            "not finite": [float("nan"), float("-inf"), -0.0],
        }
        return self.observation_space.sample(), reward, self._steps % 7 == 0, False, info
