"""CartPole served by dm_env_rpc: its gRPC stream, its tensors, its dm_env adaptor.

    python -m benchmarks.peer_dm_env_rpc      (the server)

The names of dm_env_rpc are looked up as the program runs, since it is an extra and ships no types.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

from benchmarks.harness import Running, Side
from benchmarks.local import ENV_ID
from benchmarks.processes import part

ACTION, OBSERVATION, REWARD = 1, 1, 2


def side() -> Side:
    """One CartPole over dm_env_rpc, without a broker in between."""
    return Side("dm_env_rpc", _open)


@contextlib.contextmanager
def _open() -> Iterator[Running]:
    connection = import_module("dm_env_rpc.v1.connection")
    adaptor = import_module("dm_env_rpc.v1.dm_env_adaptor")
    with (
        part(__name__) as (address, pid),
        connection.create_secure_channel_and_connect(address, timeout=20) as channel,
    ):
        env, _ = adaptor.create_and_join_world(channel, {}, {})
        timestep = env.reset()

        def step() -> object:
            nonlocal timestep
            if timestep.last():
                timestep = env.reset()
            cart = timestep.observation["cart"]
            timestep = env.step({"push": np.int64(1 if cart[2] + 0.5 * cart[3] > 0 else 0)})
            return timestep

        yield Running(step, {"env": pid})
        env.close()


class CartPoleServicer:
    """dm_env_rpc's `Environment` service for one CartPole per stream."""

    def __init__(self) -> None:
        self._pb = import_module("dm_env_rpc.v1.dm_env_rpc_pb2")
        pb = self._pb
        self._specs = pb.ActionObservationSpecs(
            actions={ACTION: pb.TensorSpec(name="push", dtype=pb.INT64)},
            observations={
                OBSERVATION: pb.TensorSpec(name="cart", dtype=pb.FLOAT, shape=[4]),
                REWARD: pb.TensorSpec(name="reward", dtype=pb.DOUBLE),
            },
        )
        manager = import_module("dm_env_rpc.v1.spec_manager").SpecManager
        self._actions = manager(self._specs.actions)
        self._observations = manager(self._specs.observations)

    def Process(self, requests: Iterable[Any], context: object) -> Iterator[Any]:
        """Answer a stream of requests, one by one."""
        pb = self._pb
        with contextlib.closing(gymnasium.make(ENV_ID)) as env:
            running = False
            for request in requests:
                response = pb.EnvironmentResponse()
                match request.WhichOneof("payload"):
                    case "step":
                        running = self._step(env, request.step, response.step, running)
                    case "create_world":
                        response.create_world.world_name = ENV_ID
                    case "join_world":
                        response.join_world.specs.CopyFrom(self._specs)
                    case "reset":
                        running = False
                        response.reset.specs.CopyFrom(self._specs)
                    case "leave_world":
                        response.leave_world.SetInParent()
                    case "destroy_world":
                        response.destroy_world.SetInParent()
                    case other:
                        response.error.message = f"This server knows no {other}."
                yield response

    def _step(self, env: gymnasium.Env[Any, Any], asked: Any, answer: Any, running: bool) -> bool:
        """Step, or begin an episode where none is running; returns whether one is running now."""
        if running:
            action = self._actions.unpack(asked.actions)["push"]
            observation, reward, terminated, truncated, _ = env.step(int(action))
            ended = terminated or truncated
        else:
            observation, _ = env.reset()
            reward, ended = 0.0, False
        packed = self._observations.pack({"cart": observation, "reward": np.float64(reward)})
        for uid in asked.requested_observations:
            answer.observations[uid].CopyFrom(packed[uid])
        pb = self._pb
        answer.state = pb.TERMINATED if ended else pb.RUNNING
        return not ended


def _serve() -> None:
    grpc = import_module("grpc")
    services = import_module("dm_env_rpc.v1.dm_env_rpc_pb2_grpc")
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    services.add_EnvironmentServicer_to_server(CartPoleServicer(), server)
    port = server.add_secure_port("localhost:0", grpc.local_server_credentials())
    server.start()
    print(f"localhost:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    _serve()
