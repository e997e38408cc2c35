"""PettingZoo environments at an env agent are those of this process, bit for bit."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium import spaces

from gymwire import ProxyAECEnv, ProxyEnv, ProxyParallelEnv, ProxyVectorEnv
from gymwire.errors import AttributeDenied, EnvironmentFailed, ProtocolError
from tests.multi_agent_envs import Bare, Countdown, Hurried, Visitors, turns
from tests.processes import programs
from tests.sameness import assert_same

pytestmark = pytest.mark.usefixtures("patient")

OFFERS = {
    "visitors": "tests.multi_agent_envs:Visitors",
    "countdown": "tests.multi_agent_envs:Countdown",
    "bare": "tests.multi_agent_envs:Bare",
    "turns": "tests.multi_agent_envs:turns",
    "rps": "pettingzoo.classic:rps_v2",
    "lake-alone": "FrozenLake-v1",
}
WHERE = ["", "-there"]  # in the env agent, and in a process of its own
PROCESS = f'python = "{sys.executable}"\nmax_sessions = 8'
WRAP = 'tests.multi_agent_envs:Hurried{"cost": 0.5}'
everywhere = pytest.mark.parametrize("where", WHERE)


@pytest.fixture(scope="module")
def url(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with an env agent that offers environments with several agents."""
    config = tmp_path_factory.mktemp("zoo") / "offers.toml"
    lines = [
        f'[[offer]]\naddress="{name}{where}"\nenv="{env}"\nexpose=["greet", "length", "agents"]\n'
        f"{PROCESS if where else ''}"
        for name, env in OFFERS.items()
        for where in WHERE
    ]
    lines.append(f'[[offer]]\naddress="hurried"\nenv="{OFFERS["visitors"]}"\nwrap=[\'{WRAP}\']')
    config.write_text("\n".join(lines))
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config), "--direct", "tcp://127.0.0.1:*")
        yield broker_url


def play_parallel(env: Any, other: Any, seed: int) -> None:
    """Play an episode in both, with the same actions, and compare everything."""
    assert_same(env.reset(seed=seed), other.reset(seed=seed))
    while env.agents:
        assert env.agents == other.agents
        assert_same(env.state(), other.state())
        actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        assert_same(env.step(actions), other.step(actions))
    assert other.agents == []


@everywhere
@pytest.mark.parametrize("direct", ["never", "always"])
def test_a_parallel_env_is_that_of_this_process(url: str, direct: str, where: str) -> None:
    local, remote = Visitors(), ProxyParallelEnv(f"visitors{where}", url, direct=direct)
    assert remote.possible_agents == local.possible_agents
    assert remote.metadata["name"] == "visitors"
    assert remote.state_space == local.state_space
    for agent in local.possible_agents:
        assert remote.observation_space(agent) == local.observation_space(agent)
        assert remote.action_space(agent) == local.action_space(agent)
        assert remote.action_space(agent) is remote.action_space(agent)
        local.action_space(agent).seed(5)
    for seed in range(3):
        play_parallel(local, remote, seed)
    assert_same(local.reset(seed=1, options={"skip": 4}), remote.reset(seed=1, options={"skip": 4}))
    remote.close()


@everywhere
def test_the_random_generator_is_that_of_the_environment(url: str, where: str) -> None:
    local, remote = Visitors(), ProxyParallelEnv(f"visitors{where}", url)
    assert_same(local.reset(seed=1), remote.reset(seed=1))
    for number in range(4):
        assert local.np_random.random() == remote.np_random.random()
        actions = {agent: local.action_space(agent).sample() for agent in local.agents}
        assert_same(local.step(actions), remote.step(actions))
        if number == 2:
            local.np_random, remote.np_random = (np.random.default_rng(7) for _ in "ab")
    remote.close()
    with_none = ProxyAECEnv(f"countdown{where}", url)
    assert not hasattr(with_none, "np_random")
    with_none.close()


