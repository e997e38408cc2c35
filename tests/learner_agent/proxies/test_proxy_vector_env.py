"""ProxyVectorEnv equals the vector that Gymnasium makes locally, over real processes."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol.errors import (
    AttributeDenied,
    BatchSizeError,
    ConfigurationError,
    EncodingError,
    EnvironmentClosed,
    EnvironmentFailed,
    EnvironmentLost,
    MoveError,
    RequestTimeout,
    ResetNeeded,
)
from gymwire.protocol.messages import Message
from tests.chaos.fleet import until
from tests.processes import Programs, programs
from tests.quick_attributes import has_quick_attributes
from tests.sameness import assert_same
from tests.sampling import sampled
from tests.space_zoo import ZOO
from tests.time_limits import times_out
from tests.vector_envs import Counters, Moody, VectorZooEnv

pytestmark = pytest.mark.usefixtures("patient")

# v3 or v4, as Gymnasium's version goes.
TAXI = max(env_id for env_id in gymnasium.registry if env_id.startswith("Taxi-v"))
MADE = "gymwire:gymwire/Proxy-v0"
Vector = VectorEnv[Any, Any, Any]
OFFERS = {
    "cartpole": "CartPole-v1",
    "taxi": TAXI,
    "frozen-lake": "FrozenLake-v1",
    "moody": "tests.vector_envs:Moody",
    "zoo": "tests.vector_envs:VectorZooEnv",
    "gated": "tests.vector_envs:Gated",
    "sociable": "tests.vector_envs:Sociable",
    "counters": "tests.vector_envs:Counters",
    "made-counters": "tests.vector_envs:make_counters",
}
SYNC = {"vectorization_mode": "sync"}
LOCAL: dict[str, Any] = {
    "cartpole": partial(gymnasium.make, "CartPole-v1"),
    "taxi": partial(gymnasium.make, TAXI),
    "frozen-lake": partial(gymnasium.make, "FrozenLake-v1"),
    "moody": Moody,
}


@pytest.fixture(scope="module")
def broker(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    offers = [
        f'[[offer]]\naddress = "{a}-v"\nenv = "{e}"\nexpose = ["mood"]' for a, e in OFFERS.items()
    ]
    config: Path = tmp_path_factory.mktemp("proxy_vector_env") / "offers.toml"
    config.write_text("\n".join(offers))
    with programs() as started:
        started.env_agent(broker_url, "--config", str(config))
        yield broker_url


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Return the file whose creation releases the environments that wait at action 1."""
    return tmp_path / "gate"


def opened(broker: str, address: str, num_envs: int = 7, **kwargs: Any) -> ProxyVectorEnv:
    return ProxyVectorEnv(f"{address}-v", num_envs, broker, **kwargs)


def gated(broker: str, gate: Path, num_envs: int = 4, **kwargs: Any) -> ProxyVectorEnv:
    return opened(broker, "gated", num_envs, env_kwargs={"gate": str(gate)}, **kwargs)


def assert_same_course(local: Vector, remote: Vector, steps: int, seed: Any = 3) -> None:
    """Fail unless both return the same at every step. DISABLED: reset what has ended."""
    assert remote.observation_space == local.observation_space
    assert remote.action_space == local.action_space
    assert remote.single_observation_space == local.single_observation_space
    assert remote.single_action_space == local.single_action_space
    assert remote.metadata == local.metadata
    assert_same(local.reset(seed=seed), remote.reset(seed=seed), "reset")
    local.action_space.seed(5)
    ends = 0
    for step in range(steps):
        actions = local.action_space.sample()
        here = local.step(actions)
        assert_same(here, remote.step(actions), f"step {step}")
        done = here[2] | here[3]
        ends += int(done.sum())
        if done.any() and local.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
            masks = {"reset_mask": done.copy()}, {"reset_mask": done.copy()}
            assert_same(local.reset(options=masks[0]), remote.reset(options=masks[1]))
    assert ends


