"""An environment that sees every fault: its episode is a hash chain, and it counts what it does.

A step that is lost, doubled or out of order changes every observation after it, and the ledger, a
file that all instances append to, says how often each request was executed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

ACTIONS = 256


class ChainEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """Observations are SHA-256 digests of the seed, the label and all actions so far.

    `reset` takes the options `label` (str, names the episode in the ledger), `slow` (pairs of
    step and seconds; step 0 is the reset itself) and `hold` (bool: these seconds hold the
    interpreter's lock).

    Args:
        ledger: the file to append to; "" writes nothing.
        size: bytes of an observation, a multiple of 32.
    """

    def __init__(self, ledger: str = "", size: int = 32) -> None:
        self.observation_space = Box(0, 255, (size,), np.uint8)
        self.action_space = Discrete(ACTIONS)
        self.render_mode = None
        self._size = size
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if ledger else None
        self._instance = uuid.uuid4().hex
        self._executed = 0
        self._digest = b""
        self._label = ""
        self._step = 0
        self._slow: dict[int, float] = {}
        self._hold = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self._label = str(options.get("label", ""))
        self._slow = {int(step): float(s) for step, s in options.get("slow", ())}
        self._hold = bool(options.get("hold", False))
        self._step = 0
        self._digest = hashlib.sha256(f"{seed} {self._label}".encode()).digest()
        self._execute()
        return self._observation(), {"draw": float(self.np_random.random())}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self._step += 1
        self._digest = hashlib.sha256(self._digest + bytes([int(action)])).digest()
        self._execute()
        info = {"draw": float(self.np_random.random()), "step": self._step}
        return self._observation(), self._digest[1] / 8, self._digest[0] == 0, False, info

    def close(self) -> None:
        if self._ledger is not None:
            os.close(self._ledger)
            self._ledger = None

    def _execute(self) -> None:
        """Count this request before anything else: a doubled one must show, even if it fails."""
        self._executed += 1
        if self._ledger is not None:
            os.write(self._ledger, f"{self._instance} {self._executed} {self._label}\n".encode())
        slow_s = self._slow.get(self._step, 0.0)
        if slow_s and self._ledger is not None:  # the copy beside the learner need not wait
            if self._hold:
                ctypes.PyDLL(None).usleep(ctypes.c_uint(int(slow_s * 1e6)))
            else:
                time.sleep(slow_s)

    def _observation(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._digest * (self._size // 32), np.uint8).copy()


class Verdict(NamedTuple):
    """What the ledger says of a run. `faults`: sentences, none if every request came once."""

    executed: int
    instances: int
    faults: list[str]


def judge(ledger: Path, answered: dict[str, int], lost: dict[str, int]) -> Verdict:
    """Compare the ledger with what learners had answered.

    Args:
        ledger: what the instances wrote.
        answered: requests answered, by the label of an episode that ended in order.
        lost: the same of episodes whose environment was lost: one more may have been executed.
    """
    by_instance: dict[str, int] = defaultdict(int)
    by_label: dict[str, int] = defaultdict(int)
    homes: dict[str, set[str]] = defaultdict(set)
    faults = []
    for line in ledger.read_text().splitlines():
        instance, number, label = line.split(" ")
        if int(number) != by_instance[instance] + 1:
            faults.append(f"{label}: execution {number} came after {by_instance[instance]}.")
        by_instance[instance] = int(number)
        by_label[label] += 1
        homes[label].add(instance)
    faults += [
        f"{label} ran in {len(homes[label])} sessions." for label in homes if len(homes[label]) > 1
    ]
    for label, count in answered.items():
        if by_label[label] != count:
            faults.append(f"{label}: {count} requests answered, {by_label[label]} executed.")
    for label, count in lost.items():
        if by_label[label] not in (count, count + 1):
            faults.append(f"{label}, lost: {count} answered, {by_label[label]} executed.")
    return Verdict(sum(by_instance.values()), len(by_instance), faults)
