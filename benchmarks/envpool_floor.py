"""The least that a step of EnvPool in another process costs: its bytes over a Unix socket.

The learner gets the values that EnvPool returns, as arrays in the memory of the message. Nothing is
numbered, checked, or kept for a repetition.

With gymwire's codec instead, the messages are its frames, and each array has memory of its own.
There still is nothing around that: one session, one path, no timers, no rules about numbers.

    python -m benchmarks.envpool_floor NUM_ENVS raw|codec SOCKET
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
from gymnasium.spaces import Box, MultiDiscrete

from benchmarks.environments import envpool_cartpoles
from benchmarks.harness import Running, Side
from benchmarks.local import vector_steps
from benchmarks.processes import part
from gymwire.protocol.codec import NAME, name_of
from gymwire.protocol.spaces import compile
from gymwire.protocol.step_codec import StepCodec, compile_steps

# The arrays of a step, in the order in which they are sent.
_DTYPES = [np.dtype(one) for one in ("f4", "f4", "?", "?", "i4", "i4", "i4")]
_MAX_SIZE = 64 * 1024  # bytes of a frame


def floor(num_envs: int) -> Side:
    """Return a side that steps EnvPool's CartPoles in another process."""
    return Side(f"floor, EnvPool({num_envs})", partial(_open, num_envs, "raw"), num_envs)


def floor_with_codec(num_envs: int) -> Side:
    """Return such a side that encodes and decodes as gymwire does."""
    return Side(
        f"floor with codec, EnvPool({num_envs})", partial(_open, num_envs, "codec"), num_envs
    )


@contextlib.contextmanager
def _open(num_envs: int, wire: str) -> Iterator[Running]:
    with (
        tempfile.TemporaryDirectory(prefix="floor-") as folder,
        part(__name__, num_envs, wire, f"{folder}/socket") as (path, pid),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
    ):
        connection.connect(path)
        remote: Any = (_Remote if wire == "raw" else _RemoteWithCodec)(num_envs, connection)
        yield Running(vector_steps(remote), {"env": pid})


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


class _RemoteWithCodec(_Remote):
    """A vector in another process, with gymwire's frames."""

    def __init__(self, num_envs: int, connection: socket.socket) -> None:
        super().__init__(num_envs, connection)
        self._steps, self._count = _codec(num_envs), 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        self._count += 1
        name = name_of(1, self._count)
        frame = self._steps.encode_act(actions, name)
        assert frame is not None
        self._connection.send(frame)
        step = self._steps.decode_percept(self._connection.recv(_MAX_SIZE), name)
        assert step is not None
        return step


def _codec(num_envs: int) -> StepCodec:
    observation = Box(-np.inf, np.inf, (num_envs, 4), np.float32)
    action = MultiDiscrete(np.full(num_envs, 2))
    return compile_steps(compile(observation), compile(action), num_envs)


def _serve(num_envs: int, wire: str, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        envs = envpool_cartpoles(num_envs)
        envs.reset()
        print(path, flush=True)
        connection, _ = listener.accept()
    (_serve_raw if wire == "raw" else _serve_frames)(num_envs, envs, connection)


def _serve_raw(num_envs: int, envs: Any, connection: socket.socket) -> None:
    while actions := connection.recv(num_envs * 8):
        *arrays, infos = envs.step(np.frombuffer(actions, np.int64))
        arrays += infos["env_id"], infos["elapsed_step"], infos["players"]["env_id"]
        connection.send(b"".join([one.tobytes() for one in arrays]))


def _serve_frames(num_envs: int, envs: Any, connection: socket.socket) -> None:
    steps = _codec(num_envs)
    while data := connection.recv(_MAX_SIZE):
        frame = steps.encode_percept(envs.step(steps.decode_act(data)), data[NAME])
        assert frame is not None
        connection.send(bytes(frame))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
