"""Many environments in one process, with the small soft limit on open files that is usual."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.processes import ROOT, programs

# On a connection of its own, each takes 4 or 5 files, together more than the soft limit.
ENVS, SOFT = 80, 128
KWARGS = '{"is_slippery": false}'

LEARNER = """
import sys
from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection

url, number, shares = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "shared"
connections = [None if shares else BrokerConnection(url) for _ in range(number)]
envs = [ProxyEnv("lake", url, connection=one) for one in connections]
seen = [env.reset(seed=1)[0] for env in envs]
assert [int(env.step(1)[0]) for env in envs] == [4] * len(envs), seen
for env in envs:
    env.close()
"""
IN_LIMIT = """
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
limits = {"soft": hard, "both": int(sys.argv[2])}
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), limits[sys.argv[1]]))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


def learner(url: str, which: str, connections: str) -> subprocess.CompletedProcess[str]:
    """Run a learner with many environments, under a soft limit or a hard one, too."""
    program = ("-c", LEARNER, url, str(ENVS), connections)
    return subprocess.run(
        [sys.executable, "-c", IN_LIMIT, which, str(SOFT), *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.timeout(150)
def test_a_learner_may_have_more_environments_than_the_soft_limit_admits() -> None:
    with programs() as started:
        _, url = started.broker()
        options = ("--max-sessions", str(ENVS), "--direct", "never")
        started.env_agent(url, "lake", "FrozenLake-v1", "--env-kwargs", KWARGS, *options)
        for which, connections in (("soft", "own"), ("both", "shared")):
            done = learner(url, which, connections)
            assert done.returncode == 0, done.stderr
        refused = learner(url, "both", "own")
        assert refused.returncode == 1
        assert "cannot open enough files and sockets" in refused.stderr.splitlines()[-1]
