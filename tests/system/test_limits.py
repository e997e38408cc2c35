"""A learner whose key has limits, over real processes: it waits, and learns what for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from gymwire import ProxyEnv
from gymwire.protocol.security import keys
from tests.processes import ROOT, programs
from tests.sameness import assert_same

LIMITS = {
    "slow": "requests_in_flight = 4\nsteps_per_s = 20\n",
    "free": "requests_in_flight = 4\nsteps_per_s = 1e6\nmessage_bytes = 100_000\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A broker that meters two learners, its URL, and the folder of all keys."""
    folder = tmp_path_factory.mktemp("limits")
    policy = ""
    for name in ("broker", "lab", *LIMITS):
        keys.generate(name, folder)
        public = keys.load(folder / f"{name}.key").public.decode("ascii")
        rights = f'use = ["*"]\n{LIMITS[name]}' if name in LIMITS else 'offer = ["*"]\n'
        policy += f'[peer.{name}]\nkey = "{public}"\n{rights}'
    (folder / "policy.toml").write_text(policy)
    with programs() as started:
        own = ("--key", str(folder / "broker.key"), "--policy", str(folder / "policy.toml"))
        _, url = started.broker("tcp://127.0.0.1:*", *own)
        lab = ("--key", str(folder / "lab.key"), "--broker-key", str(folder / "broker.pub"))
        started.env_agent(url, "--address", "cartpole", "--env", "CartPole-v1", *lab)
        yield url, folder


def check(site: tuple[str, Path], name: str) -> str:
    url, folder = site
    command = [sys.executable, "-m", "gymwire", "check", "cartpole", "--steps", "60"]
    command += ["--broker", url, "--key", str(folder / f"{name}.key")]
    command += ["--broker-key", str(folder / "broker.pub")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_waiting_for_a_rate_limit_does_not_count_as_network(
    site: tuple[str, Path],
) -> None:
    text = check(site, "slow")
    assert "Latency of 60 steps" in text
    assert "steps had to wait and are left out of this table: the broker's policy" in text


def test_within_its_limits_a_learner_sees_where_all_the_time_goes(site: tuple[str, Path]) -> None:
    text = check(site, "free")
    assert "Where the time goes (60 relayed steps)" in text
    assert "had to wait" not in text


def test_timed_steps_of_a_limited_learner_are_the_steps_that_they_time(
    site: tuple[str, Path],
) -> None:
    url, folder = site
    local = gymnasium.make("CartPole-v1")
    key, broker_key = folder / "slow.key", folder / "broker.pub"
    throttled = 0
    with ProxyEnv("cartpole", url, key=key, broker_key=broker_key) as env:
        assert_same(env.reset(seed=1), local.reset(seed=1))
        for number in range(12):
            step, timings = env.timed_step(number % 2)
            assert_same(step, local.step(number % 2))
            assert timings is not None
            assert timings.broker_us > 0
            assert not timings.is_direct
            throttled += timings.throttled
    assert throttled > 0
