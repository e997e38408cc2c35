"""Other systems that serve the same CartPole, where the extra `[peers]` is installed."""

from __future__ import annotations

from importlib.util import find_spec

from benchmarks import peer_dm_env_rpc, peer_openenv
from benchmarks.harness import Side

PEERS = {"dm_env_rpc": peer_dm_env_rpc.side, "openenv": peer_openenv.side}


def installed() -> tuple[list[Side], list[str]]:
    """Return the peers that can be measured, and a line about each that cannot."""
    sides = [side() for package, side in PEERS.items() if find_spec(package)]
    missing = [
        f"{package} is not installed and is left out; to have it: ./run pip install -e '.[peers]'"
        for package in PEERS
        if not find_spec(package)
    ]
    return sides, missing