@everywhere
@pytest.mark.parametrize("proxy", [ProxyParallelEnv, ProxyAECEnv])
def test_exposed_attributes_are_those_of_the_environment(url: str, proxy: Any, where: str) -> None:
    env = proxy(f"visitors{where}", url)
    assert env.greet("mia", times=2) == "mia mia 12"
    assert env.unwrapped.length == 12
    env.length, env.mine, env.agents = 9, [1], ["own"]
    assert (env.greet("zoe"), env.mine, env.agents) == ("zoe 9", [1], ["own"])
    with pytest.raises(AttributeDenied, match="--expose count"):
        env.count  # noqa: B018 - reading it raises
    assert not hasattr(env, "_private")
    env.close()


@everywhere
@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_a_parallel_env_renders(url: str, mode: str, where: str) -> None:
    local, remote = Visitors(mode), ProxyParallelEnv(f"visitors{where}", url, render_mode=mode)
    for env in (local, remote):
        env.reset(seed=1)
    assert_same(local.render(), remote.render())
    remote.close()


def play_aec(env: Any, other: Any, seed: int) -> None:
    """Play an episode in both, with the same actions, and compare everything."""
    for one in (env, other):
        one.reset(seed=seed)
    for agent in env.agent_iter():
        assert env.agents == other.agents
        assert other.agent_selection == agent
        last = env.last()
        assert_same(last, other.last())
        for name in ("rewards", "terminations", "truncations", "infos", "_cumulative_rewards"):
            assert_same(dict(getattr(env, name)), getattr(other, name))
        for one in env.agents:
            assert_same(env.observe(one), other.observe(one))
        action = None if last[2] or last[3] else env.action_space(agent).sample()
        for one in (env, other):
            one.step(action)
    assert other.agents == []


@everywhere
def test_an_aec_env_is_that_of_this_process(url: str, where: str) -> None:
    local, remote = Countdown(), ProxyAECEnv(f"countdown{where}", url)
    assert remote.possible_agents == local.possible_agents
    local.action_space("zoe").seed(2)
    for seed in range(3):
        play_aec(local, remote, seed)
    remote.close()


def test_a_wrapper_of_pettingzoo_is_applied_at_the_env_agent(url: str) -> None:
    local, remote = Hurried(Visitors(), 0.5), ProxyParallelEnv("hurried", url)
    play_parallel(local, remote, 1)
    remote.close()


def test_an_environment_need_not_declare_a_render_mode(url: str) -> None:
    local, remote = Bare(), ProxyParallelEnv("bare", url)
    play_parallel(local, remote, 1)
    remote.close()


@everywhere
@pytest.mark.parametrize("address", ["turns", "visitors"])
def test_a_parallel_env_can_be_used_in_turns(url: str, address: str, where: str) -> None:
    local, remote = turns(length=5), ProxyAECEnv(address + where, url, env_kwargs={"length": 5})
    play_aec(local, remote, 3)
    remote.close()


