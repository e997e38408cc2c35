"""Which sides are measured together. Sides of gymwire's own belong into these lists."""

from __future__ import annotations

from benchmarks import local, peers
from benchmarks.floors import floor
from benchmarks.harness import Side

# What an act and a percept of CartPole take on the wire.
ACT_BYTES, PERCEPT_BYTES = 32, 100

OBSERVATION_BYTES = {
    "84×84×4 uint8": 84 * 84 * 4,
    "210×160×3 uint8": 210 * 160 * 3,
    "1 MiB float32": 1024 * 1024,
}


def cartpole() -> list[Side]:
    """One CartPole: the floors, the local ways, and the peers."""
    sides = [
        floor(shape, transport, ACT_BYTES, PERCEPT_BYTES)
        for transport in ("tcp", "ipc")
        for shape in ("direct", "routed")
    ]
    return [*sides, local.in_process(), local.async_vector(1), *peers.installed()[0]]


def observations(n_bytes: int) -> list[Side]:
    """One large observation in each reply."""
    return [
        floor(shape, transport, ACT_BYTES, n_bytes)
        for transport in ("tcp", "ipc")
        for shape in ("direct", "routed")
    ]


def vectors(num_envs: int) -> list[Side]:
    """A vector of CartPoles."""
    return [local.sync_vector(num_envs), local.async_vector(num_envs)]
