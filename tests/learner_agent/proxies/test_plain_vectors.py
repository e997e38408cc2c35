"""ProxyVectorEnv with env agents that have no vectors equals a local SyncVectorEnv."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire import ProxyVectorEnv
from gymwire.learner_agent.client import exchange
from gymwire.protocol.errors import (
    AttributeDenied,
    EnvironmentFailed,
    NoFreeSlot,
    RequestTimeout,
    ResetNeeded,
)
from gymwire.protocol.messages import Call
from tests.conformance.agents import RightAgent, serving
from tests.learner_agent.opcodes import Interruption
from tests.learner_agent.proxies.test_proxy_vector_env import LOCAL, OFFERS, assert_same_course
from tests.processes import PATIENCE_S, Programs, programs
from tests.sameness import assert_same
from tests.sampling import sampled
from tests.space_zoo import ZOO
from tests.vector_envs import Moody, VectorZooEnv

pytestmark = pytest.mark.usefixtures("patient")

EXPOSED = ["mood", "np_random", "action_masks"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    wanted = {name: env for name, env in OFFERS.items() if name in (*LOCAL, "zoo", "gated")}
    offers = [
        f'[[offer]]\naddress = "{name}"\nenv = "{env}"\nexpose = {EXPOSED}'
        for name, env in wanted.items()
    ]
    config: Path = tmp_path_factory.mktemp("plain_vectors") / "offers.toml"
    config.write_text("\n".join(offers))
    with programs() as started:
        _, url = started.broker()
        options = ("--broker", url, "--config", str(config), "--grace", "0")
        agent = started.start("tests.without_vectors", "serve", *options, "--log-format", "json")
        agent.wait_for("offering")
        yield url


def opened(broker: str, address: str, num_envs: int = 4, **kwargs: Any) -> ProxyVectorEnv:
    return ProxyVectorEnv(address, num_envs, broker, wait_s=PATIENCE_S, **kwargs)


@pytest.mark.parametrize(
    ("address", "mode", "num_envs"), sampled(product(LOCAL, AutoresetMode, [1, 4]), 5)
)
def test_every_step_is_that_of_a_sync_vector_env(
    broker: str, address: str, mode: AutoresetMode, num_envs: int
) -> None:
    local = SyncVectorEnv([LOCAL[address]] * num_envs, autoreset_mode=mode)
    with opened(broker, address, num_envs, autoreset_mode=mode) as remote:
        assert_same_course(local, remote, 210 if address == "taxi" else 60)
    local.close()


@pytest.mark.parametrize("name", sampled(ZOO, 3))
def test_every_space_is_batched_as_in_a_sync_vector_env(broker: str, name: str) -> None:
    # Gymnasium itself fails with batches of actions that have no parts.
    action = "discrete" if name in ("dict-empty", "tuple-empty") else name
    kwargs = {"observation": name, "action": action}
    local = SyncVectorEnv([partial(VectorZooEnv, name, action)] * 3)
    with opened(broker, "zoo", 3, env_kwargs=kwargs) as remote:
        assert_same_course(local, remote, 9)


@pytest.mark.parametrize("seed", [7, [4, None, 6, 1]], ids=["int", "list"])
def test_seeds_reach_each_environment(broker: str, seed: Any) -> None:
    with opened(broker, "moody") as remote:
        here, there = SyncVectorEnv([Moody] * 4).reset(seed=seed)[0], remote.reset(seed=seed)[0]
    seeded = [i for i in range(4) if isinstance(seed, int) or seed[i] is not None]
    assert_same(here[seeded], there[seeded])


def test_a_disabled_environment_must_be_reset(broker: str) -> None:
    with opened(broker, "moody", autoreset_mode="Disabled") as remote:
        remote.reset(seed=1)
        done = np.zeros(4, bool)
        while not done.any():
            _, _, terminated, truncated, _ = remote.step(np.zeros(4, int))
            done = terminated | truncated
        with pytest.raises(ResetNeeded, match=f"environment {done.argmax()}"):
            remote.step(np.zeros(4, int))
        remote.reset(options={"reset_mask": done})
        remote.step(np.zeros(4, int))


def test_attributes_are_those_of_each_environment(broker: str) -> None:
    local = SyncVectorEnv([Moody] * 3)
    with opened(broker, "moody", 3) as remote:
        assert_same(local.reset(seed=2), remote.reset(seed=2))
        assert_same(local.get_attr("mood"), remote.get_attr("mood"))
        for vector in (local, remote):
            vector.set_attr("mood", 0.5)
        assert remote.get_attr("mood") == (0.5, 0.5, 0.5)
        for vector in (local, remote):
            vector.set_attr("mood", [1.0, 2.0, 3.0])
        assert remote.get_attr("mood") == (1.0, 2.0, 3.0)
        assert_same(local.call("action_masks"), remote.call("action_masks"))
        draws = [one.random() for one in remote.np_random]
        assert draws == [one.random() for one in local.np_random]
        actions = np.zeros(3, int)
        assert_same(local.step(actions), remote.step(actions))
        with pytest.raises(AttributeDenied):
            remote.get_attr("render")


def test_pictures_are_those_of_each_environment(broker: str) -> None:
    local = SyncVectorEnv([partial(Moody, render_mode="ansi")] * 3)
    with opened(broker, "moody", 3, render_mode="ansi") as remote:
        local.reset(seed=2)
        remote.reset(seed=2)
        assert local.render() == remote.render()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_sessions_step_on_their_own(broker: str, mode: AutoresetMode) -> None:
    with opened(broker, "moody", 3, autoreset_mode=mode) as remote:
        remote.reset(seed=2)
        alone = Moody()
        alone.reset(seed=3)
        for _ in range(3):
            remote.send(np.array([2]), [1])
            here = alone.step(2)
            observations, rewards, terminated, truncated, infos = remote.recv()
            assert infos["env_id"].tolist() == [1]
            assert (rewards[0], terminated[0], truncated[0]) == here[1:4]
            if here[2] or here[3]:
                break
            assert_same(here[0], observations[0])


def test_a_step_goes_on_after_a_time_out(broker: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with opened(broker, "gated", 2, env_kwargs={"gate": str(gate)}) as remote:
        remote.reset()
        actions = np.array([0, 1])
        remote.step_async(actions)
        with pytest.raises(RequestTimeout):
            remote.step_wait(timeout_s=0.2)
        gate.touch()
        assert remote.step_wait()[0].tolist() == [1, 1]
        assert remote.step(actions)[0].tolist() == [2, 2]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_exception_from_outside_loses_no_step(
    broker: str, mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "RESEND_S", 0.02)  # an interrupt may come before a frame is sent
    local = SyncVectorEnv([Moody] * 3, autoreset_mode=mode)
    interrupted = 0
    with opened(broker, "moody", 3, autoreset_mode=mode) as remote:
        assert_same(local.reset(seed=4), remote.reset(seed=4))
        for step in range(27):
            actions = np.full(3, step % 4)
            here = local.step(actions)
            there: list[Any] = []
            interruption = Interruption(127 * step)
            if interruption.run(lambda: there.append(remote.step(actions))):  # noqa: B023 - now
                interrupted += 1
                there.append(remote.step(actions))  # waits on for the same step
            assert_same(here, there[0], f"step {step}, {interruption.where}")
            done = here[2] | here[3]
            if done.any() and mode is AutoresetMode.DISABLED:
                masks = {"reset_mask": done.copy()}, {"reset_mask": done.copy()}
                assert_same(local.reset(options=masks[0]), remote.reset(options=masks[1]))
    assert interrupted > 9


def test_an_error_names_its_environment(broker: str) -> None:
    with opened(broker, "gated", 3) as remote:
        remote.reset()
        with pytest.raises(EnvironmentFailed, match=r"environment 2 of 3.*nine is not to my taste"):
            remote.step(np.array([0, 0, 9]))
        assert remote.step(np.zeros(3, int))[0].tolist() == [2, 2, 1]


def test_some_of_the_environments_are_accessed(broker: str) -> None:
    with opened(broker, "moody", 3) as remote:
        remote.reset(seed=2)
        remote.access_each(Call("each-set", "mood", (4.0,)), [2, 0])
        remote.access_each(Call("each-set", "mood", (5.0,)), [1])
        found = remote.access_each(Call("each-get", "mood"), [1, 0, 1])
        assert found == [{"value": 5.0}, {"value": 4.0}, {"value": 5.0}]
        assert remote.access_each(Call("each-get", "action_masks"), [1]) == [{"method": True}]
        masks = remote.access_each(Call("each-call", "action_masks"), [2, 1])
        assert_same(masks, [remote.call("action_masks")[one] for one in (2, 1)])
        for name, has in (("mood", True), ("nowhere", False)):
            assert remote.access_each(Call("each-has", name), [0, 2]) == [has, has]
        wrapper = "gymnasium.wrappers.common:TimeLimit"
        assert remote.access_each(Call("each-wrapped", wrapper), [0]) == [False]
        with pytest.raises(AttributeDenied):
            remote.access_each(Call("each-get", "render"), [0])
        with pytest.raises(IndexError):
            remote.access_each(Call("each-get", "mood"), [3])


def test_an_environment_that_cannot_be_made_is_named(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match="no vectors"):
        opened(broker, "moody", env_kwargs={"no_such": 1})


def test_the_simple_agent_of_the_documentation_is_a_vector(programs: Programs) -> None:
    _, url = programs.broker()
    with serving(RightAgent, url), opened(url, "corridor", 3) as remote:
        assert isinstance(remote.single_action_space, gymnasium.spaces.Discrete)
        starts = remote.reset(seed=[1, 1, 2])[0]
        assert starts.shape == (3, 1)
        assert starts[0] == starts[1]
        ended = [False] * 3
        for _ in range(11):
            before = ended
            _, rewards, terminated, _, _ = remote.step(np.ones(3, int))
            ended = terminated.tolist()
            assert rewards.tolist() == [float(one) for one in ended]
            assert not (terminated & before).any()
        with pytest.raises(NoFreeSlot):
            ProxyVectorEnv("corridor", 5, url)