@everywhere
def test_the_proxies_pass_the_tests_of_pettingzoo(url: str, where: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test

        aec = ProxyAECEnv(f"countdown{where}", url)
        parallel = ProxyParallelEnv(f"rps{where}", url)
        api_test(aec, num_cycles=50)
        parallel_api_test(parallel, num_cycles=50)
        seed_test(lambda: ProxyAECEnv(f"rps{where}", url), num_cycles=5)
        parallel_seed_test(lambda: ProxyParallelEnv(f"rps{where}", url), num_cycles=5)
        aec.close()
        parallel.close()


@everywhere
@pytest.mark.parametrize(
    ("proxy", "address", "text"),
    [
        (ProxyEnv, "visitors", "has several agents: open it with ProxyParallelEnv"),
        (ProxyEnv, "countdown", "has several agents: open it with ProxyAECEnv"),
        (ProxyParallelEnv, "countdown", "act one after another.*open it with ProxyAECEnv"),
        (ProxyParallelEnv, "lake-alone", "with one agent: open it with ProxyEnv"),
        (ProxyAECEnv, "lake-alone", "with one agent: open it with ProxyEnv"),
    ],
)
def test_the_wrong_proxy_is_named_with_the_right_one(
    url: str, proxy: Any, address: str, text: str, where: str
) -> None:
    with pytest.raises(EnvironmentFailed, match=text):
        proxy(address + where, url)


@everywhere
def test_a_vector_of_environments_with_several_agents_is_refused(url: str, where: str) -> None:
    with pytest.raises(EnvironmentFailed, match="has several agents"):
        ProxyVectorEnv(f"visitors{where}", 2, url)


class Remote:
    """What an env agent has answered, as a ProxyEnv returns it."""

    observation_space = action_space = spaces.Dict({"a": spaces.Discrete(2)})
    metadata: ClassVar[dict[str, Any]] = {}
    render_mode = None
    _options = SimpleNamespace(address="lab/zoo")
    _attributes = SimpleNamespace(exposed=())

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info

    def reset(self, **kwargs: Any) -> Any:
        return {"a": 0}, self.info

    def step(self, action: Any) -> Any:
        return {"a": 0}, {"a": 0.0}, {"a": False}, {"a": False}, self.info


RIGHT = {"agents": ["a"], "infos": {"a": {}}}
MAPS = {key: {"a": 0} for key in ("cumulative", "rewards", "terminations", "truncations")}
RIGHT_OF_AEC = {**RIGHT, **MAPS, "selected": "a"}


WRONG: list[dict[str, Any]] = [
    {"agents": 5}, {"agents": None}, {"agents": "a"}, {"agents": ["__class__"]},
    {"agents": [["a"]]}, {"infos": None}, {"infos": [1]},
]  # fmt: skip
WRONG_OF_AEC: list[dict[str, Any]] = [
    {"selected": "b"}, {"selected": None}, {"selected": ["a"]}, {"cumulative": 3}
]  # fmt: skip


@pytest.mark.parametrize("call", ["reset", "step"])
@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [(ProxyParallelEnv, RIGHT, wrong) for wrong in WRONG]
    + [(ProxyAECEnv, RIGHT_OF_AEC, wrong) for wrong in WRONG + WRONG_OF_AEC],
)
def test_a_malformed_info_names_the_env_agent(
    kind: Any, right: dict[str, Any], wrong: dict[str, Any], call: str
) -> None:
    env = kind.__new__(kind)
    args: list[Any] = [{}] if call == "step" else []
    env._use(Remote(right))
    getattr(env, call)(*args)
    assert env.agents == ["a"]
    for info in ({}, {**right, **wrong}):
        env._use(Remote(info))
        with pytest.raises(ProtocolError, match="env agent at 'lab/zoo' sent a malformed percept"):
            getattr(env, call)(*args)


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_an_agent_without_both_spaces_is_unknown(name: str) -> None:
    env, remote = ProxyParallelEnv.__new__(ProxyParallelEnv), Remote(RIGHT)
    setattr(remote, name, spaces.Dict({"b": spaces.Discrete(2)}))
    env._use(remote)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="sent a malformed percept"):
        env.step({})


@pytest.mark.parametrize("lacking", ["infos", "cumulative", "terminations", "truncations"])
def test_values_without_the_selected_agent_are_malformed(lacking: str) -> None:
    class Lacking(Remote):
        def step(self, action: Any) -> Any:
            maps = {**MAPS, lacking: {}}
            return 0, maps["rewards"], maps["terminations"], maps["truncations"], self.info

    env = ProxyAECEnv.__new__(ProxyAECEnv)
    env._use(Lacking({**RIGHT_OF_AEC, lacking: {}}))  # type: ignore[arg-type]
    env.step(0)
    with pytest.raises(ProtocolError, match="sent a malformed percept"):
        env.last()
