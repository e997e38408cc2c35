"""The least that a step of EnvPool in another process costs: its bytes over a Unix socket.

The learner gets the values that EnvPool returns, as arrays in the memory of the message. Nothing is
numbered, checked, or kept for a repetition.

    python -m benchmarks.envpool_floor NUM_ENVS SOCKET
"""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.environments import envpool_cartpoles
from benchmarks.harness import Running, Side
from benchmarks.local import vector_steps
from benchmarks.processes import part

# The arrays of a step, in the order in which they are sent.
_DTYPES = [np.dtype(one) for one in ("f4", "f4", "?", "?", "i4", "i4", "i4")]


def floor(num_envs: int) -> Side:
    """Return a side that steps EnvPool's CartPoles in another process."""
    return Side(f"floor, EnvPool({num_envs})", partial(_open, num_envs), num_envs)


@contextlib.contextmanager
def _open(num_envs: int) -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="floor-") as folder,
        part(__name__, num_envs, f"{folder}/socket") as (path, pid),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        connection.connect(path)
        yield Running(vector_steps(_Remote(num_envs, connection)), {"env": pid})  # type: ignore[arg-type]


class _Remote:
    """A vector in another process."""

    def __init__(self, num_envs: int, connection: socket.socket) -> None:
        self._connection = connection
        self._num_envs = num_envs
        shapes = [(num_envs, 4), *[(num_envs,)] * 6]
        sizes = [np.empty(*one).nbytes for one in zip(shapes, _DTYPES, strict=True)]
        begins = np.cumsum([0, *sizes]).tolist()
        self._size = begins.pop()
        self._places = [*zip(shapes, _DTYPES, begins, strict=True)]

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """Return the observations of a first step. EnvPool takes no seed in a reset."""
        return self.step(np.zeros(self._num_envs, np.int64))[0], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        self._connection.send(actions.tobytes())
        data = bytearray(self._size)
        self._connection.recv_into(data)
        observation, reward, terminated, truncated, env_id, elapsed, player = [
            np.ndarray(shape, dtype, data, begin) for shape, dtype, begin in self._places
        ]
        infos = {"env_id": env_id, "players": {"env_id": player}, "elapsed_step": elapsed}
        return observation, reward, terminated, truncated, infos


def _serve(num_envs: int, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        envs = envpool_cartpoles(num_envs)
        envs.reset()
        print(path, flush=True)
        connection, _ = listener.accept()
    while actions := connection.recv(num_envs * 8):
        *arrays, infos = envs.step(np.frombuffer(actions, np.int64))
        arrays += infos["env_id"], infos["elapsed_step"], infos["players"]["env_id"]
        connection.send(b"".join([one.tobytes() for one in arrays]))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
