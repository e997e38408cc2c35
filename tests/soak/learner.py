"""`python -m tests.soak.learner FOLDER URL SEED`: times and checks honest steps.

The learner steps CartPole through the broker and a picture environment directly, in turn, and
compares all that they return with local copies. Each line of standard input ends a phase: the
learner prints a JSON object with the phase's step times and faults. The program ends when its
standard input ends.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from gymwire import ProxyEnv
from gymwire.protocol.errors import GymwireError
from tests.chaos.chain import ChainEnv
from tests.sameness import assert_same
from tests.soak.place import CARTPOLE, PICTURE, PICTURE_BYTES, Place

PAUSE_S = 0.002  # the computing of the learner between two steps


class Diary:
    """The step times in seconds and the faults of one phase. Two threads use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, list[float]] = {CARTPOLE: [], PICTURE: []}
        self._faults: list[str] = []
        self._current: tuple[str, float] | None = None

    def begin(self, address: str) -> None:
        self._current = (address, time.perf_counter())

    def end(self) -> None:
        with self._lock:
            assert self._current is not None
            address, start = self._current
            self._current = None
            self._times[address].append(time.perf_counter() - start)

    def fault(self, text: str) -> None:
        with self._lock:
            self._current = None
            self._faults.append(text[:300])

    def report(self) -> dict[str, Any]:
        """Return the phase that ends, with the step that is still running, and begin another."""
        with self._lock:
            times, faults = self._times, self._faults
            self._times, self._faults = {address: [] for address in times}, []
            current = self._current
            if current is not None:
                times[current[0]].append(time.perf_counter() - current[1])
        row: dict[str, Any] = {"faults": faults}
        for address, each in times.items():
            p50, p99 = np.percentile(each, (50, 99)) * 1000 if each else (0.0, 0.0)
            most = max(each, default=0.0) * 1000
            row[address] = {"steps": len(each), "p50": p50, "p99": p99, "most": most}
        return row


class Course:
    """One environment, remote and local, episode after episode."""

    def __init__(
        self, address: str, open_remote: Callable[[], ProxyEnv], local: Any, seed: int
    ) -> None:
        self.address = address
        self._open_remote = open_remote
        self._local = local
        self._random = random.Random(seed)
        self._remote: ProxyEnv | None = None
        self._over = True

    def go_on(self, diary: Diary) -> None:
        """Take one step, or begin an episode, remotely and locally. Raises AssertionError."""
        try:
            if self._remote is None:
                self._over = True
                self._remote = self._open_remote()
            if self._over:
                seed = self._random.randrange(2**31)
                assert_same(self._remote.reset(seed=seed), self._local.reset(seed=seed))
                self._over = False
                return
            action = self._random.randrange(int(self._local.action_space.n))
            diary.begin(self.address)
            step = self._remote.step(action)
            diary.end()
            assert_same(step, self._local.step(action))
            self._over = bool(step[2] or step[3])
        except (GymwireError, AssertionError) as error:
            diary.fault(f"{self.address}: {type(error).__name__}: {error}")
            self._drop()

    def _drop(self) -> None:
        remote, self._remote = self._remote, None
        if remote is not None:
            remote.close()


def write_reports(diary: Diary) -> None:
    for _ in sys.stdin:
        print(json.dumps(diary.report()), flush=True)  # noqa: T201 - the parent reads this
    os._exit(0)


def main() -> None:
    place, seed = Place(Path(sys.argv[1]), sys.argv[2]), int(sys.argv[3])
    credentials = place.of("alice")

    def remote(address: str, direct: str) -> Callable[[], ProxyEnv]:
        return lambda: ProxyEnv(address, place.url, direct=direct, **credentials)

    diary = Diary()
    cartpole = gymnasium.make("CartPole-v1").unwrapped
    courses = [
        Course(CARTPOLE, remote(CARTPOLE, "never"), cartpole, seed),
        Course(PICTURE, remote(PICTURE, "always"), ChainEnv(size=PICTURE_BYTES), seed + 1),
    ]
    for course in courses:
        course.go_on(diary)
    threading.Thread(target=write_reports, args=(diary,), daemon=True).start()
    print("learning", flush=True)  # noqa: T201 - the parent waits for this
    while True:
        for course in courses:
            course.go_on(diary)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
