"""Fleets for tests: their file, their commands, and learners that check what they get."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

from gymwire import ProxyEnv
from gymwire.protocol.errors import EnvironmentLost
from tests.cli.reading import Screen, call

ADDRESS = "fleet/ledger"
SLOTS = 4  # of one agent
PATIENCE_S = 60.0

FLEET = """
[fleet]
name = "{name}"
broker = "{broker}"
grace_s = {grace_s}
{more}

[agents]
{agents}

[[offer]]
address = "{address}"
env = {env}
max_sessions = {slots}
"""


def write(
    folder: Path,
    broker: str,
    agents: str,
    *,
    grace_s: float = 5,
    more: str = "",
    env: str | None = None,
) -> Path:
    """Write a fleet.toml; return its path. `env`: the environment in the place of Ledger."""
    ledgers = folder / "ledgers"
    ledgers.mkdir(exist_ok=True)
    ledger = Path(__file__).with_name("ledger_env.py")
    usual = f'"{ledger}:Ledger"\nenv_kwargs = {{ folder = "{ledgers}" }}'
    path = folder / "fleet.toml"
    path.write_text(
        FLEET.format(
            name=f"lab-{folder.name}"[:40].strip("-").replace("_", "-").lower(),
            broker=broker,
            grace_s=grace_s,
            more=more,
            agents=agents,
            address=ADDRESS,
            env=usual if env is None else f'"{env}"',
            slots=SLOTS,
        )
    )
    return path


class Shell:
    """Runs `gymwire fleet` for one file and one engine, in this process."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path, self.engine = path, engine
        self.status, self.errors = -1, ""

    def run(self, action: str, *options: str) -> Any:
        """Run an action. Returns its JSON object; `status` is its exit status."""
        screen = Screen()
        self.status = call(
            screen, "fleet", action, str(self.path), "--on", self.engine, "--json", *options
        )
        self.errors = screen.error_file.getvalue()
        return screen.json

    def agents(self) -> dict[str, Any]:
        """Return the agents by their names."""
        return {one["name"]: one for one in self.run("status")["agents"]}

    def ready(self) -> int:
        """Return how many agents are ready."""
        return sum(one["state"] == "ready" for one in self.agents().values())


class Learner:
    """Plays episodes in a thread, and compares each with a local environment.

    Attributes:
        steps: how many were executed.
        lost: how many sessions were lost.
        texts: the errors of lost sessions.
    """

    def __init__(self, broker: str, seed: int, **options: Any) -> None:
        self.steps = self.lost = 0
        self.texts: list[str] = []
        self._broker, self._seed, self._options = broker, seed, options
        self._sent: dict[str, list[str]] = {}  # by ledger
        self._unanswered: set[str] = set()  # ledgers whose last entry has no answer
        self._ledger = ""  # of the present session
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self.news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with ProxyEnv(ADDRESS, self._broker, wait_s=PATIENCE_S, **self._options) as env:
                episode = 0
                while not self._stop.is_set():
                    episode += 1
                    self._play(env, 1000 * self._seed + episode)
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._failure = error

    def _play(self, env: Any, seed: int) -> None:
        local: Any = CartPoleEnv()
        rng, over = random.Random(seed), False
        expected, _ = local.reset(seed=seed)
        try:
            observation, info = env.reset(seed=seed)
            self._ledger = info["ledger"]
            sent = self._sent.setdefault(self._ledger, [])
            sent.append(f"reset {seed}")
            np.testing.assert_array_equal(observation, expected)
            while not over:
                action = rng.randrange(2)
                sent.append(f"step {action}")
                percept, same = env.step(action), local.step(action)
                np.testing.assert_array_equal(percept[0], same[0])
                assert percept[1:4] == same[1:4]
                over = bool(percept[2] or percept[3])
                self.steps += 1
                with self.news:
                    self.news.notify_all()
        except EnvironmentLost as error:
            self.lost += 1
            self.texts.append(str(error))
            self._unanswered.add(self._ledger)

    def wait_for_steps(self, count: int) -> None:
        """Wait for so many steps more."""
        goal = self.steps + count
        with self.news:
            done = self.news.wait_for(
                lambda: self.steps >= goal or not self._thread.is_alive(), PATIENCE_S
            )
        assert done, f"{self.steps} steps of {goal}"
        if self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Stop, and compare what was executed with what was sent: each request exactly once."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        if self._failure is not None:
            raise self._failure
        assert not self._thread.is_alive()
        assert self._sent
        for ledger, sent in self._sent.items():
            executed = Path(ledger).read_text().splitlines()
            if ledger in self._unanswered and len(executed) == len(sent) - 1:
                executed.append(sent[-1])  # the request that was lost with its agent
            if ledger in self._unanswered and len(executed) == len(sent) + 1:
                executed.pop()  # a reset whose answer was lost
            assert executed == sent, ledger