# --- remote equals local --------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("address", sampled(LOCAL, 3))
def test_every_step_is_that_of_a_sync_vector_env(
    broker: str, address: str, mode: AutoresetMode, sessions: int
) -> None:
    kwargs = SYNC if address == "cartpole" else {}
    local = SyncVectorEnv([LOCAL[address]] * 7, autoreset_mode=mode)
    remote = opened(broker, address, sessions=sessions, autoreset_mode=mode, env_kwargs=kwargs)
    try:
        assert_same_course(local, remote, 210 if address == "taxi" else 60)
    finally:
        remote.close()
        local.close()


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("name", sampled(ZOO, 3))
def test_every_space_is_batched_as_in_a_sync_vector_env(
    broker: str, name: str, sessions: int
) -> None:
    mode = AutoresetMode.SAME_STEP if sessions == 1 else AutoresetMode.NEXT_STEP
    # Gymnasium itself fails with batches of actions that have no parts.
    action = "discrete" if name in ("dict-empty", "tuple-empty") else name
    kwargs = {"observation": name, "action": action}
    local = SyncVectorEnv([partial(VectorZooEnv, name, action)] * 3, autoreset_mode=mode)
    remote = opened(broker, "zoo", 3, sessions=sessions, autoreset_mode=mode, env_kwargs=kwargs)
    try:
        assert_same_course(local, remote, 9)
    finally:
        remote.close()


def test_the_attributes_that_a_step_reads_are_quick_to_read(broker: str) -> None:
    with ProxyVectorEnv("cartpole-v", 2, broker) as envs:
        envs.reset(seed=1)
        envs.step(np.zeros(2, np.int64))
        assert has_quick_attributes(envs, "_pid")
        assert has_quick_attributes(envs._steps, "in_call")
        assert has_quick_attributes(envs._group, "undo_log")
        assert has_quick_attributes(envs._group[0], "exchange")


def test_make_vec_makes_what_the_environment_itself_registers(broker: str) -> None:
    local = gymnasium.make_vec("CartPole-v1", num_envs=5)
    remote = gymnasium.make_vec(MADE, num_envs=5, address="cartpole-v", broker=broker)
    assert isinstance(remote, ProxyVectorEnv)
    try:
        assert_same_course(local, remote, 100)
    finally:
        remote.close()


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("seed", [7, [4, None, 6, 1, 2, 9, 3]], ids=["int", "list"])
def test_seeds_reach_each_environment(broker: str, seed: Any, sessions: int) -> None:
    local, remote = SyncVectorEnv([Moody] * 7), opened(broker, "moody", sessions=sessions)
    here, there = local.reset(seed=seed)[0], remote.reset(seed=seed)[0]
    remote.close()
    seeded = [i for i in range(7) if isinstance(seed, int) or seed[i] is not None]
    assert_same(here[seeded], there[seeded])


def test_a_reset_mask_leaves_the_other_sessions_alone(broker: str) -> None:
    local = SyncVectorEnv([Moody] * 7, autoreset_mode=AutoresetMode.DISABLED)
    remote = opened(broker, "moody", sessions=3, autoreset_mode="Disabled")
    assert_same(local.reset(seed=1), remote.reset(seed=1))
    mask = np.array([False, True, False, False, False, False, False])
    observations = remote.reset(options={"reset_mask": mask}, seed=4)[0]
    assert_same(local.reset(options={"reset_mask": mask}, seed=4)[0], observations)
    observations[:] = 0  # the caller's own: what comes later does not know of it
    assert_same(
        local.reset(options={"reset_mask": mask}, seed=5),
        remote.reset(options={"reset_mask": mask}, seed=5),
    )
    remote.close()


def test_a_wrapper_for_vectors_works(broker: str) -> None:
    local = RecordEpisodeStatistics(SyncVectorEnv([Moody] * 7))
    remote = RecordEpisodeStatistics(opened(broker, "moody", sessions=2))
    assert_same(local.reset(seed=1), remote.reset(seed=1))
    for _ in range(20):
        here, there = local.step(np.arange(7) % 4), remote.step(np.arange(7) % 4)
        for infos in (here[4], there[4]):
            infos.get("episode", {}).pop("t", None)  # seconds
        assert_same(here, there)
    remote.close()


