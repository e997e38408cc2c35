"""With on_lost="truncate" a lost env agent ends episodes, not the training."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from gymwire import ProxyVectorEnv
from gymwire.protocol.errors import ConfigurationError, EnvironmentLost, ResetNeeded
from tests.processes import Program, Programs
from tests.sampling import sampled, thorough

NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
DIES = 8  # the action with which a Gated environment takes its process along
Step = tuple[Any, Any, Any, Any, dict[str, Any]]


def offer(programs: Programs, url: str, env: str = "Gated", *options: str) -> Program:
    offered = ("--address", "mortal", "--env", f"tests.vector_envs:{env}", "--threads", "1")
    return programs.env_agent(url, *offered, *options)


def opened(programs: Programs, mode: AutoresetMode = NEXT, **options: Any) -> ProxyVectorEnv:
    """Four environments in two sessions at two env agents, which have done two steps."""
    _, url = programs.broker()
    for _ in range(2):
        offer(programs, url)
    options = {"sessions": 2, **options}
    remote = ProxyVectorEnv("mortal", 4, url, autoreset_mode=mode, on_lost="truncate", **options)
    assert remote.reset(seed=1)[0].tolist() == [0] * 4
    for count in (1, 2):
        assert remote.step([count + 1] * 4)[0].tolist() == [count] * 4
    return remote


def assert_truncated(step: Step, who: list[bool], observations: list[int]) -> None:
    assert step[0].tolist() == observations
    assert step[1].dtype == np.float64
    assert step[2].tolist() == [False] * len(who)
    assert step[3].tolist() == who
    infos = step[4]
    assert infos["env_lost"].dtype == infos["_env_lost"].dtype == np.bool_
    assert infos["env_lost"].tolist() == infos["_env_lost"].tolist() == who


def test_in_next_step_mode_the_lost_ones_restart_in_the_next_step(programs: Programs) -> None:
    remote = opened(programs)
    step = remote.step([5, 5, DIES, 5])
    assert_truncated(step, [False, False, True, True], [3, 3, 2, 2])
    assert step[1].tolist() == [5, 5, 0, 0]
    assert step[4]["_action"].tolist() == [True, True, False, False]
    observations, rewards, terminated, truncated, infos = remote.step([6, 6, 6, 6])
    assert observations.tolist() == [4, 4, 0, 0]
    assert rewards.tolist() == [6, 6, 0, 0]
    assert not terminated.any()
    assert not truncated.any()
    assert "env_lost" not in infos
    observations, rewards, *_ = remote.step([7, 7, 7, 7])
    assert (observations.tolist(), rewards.tolist()) == ([5, 5, 1, 1], [7, 7, 7, 7])
    remote.close()


def test_in_same_step_mode_the_lost_ones_have_restarted_already(programs: Programs) -> None:
    remote = opened(programs, SAME)
    step = remote.step([5, 5, DIES, 5])
    assert_truncated(step, [False, False, True, True], [3, 3, 0, 0])
    infos = step[4]
    assert infos["final_obs"].tolist() == [None, None, 2, 2]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == [False] * 2 + [True] * 2
    assert infos["final_info"]["env_lost"].tolist() == [False, False, True, True]
    observations, rewards, _, truncated, infos = remote.step([7, 7, 7, 7])
    assert (observations.tolist(), rewards.tolist()) == ([4, 4, 1, 1], [7, 7, 7, 7])
    assert not truncated.any()
    assert "env_lost" not in infos
    remote.close()


def test_in_disabled_mode_the_lost_ones_wait_for_their_reset(programs: Programs) -> None:
    remote = opened(programs, DISABLED)
    step = remote.step([5, 5, DIES, 5])
    assert_truncated(step, [False, False, True, True], [3, 3, 2, 2])
    with pytest.raises(ResetNeeded, match="environments 2 to 3 have ended"):
        remote.step([6, 6, 6, 6])
    with pytest.raises(ResetNeeded, match="True for all of them"):
        remote.reset(options={"reset_mask": np.array([False, False, True, False])})
    assert remote.reset(options={"reset_mask": step[3].copy()})[0].tolist() == [3, 3, 0, 0]
    assert remote.step([7, 7, 7, 7])[0].tolist() == [4, 4, 1, 1]
    remote.close()


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_a_vector_in_one_session_continues_at_another_agent(
    programs: Programs, mode: AutoresetMode
) -> None:
    remote = opened(programs, mode, sessions=1)
    observations = remote.step([3] * 4)[0]
    observations[:] = 99  # the caller's own: what was observed is known all the same
    step = remote.step([DIES] * 4)
    assert_truncated(step, [True] * 4, [3 if mode is NEXT else 0] * 4)
    if mode is NEXT:
        assert remote.step([7] * 4)[0].tolist() == [0] * 4
    else:
        assert step[4]["final_obs"].tolist() == [3] * 4
    assert remote.step([7] * 4)[0].tolist() == [1] * 4
    remote.close()


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_stragglers_are_truncated_too(programs: Programs, mode: AutoresetMode) -> None:
    remote = opened(programs, mode)
    remote.send([5, 5], env_ids=[0, 1])
    remote.send([DIES, 5], env_ids=[2, 3])
    seen: dict[int, bool] = {}
    while len(seen) < 4:
        *_, truncated, infos = remote.recv()
        seen |= dict(zip(infos["env_id"].tolist(), truncated.tolist(), strict=True))
    assert seen == {0: False, 1: False, 2: True, 3: True}
    remote.send([7, 7], env_ids=[2, 3])
    assert remote.recv(2)[0].tolist() == ([0, 0] if mode is NEXT else [1, 1])
    remote.close()


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_without_another_agent_the_loss_is_an_error_until_one_comes(
    programs: Programs, mode: AutoresetMode
) -> None:
    _, url = programs.broker()
    offer(programs, url)
    remote = ProxyVectorEnv(
        "mortal", 2, url, autoreset_mode=mode, on_lost="truncate", timeout_s=1.0, wait_s=600.0
    )
    remote.reset()
    remote.step([2, 2])
    if mode is NEXT:
        assert remote.step([DIES, 2])[3].all()
    with pytest.raises(EnvironmentLost, match="no other agent could take their place"):
        remote.step([DIES, 2])
    offer(programs, url)
    observations, _, _, truncated, _ = remote.step([DIES, 2])
    assert observations.tolist() == [0, 0]
    assert truncated.all() == (mode is SAME)
    assert remote.step([2, 2])[0].tolist() == [1, 1]
    remote.close()


@pytest.mark.parametrize("mode", [NEXT, thorough(SAME), thorough(DISABLED)])
def test_a_reset_after_a_loss_opens_new_sessions(programs: Programs, mode: AutoresetMode) -> None:
    _, url = programs.broker()
    agent = offer(programs, url)
    remote = ProxyVectorEnv(
        "mortal", 4, url, sessions=2, autoreset_mode=mode, on_lost="truncate", timeout_s=20.0
    )
    remote.reset()
    offer(programs, url)
    agent.kill()
    assert remote.reset(seed=3)[0].tolist() == [0] * 4
    assert remote.step([2] * 4)[0].tolist() == [1] * 4
    remote.close()


def test_the_infos_of_the_new_episode_stand_beside_those_of_the_loss(programs: Programs) -> None:
    _, url = programs.broker()
    agent = offer(programs, url, "Moody")
    remote = ProxyVectorEnv("mortal", 8, url, autoreset_mode=SAME, on_lost="truncate")
    last, _ = remote.reset(seed=1)
    kept = last.copy()
    offer(programs, url, "Moody")
    agent.kill()
    observations, *_, infos = remote.step([1] * 8)
    assert np.array_equal(np.stack(infos["final_obs"]), kept)
    assert not np.array_equal(observations, kept)
    of_loss = {"final_obs", "final_info", "env_lost"}
    own = {key for key in infos if not key.startswith("_")} - of_loss  # which ones is left to luck
    assert own
    assert all(infos[f"_{key}"].any() for key in own)
    remote.close()


@pytest.mark.parametrize(("num_envs", "mode"), sampled(product([1, 4], [NEXT, SAME, DISABLED]), 2))
def test_plain_sessions_are_truncated_and_replaced_one_by_one(
    programs: Programs, mode: AutoresetMode, num_envs: int
) -> None:
    _, url = programs.broker()
    options = ("mortal", "tests.vector_envs:Gated", "--broker", url, "--log-format", "json")
    agents: list[Program] = []

    def serve() -> None:
        agents.append(programs.start("tests.without_vectors", "serve", *options))
        agents[-1].wait_for("offering")

    for _ in range(2 if num_envs > 1 else 1):
        serve()
    remote = ProxyVectorEnv("mortal", num_envs, url, autoreset_mode=mode, on_lost="truncate")
    assert remote.reset(seed=1)[0].tolist() == [0] * num_envs
    observations = remote.step([2] * num_envs)[0]
    assert observations.tolist() == [1] * num_envs
    observations[:] = 99  # the caller's own: what was observed is known all the same
    if num_envs == 1:
        serve()
    agents[0].kill()
    step = remote.step([5] * num_envs)
    who = step[3].tolist()
    assert sum(who) == max(1, num_envs // 2)
    assert_truncated(step, who, [(0 if mode is SAME else 1) if one else 2 for one in who])
    assert step[1].tolist() == [0.0 if one else 5.0 for one in who]
    before = step[0].copy()
    if mode is SAME:
        assert step[4]["final_obs"].tolist() == [1 if one else None for one in who]
        assert step[4]["final_info"]["env_lost"].tolist() == who
    elif mode is NEXT:
        before, *_, infos = remote.step([7] * num_envs)
        assert before.tolist() == [0 if one else 3 for one in who]
        assert "env_lost" not in infos
    else:
        with pytest.raises(ResetNeeded, match="have ended"):
            remote.step([7] * num_envs)
        before, _ = remote.reset(options={"reset_mask": np.array(who)})
        assert before.tolist() == [0 if one else 2 for one in who]
    assert remote.step([7] * num_envs)[0].tolist() == (before + 1).tolist()
    remote.close()


def test_an_unknown_on_lost_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='"raise" or "truncate"'):
        ProxyVectorEnv("mortal", 2, "tcp://127.0.0.1:1", on_lost="replay")
