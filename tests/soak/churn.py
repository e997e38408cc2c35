"""`python -m tests.soak.churn FOLDER URL SEED`: learners that come, step, and close or are killed.

Each is a process of its own. At the end of standard input the program prints a JSON object: how
many learners closed their sessions, were killed, and failed.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import gymnasium

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from tests.sameness import assert_same
from tests.soak.place import CARTPOLE, Place

AT_ONCE = 3
BETWEEN_S = 0.3
WAIT_S = 30.0  # for the broker: on a busy machine a learner may get no core for seconds
HANGS_S = 90.0  # a learner that takes longer hangs


class Learner(NamedTuple):
    """One of the processes. `kill_at`: monotonic seconds."""

    dies: bool
    kill_at: float


def learn(place: Place, seed: int, *, for_s: float) -> None:
    """List the offers, open a session, check steps for a while, and close it."""
    end = time.monotonic() + for_s
    rng = random.Random(seed)
    local = gymnasium.make("CartPole-v1").unwrapped
    connection = BrokerConnection(place.url, wait_s=WAIT_S, **place.of("bob"))
    assert any(row["address"] == CARTPOLE for row in connection.find())
    with ProxyEnv(CARTPOLE, connection=connection, direct="never") as env:
        assert_same(env.reset(seed=seed), local.reset(seed=seed))
        while time.monotonic() < end:
            action = rng.randrange(2)
            step = env.step(action)
            assert_same(step, local.step(action))
            if step[2]:
                assert_same(env.reset(), local.reset())
            time.sleep(0.02)
    connection.close()


def start(place: Place, seed: int, *, for_s: float) -> int:
    """Fork a learner; return its process id. This process has no thread of libzmq to lose."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        learn(place, seed, for_s=for_s)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, only this process ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    place, rng = Place(Path(sys.argv[1]), sys.argv[2]), random.Random(int(sys.argv[3]))
    running: dict[int, Learner] = {}  # by process id
    count = {"closed": 0, "killed": 0, "failed": 0}
    stopping = False
    while running or not stopping:
        if len(running) < AT_ONCE and not stopping:
            dies = rng.random() < 0.3
            pid = start(place, rng.randrange(2**31), for_s=HANGS_S if dies else rng.random() * 2)
            after_s = 0.3 + rng.random() * 2 if dies else HANGS_S
            running[pid] = Learner(dies, time.monotonic() + after_s)
        if stopping:
            time.sleep(BETWEEN_S)
        else:
            stopping = bool(select.select([sys.stdin], [], [], BETWEEN_S)[0])
        for pid, learner in list(running.items()):
            if time.monotonic() >= learner.kill_at:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                expected = -signal.SIGKILL if learner.dies else 0
                as_expected = os.waitstatus_to_exitcode(status) == expected
                count[("killed" if learner.dies else "closed") if as_expected else "failed"] += 1
    print(json.dumps(count), flush=True)  # noqa: T201 - the parent reads this


if __name__ == "__main__":
    main()