# --- attributes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 3])
def test_attributes_are_read_called_and_set_in_each_environment(broker: str, sessions: int) -> None:
    local, remote = SyncVectorEnv([Moody] * 7), opened(broker, "moody", sessions=sessions)
    for envs in (local, remote):
        envs.reset(seed=2)
        envs.set_attr("mood", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    assert_same(local.get_attr("mood"), remote.get_attr("mood"))
    assert_same(local.call("action_masks"), remote.call("action_masks"))
    remote.set_attr("mood", 3.25)
    assert remote.get_attr("mood") == (3.25,) * 7
    assert remote.np_random_seed == local.np_random_seed
    assert [g.random() for g in remote.np_random] == [g.random() for g in local.np_random]
    remote.close()


def test_attributes_that_are_not_exposed_are_denied(broker: str) -> None:
    remote = opened(broker, "moody", 2)
    with pytest.raises(AttributeDenied, match="_info"):
        remote.call("_info")
    with pytest.raises(BatchSizeError, match="3 values for 2"):
        remote.set_attr("mood", [1, 2, 3])
    remote.close()


def test_rendering_gives_one_frame_for_each_environment(broker: str) -> None:
    local = SyncVectorEnv([partial(Moody, "ansi")] * 3)
    remote = opened(broker, "moody", 3, sessions=2, render_mode="ansi")
    local.reset(seed=1)
    remote.reset(seed=1)
    assert remote.render() == local.render()
    assert remote.render_mode == "ansi"
    remote.close()


def test_spec_metadata_and_repr_describe_the_vector(broker: str) -> None:
    remote = opened(broker, "taxi", 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert remote.autoreset_mode is remote.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert remote.spec is not None
    assert (remote.spec.id, remote.spec.max_episode_steps) == (TAXI, 200)
    assert repr(remote) == f"ProxyVectorEnv({TAXI}, num_envs=3)"
    remote.close()


# --- vectors of another kind ----------------------------------------------------------------------


@pytest.mark.parametrize("address", ["counters", "made-counters"])
@pytest.mark.parametrize("sessions", [1, 2])
def test_a_vector_of_another_library_is_served_as_it_is(
    broker: str, address: str, sessions: int
) -> None:
    remote = opened(broker, address, 3, sessions=sessions, env_kwargs={"first": 2})
    local = Counters(3)
    here, there = local.reset(), remote.reset()
    assert_same(here[0], there[0])
    actions = np.array([1, 0, 1])
    assert_same(local.step(actions)[:4], remote.step(actions)[:4])
    assert remote.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    remote.close()


def test_a_vector_without_the_autoreset_mode_says_so(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"learner requested 'SameStep'"):
        opened(broker, "counters", 3, autoreset_mode=AutoresetMode.SAME_STEP)


def test_a_plain_environment_of_a_vector_only_factory_is_refused(broker: str) -> None:
    with pytest.raises(EnvironmentFailed, match="Open it with ProxyVectorEnv"):
        ProxyEnv("counters-v", broker)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("count", [0, 6, 8])
def test_too_few_or_too_many_actions_are_not_sent(broker: str, sessions: int, count: int) -> None:
    local, remote = SyncVectorEnv([Moody] * 7), opened(broker, "moody", sessions=sessions)
    assert_same(local.reset(seed=1), remote.reset(seed=1))
    with pytest.raises(
        BatchSizeError, match=f"actions has a length of {count}, but there are 7 environments"
    ):
        remote.step(np.zeros(count, np.int64))
    actions = np.ones(7, np.int64)
    assert_same(local.step(actions), remote.step(actions))
    remote.close()


def test_nothing_is_sent_if_one_action_cannot_be_serialized(broker: str) -> None:
    local, remote = SyncVectorEnv([Moody] * 3), opened(broker, "moody", 3, sessions=3)
    assert_same(local.reset(seed=1), remote.reset(seed=1))
    with pytest.raises(EncodingError, match=r"actions\[2\]"):
        remote.step([1, 1, object()])
    assert_same(local.step([1, 2, 3]), remote.step([1, 2, 3]))
    remote.close()


def test_seeds_and_masks_of_another_size_are_refused(broker: str) -> None:
    remote = opened(broker, "moody", 3)
    with pytest.raises(BatchSizeError, match="2 seeds for 3 environments"):
        remote.reset(seed=[1, 2])
    with pytest.raises(BatchSizeError, match="at least one True"):
        remote.reset(options={"reset_mask": np.zeros(3, np.bool_)})
    with pytest.raises(TypeError, match="array of bools"):
        remote.reset(options={"reset_mask": [True] * 3})
    remote.close()


def test_each_session_needs_an_environment() -> None:
    with pytest.raises(ConfigurationError, match="one environment in each"):
        ProxyVectorEnv("any", 2, sessions=3)


def test_out_of_turn_calls_are_refused(broker: str) -> None:
    remote = opened(broker, "moody", 2)
    with pytest.raises(ResetNeeded):
        remote.step([0, 0])
    remote.reset()
    with pytest.raises(MoveError, match="call step_async"):
        remote.step_wait()
    with pytest.raises(BatchSizeError, match="0 have been sent an action"):
        remote.recv()
    remote.step_async([0, 0])
    for call in (partial(remote.step_async, [0, 0]), remote.render, remote.recv):
        with pytest.raises(MoveError, match="in progress"):
            call()
    remote.step_wait()
    remote.close()
    remote.close()
    with pytest.raises(EnvironmentClosed):
        remote.step([0, 0])


def test_copies_have_sessions_of_their_own(broker: str) -> None:
    remote = opened(broker, "moody", 3, sessions=2)
    first = remote.reset(seed=1)
    for other in (copy.deepcopy(remote), pickle.loads(pickle.dumps(remote))):
        assert_same(first, other.reset(seed=1))
        other.close()
    remote.close()


def test_a_copy_shares_no_keyword_arguments(broker: str) -> None:
    remote = opened(broker, "moody", 2)
    other = copy.deepcopy(remote)
    other.close()
    remote.close()
    assert other._options.env_kwargs == remote._options.env_kwargs
    assert other._options.env_kwargs is not remote._options.env_kwargs


# --- overlap, timeouts, stragglers ---------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_step_that_timed_out_can_be_waited_for_again(
    broker: str, gate: Path, sessions: int
) -> None:
    remote = gated(broker, gate, sessions=sessions)
    remote.reset()
    remote.step_async([0, 0, 0, 1])
    with pytest.raises(RequestTimeout):
        remote.step_wait(timeout_s=0.05)
    gate.touch()
    observations, rewards, *_ = remote.step_wait()
    assert (observations.tolist(), rewards.tolist()) == ([1] * 4, [0, 0, 0, 1])
    assert remote.step([2, 2, 2, 2])[0].tolist() == [2] * 4
    remote.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_the_same_step_again_after_a_time_out_waits_on(
    broker: str, gate: Path, sessions: int
) -> None:
    remote = gated(broker, gate, sessions=sessions)
    remote.reset()
    with times_out(remote):
        remote.step([0, 0, 0, 1])
    with pytest.raises(MoveError, match="still under way"):
        remote.step([0, 0, 0, 0])
    gate.touch()
    assert remote.step([0, 0, 0, 1])[0].tolist() == [1] * 4
    assert remote.step([3, 3, 3, 3])[1].tolist() == [3] * 4
    remote.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_late_answer_is_dropped_after_a_reset(broker: str, gate: Path, sessions: int) -> None:
    remote = gated(broker, gate, sessions=sessions)
    remote.reset()
    remote.step_async([0, 0, 0, 1])
    with pytest.raises(RequestTimeout):
        remote.step_wait(timeout_s=0.05)
    gate.touch()
    assert remote.reset()[0].tolist() == [0] * 4
    observations, rewards, *_ = remote.step([2, 3, 4, 5])
    assert (observations.tolist(), rewards.tolist()) == ([1] * 4, [2, 3, 4, 5])
    remote.close()


def test_environments_that_finish_first_are_returned_first(broker: str, gate: Path) -> None:
    remote = gated(broker, gate, sessions=4)
    remote.reset()
    remote.send([1, 2, 3], env_ids=[0, 2, 3])
    observations, rewards, *_, infos = remote.recv(min_envs=2)
    assert sorted(infos["env_id"].tolist()) == [2, 3]
    assert rewards.tolist() == infos["env_id"].tolist() == infos["action"].tolist()
    remote.send(np.array([4]), env_ids=np.array([2]))
    assert remote.recv()[4]["env_id"].tolist() == [2]
    with pytest.raises(MoveError, match=r"environment 0 .* recv\(\) first"):
        remote.send([0], env_ids=[0])
    with pytest.raises(RequestTimeout, match="environment 0"):
        remote.recv(timeout_s=0.05)
    gate.touch()
    observations, rewards, *_, infos = remote.recv(min_envs=1)
    assert (observations.tolist(), rewards.tolist()) == ([1], [1.0])
    assert (infos["env_id"].tolist(), infos["_action"].tolist()) == ([0], [True])
    assert remote.step([5, 5, 5, 5])[0].tolist() == [2, 1, 3, 2]
    remote.close()


def test_a_reply_is_read_while_others_are_under_way(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[bool] = []
    begun = RemoteSession.peek

    def peek(self: RemoteSession, timeout_s: float | None = None) -> Message:
        reply = self._ahead
        replies.append(reply is not None and reply[0] == self.exchange.request.seq)
        return begun(self, timeout_s)

    monkeypatch.setattr(RemoteSession, "peek", peek)
    with contextlib.closing(opened(broker, "cartpole", 3, sessions=3)) as remote:
        remote.reset(seed=1)
        for _ in range(2):
            remote.step(np.array([0, 1, 0]))
    assert replies == [True] * 9


def test_actions_go_to_the_environments_named_by_their_ids(broker: str, gate: Path) -> None:
    remote = gated(broker, gate, num_envs=5, sessions=2)
    remote.reset()
    remote.send(np.array([3, 5, 4]), env_ids=[1, 0, 2])
    _, rewards, _, _, infos = remote.recv(3)
    assert infos["env_id"].tolist() == [0, 1, 2]
    assert rewards.tolist() == [5, 3, 4]
    remote.close()


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([0, 1], "Environments 0 to 2 share a session"),
        ([0, 1, 5], "from 0 to 4"),
        ([3, 3], "distinct numbers"),
        ([], "one or more integers"),
        ([0.5], "one or more integers"),
        ([3, 4, 0, 1, 2], "length of 2, but there are 5"),
    ],
)
def test_ids_that_are_not_whole_sessions_are_refused(
    broker: str, gate: Path, ids: list[int], why: str
) -> None:
    remote = gated(broker, gate, num_envs=5, sessions=2)
    remote.reset()
    with pytest.raises(BatchSizeError, match=why):
        remote.send([0, 0], env_ids=ids)
    remote.close()


