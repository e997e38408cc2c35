"""The least that a step of one environment in another process costs: bytes over a Unix socket.

The learner gets the values that the environment returns. Nothing is numbered, checked, or kept for
a repetition.

    python -m benchmarks.socket_floor ENV SOCKET
"""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.environments import CHEETAH_INFOS
from benchmarks.harness import Running, Side
from benchmarks.local import Kind, sampled_steps
from benchmarks.processes import part

_MAX_SIZE = 1024  # bytes of a message
_RESET = b"reset"


def floor(kind: Kind) -> Side:
    """Return a side that steps an environment in another process; its infos are HalfCheetah's."""
    return Side(f"{kind.name}, floor", partial(_open, kind))


@contextlib.contextmanager
def _open(kind: Kind) -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="floor-") as folder,
        part(__name__, kind.env, f"{folder}/socket") as (path, pid),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
        contextlib.closing(kind.make()) as local,
    ):
        connection.connect(path)
        yield Running(kind.stepper(_Remote(local, connection)), {"env": pid})


class _Remote:
    """An environment in another process."""

    def __init__(self, local: Any, connection: socket.socket) -> None:
        self._connection = connection
        self.action_space = local.action_space
        self._dtype = local.observation_space.dtype
        self._size = math.prod(local.observation_space.shape) * self._dtype.itemsize

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the first observation of an episode."""
        self._connection.send(_RESET)
        return np.frombuffer(self._connection.recv(_MAX_SIZE), self._dtype), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment."""
        self._connection.send(np.asarray(action, self.action_space.dtype).tobytes())
        data = self._connection.recv(_MAX_SIZE)
        observation = np.frombuffer(bytearray(data[: self._size]), self._dtype)
        reward, terminated, truncated, *infos = np.frombuffer(data[self._size :]).tolist()
        named = zip(CHEETAH_INFOS, infos, strict=False)
        return observation, reward, bool(terminated), bool(truncated), dict(named)


def _serve(name: str, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        env = Kind("", name, sampled_steps).make()
        env.reset(seed=1)
        print(path, flush=True)
        connection, _ = listener.accept()
    space = env.action_space
    while data := connection.recv(_MAX_SIZE):
        if data == _RESET:
            connection.send(env.reset()[0].tobytes())
            continue
        action = np.frombuffer(data, space.dtype).reshape(space.shape)
        observation, reward, terminated, truncated, infos = env.step(
            action if space.shape else action[()]
        )
        numbers = np.array([reward, terminated, truncated, *infos.values()], np.float64)
        connection.send(observation.tobytes() + numbers.tobytes())


if __name__ == "__main__":
    _serve(*sys.argv[1:])
