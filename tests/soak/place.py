"""A broker with keys and a policy, and three env agents; everything that takes part has a key."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gymwire.protocol.security import keys
from gymwire.protocol.security.keys import KeyPair
from tests.chaos.fleet import Part, free_port, reachable, until

CARTPOLE, PICTURE, SLOW = "lab/cartpole", "lab/picture", "lab/slow"
START_S = 120.0  # how long a program may take to start on a busy machine
PICTURE_BYTES = 84 * 84 * 4
CHAIN = "tests.chaos.chain:ChainEnv"
RIGHTS = 'offer = ["m/*"]\nuse = ["lab/*", "m/*"]\n'
# The limits that docs/security.md recommends for strangers.
LIMITS = "sessions = 4\nrequests_in_flight = 8\nsteps_per_s = 500\nmessage_bytes = 1_000_000\n"


def compute_last() -> None:
    """Let this process compute only where no other one would, and give way to others at once.

    A process at nice 19 would keep a core for some milliseconds before it gives way.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Place:
    """Where a peer finds its keys and the broker. Every process of a run makes its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def pair(self, name: str) -> KeyPair:
        return keys.load(self.folder / f"{name}.key")

    def of(self, name: str) -> dict[str, Any]:
        """Return the keyword arguments with which this peer connects."""
        own, broker = self.folder / f"{name}.key", self.folder / "broker.pub"
        return {"key": str(own), "broker_key": str(broker)}


class Site(Place):
    """The programs. `strangers`: the names of the hostile peers, and whether each has limits."""

    def __init__(self, folder: Path, strangers: Mapping[str, bool]) -> None:
        self.port = free_port()
        super().__init__(folder, f"tcp://127.0.0.1:{self.port}")
        self._parts: list[Part] = []
        rights = {"lab": 'offer = ["lab/*"]\n', "alice": 'use = ["lab/*"]\n'}
        rights["bob"] = rights["alice"]
        rights |= {name: RIGHTS + LIMITS * limited for name, limited in strangers.items()}
        for name in ("broker", *rights):
            keys.generate(name, folder)
        text = "".join(
            f'[peer.{name}]\nkey = "{self.pair(name).public.decode()}"\n{each}\n'
            for name, each in rights.items()
        )
        (folder / "policy.toml").write_text(text)

    def start(self) -> None:
        """Start the programs, and wait until all are ready."""
        folder = self.folder
        self.broker = self._broker()
        self.agents = {
            "cartpole agent": self._agent("cartpole", CARTPOLE, "CartPole-v1", "never"),
            "picture agent": self._agent(
                *("picture", PICTURE, CHAIN, "tcp://127.0.0.1:*"),
                *("--env-kwargs", json.dumps({"size": PICTURE_BYTES})),
            ),
            "slow agent": self._agent(
                *("slow", SLOW, CHAIN, "never", "--threads", "2"),
                *("--env-kwargs", json.dumps({"ledger": str(folder / "ledger")})),
            ),
        }
        for agent in self.agents.values():
            agent.says("offering", 1, START_S)

    @property
    def measured(self) -> dict[str, Part]:
        """The programs that hostile peers must not harm."""
        return {"broker": self.broker, **self.agents}

    def part(self, name: str, *arguments: str) -> Part:
        """Start another program."""
        part = Part(self.folder / f"{name}.log", arguments)
        self._parts.append(part)
        return part

    def _broker(self) -> Part:
        files = ("--key", f"{self.folder}/broker.key", "--policy", f"{self.folder}/policy.toml")
        part = self.part("broker", "gymwire.broker", "--bind", self.url, "--lease", "2", *files)
        until(lambda: reachable(self.port), f"a broker at {self.url}", START_S)
        return part

    def _agent(self, name: str, address: str, env: str, direct: str, *options: str) -> Part:
        own = self.of("lab")
        # As on another host: without a local channel, libzmq queues what a busy loop does not read.
        host = ["tests.chaos.other_host"] if address == SLOW else []
        return self.part(
            *(f"agent-{name}", *host, "gymwire.env_agent", "--address", address, "--env", env),
            *("--broker", self.url, "--wait", str(START_S), "--direct", direct),
            *("--key", own["key"], "--broker-key", own["broker_key"]),
            *("--max-sessions", "64", *options),
        )

    def release(self) -> None:
        """End all programs."""
        for part in reversed(self._parts):
            part.release()


@contextlib.contextmanager
def site(folder: Path, strangers: Mapping[str, bool]) -> Iterator[Site]:
    """Make a site, and end it after the block in whatever state it is."""
    made = Site(folder, strangers)
    try:
        made.start()
        yield made
    finally:
        made.release()