# --- opening several sessions ---------------------------------------------------------------------


def test_all_sessions_are_opened_at_the_same_time(broker: str, tmp_path: Path) -> None:
    meeting = {"meet": str(tmp_path), "party": 4}
    remote = opened(broker, "sociable", 4, sessions=4, env_kwargs=meeting)
    assert remote.reset()[0].tolist() == [0] * 4
    remote.close()


def test_sessions_that_were_lost_are_opened_again_at_the_same_time(
    programs: Programs, broker_url: str, tmp_path: Path
) -> None:
    offer = ("--address", "parties-v", "--env", "tests.vector_envs:Sociable")
    meeting = {"meet": str(tmp_path), "party": 3}
    first = programs.env_agent(broker_url, *offer)
    remote = ProxyVectorEnv("parties-v", 3, broker_url, sessions=3, env_kwargs=meeting)
    first.kill()
    with pytest.raises(EnvironmentLost, match="of 3 at 'parties-v'"):
        remote.reset()
    programs.env_agent(broker_url, *offer)
    with contextlib.closing(BrokerConnection(broker_url)) as connection:
        until(lambda: len(connection.find("parties-v")) == 1, "the broker gives up the first")
    assert remote.reset()[0].tolist() == [0] * 3
    remote.close()


def test_if_one_session_cannot_be_opened_the_others_are_closed(broker: str, tmp_path: Path) -> None:
    meeting = {"meet": str(tmp_path), "party": 4, "late": 4}
    with contextlib.closing(BrokerConnection(broker)) as connection:
        with pytest.raises(EnvironmentFailed, match="the last one to come found no chair"):
            connection.open_all(
                "sociable-v", [1] * 4, env_kwargs=meeting, autoreset_mode="NextStep"
            )
        until(lambda: connection.find("sociable-v")[0]["used"] == 0, "all sessions are closed")


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_failing_environment_is_named_and_the_vector_lives_on(
    broker: str, gate: Path, sessions: int
) -> None:
    remote = gated(broker, gate, num_envs=7, sessions=sessions)
    remote.reset()
    with pytest.raises(EnvironmentFailed, match="In environment 5 of 7: nine") as caught:
        remote.step([0, 0, 0, 0, 0, 9, 0])
    assert isinstance(caught.value, ValueError)
    assert caught.value.env_index == 5
    assert remote.reset()[0].tolist() == [0] * 7
    assert remote.step([2] * 7)[0].tolist() == [1] * 7
    remote.close()


@pytest.mark.parametrize("sessions", [1, 3])
def test_after_a_failure_all_environments_step_again(
    broker: str, gate: Path, sessions: int
) -> None:
    remote = gated(broker, gate, num_envs=3, sessions=sessions)
    remote.reset()
    with pytest.raises(EnvironmentFailed, match="In environment 0 of 3"):
        remote.step([9, 2, 2])
    assert remote.step([2, 3, 4])[1].tolist() == [2, 3, 4]
    remote.close()


def test_a_failure_loses_no_percepts_of_the_other_environments(broker: str, gate: Path) -> None:
    remote = gated(broker, gate, num_envs=3, sessions=3)
    remote.reset()
    remote.send([2, 9, 3], env_ids=[0, 1, 2])
    seen = []
    for _ in range(3):
        try:
            seen += remote.recv()[4]["env_id"].tolist()
        except EnvironmentFailed as error:
            seen.append(error.env_index)
        if len(seen) == 3:
            break
    assert sorted(seen) == [0, 1, 2]
    remote.close()


def test_a_lost_session_is_named_and_reset_opens_another(
    programs: Programs, broker_url: str, gate: Path
) -> None:
    offer = ["--address", "mortal-v", "--env", "tests.vector_envs:Gated", "--threads", "1"]
    for _ in range(2):
        programs.env_agent(broker_url, *offer)
    remote = ProxyVectorEnv("mortal-v", 4, broker_url, sessions=2)
    remote.reset()
    with pytest.raises(EnvironmentLost, match="environments 2 to 3 of 4 at 'mortal-v'"):
        remote.step([0, 0, 8, 0])
    with pytest.raises(EnvironmentLost):
        remote.step([0, 0, 0, 0])
    assert remote.reset()[0].tolist() == [0] * 4
    assert remote.step([2, 3, 4, 5])[1].tolist() == [2, 3, 4, 5]
    remote.close()


def test_a_direct_vector_is_the_same(programs: Programs, broker_url: str, gate: Path) -> None:
    for _ in range(2):
        programs.env_agent(
            broker_url,
            *("--address", "direct-v", "--env", "tests.vector_envs:Gated"),
            *("--env-kwargs", f'{{"gate": "{gate}"}}', "--direct", "tcp://127.0.0.1:*"),
        )
    remote = ProxyVectorEnv("direct-v", 4, broker_url, sessions=2, direct="always")
    remote.reset()
    assert remote.step([2, 3, 4, 5])[1].tolist() == [2, 3, 4, 5]
    remote.send([1, 1, 6, 7], env_ids=[0, 1, 2, 3])
    assert remote.recv(2)[1].tolist() == [6, 7]
    gate.touch()
    assert remote.recv(2)[1].tolist() == [1, 1]
    remote.close()
