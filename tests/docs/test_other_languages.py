"""What docs/protocol.md says for implementations in other languages, against the code."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Text,
    Tuple,
)
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from gymwire.broker.tables import Tables
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.runners.runner import Runner
from gymwire.env_agent.session import Session, Verdict
from gymwire.protocol.codec import PLAIN, read_header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import (
    Busy,
    Call,
    Close,
    Closed,
    Error,
    Kind,
    Open,
    Percept,
    Resume,
    Resumed,
    Role,
    Welcome,
)
from gymwire.protocol.security.signing import SignedCodec
from tests.broker.harness import Broker, only, opened
from tests.docs.test_protocol_text import DOC, clause
from tests.protocol.security.test_signing import both
from tests.wire import Network

# Session ids, §13.3


def test_a_float_holds_every_sid_that_the_broker_chooses() -> None:
    assert "below 2^53" in clause("13.3")
    tables = Tables(random.Random(1))
    sids = [tables.new_sid() for _ in range(1000)]
    assert len({*sids}) == 1000
    assert max(sids) > 2**52  # they use all bits
    assert all(0 < sid < 2**53 and int(float(sid)) == sid for sid in sids)


def test_the_broker_takes_a_session_with_a_larger_sid() -> None:
    broker = Broker()
    sid, agent = 2**63 - 1, b"\x01agent"
    only(broker.hello(agent, Role.ENV, sessions=[[sid, bytes(16), "cartpole", ""]]), Welcome)
    learner = broker.learner()
    only(broker.say(learner, Resume(bytes(16), False), sid, 1), Resumed)
    assert broker.reaches(learner, sid) == agent


# Routing ids as text, §3.3


def test_a_routing_id_may_be_text() -> None:
    assert "as text only" in clause("3.3")
    broker, rid = Broker(), b"\x01abcdefgh0123456"
    broker.env()
    assert broker.reaches(broker.learner(rid), broker.open(rid)) == b"\x01env"


# Whole floats, §10.1


@pytest.mark.parametrize("reward", [1, 1.0, 0, -0.0, 2**60, 1e300])
def test_a_whole_float_stays_a_float_and_an_int_an_int(reward: float) -> None:
    assert "even though it is whole" in clause("10.1")
    percept = PLAIN.decode(PLAIN.encode(Percept(None, reward, False, False, {}), 1, 1))
    assert isinstance(percept, Percept)
    assert (type(percept.reward), str(percept.reward)) == (type(reward), str(reward))


# Replies to OPEN, §7.4


def test_a_reply_to_open_matches_by_its_number_alone() -> None:
    assert "by seq alone" in clause("7.4")
    broker = Broker()
    env, learner = broker.env(), broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", bytes(16)), 0, 7)
    assert (forwarded.rid, forwarded.header.seq) == (env, 7)
    assert forwarded.header.sid != 0
    [answer] = broker.say(env, opened(), forwarded.header.sid, 7)
    assert (answer.rid, answer.header.sid, answer.header.seq) == (learner, forwarded.header.sid, 7)
    [forwarded] = broker.say(learner, Open("cartpole", b"p" * 16), 0, 9)
    [refusal] = broker.say(env, Error("open-failed", "no"), forwarded.header.sid, 9)
    assert (refusal.rid, refusal.header.seq) == (learner, 9)
    assert refusal.header.sid == forwarded.header.sid
    [refusal] = broker.say(learner, Open("nothing", b"o" * 16), 0, 8)
    assert isinstance(refusal.message, Error)
    assert (refusal.header.sid, refusal.header.seq) == (0, 8)


# Two requests at once, §7.2


def test_a_request_after_the_executing_one_is_not_next_yet() -> None:
    assert "last + 2 while last + 1 is executing" in DOC.replace("\n", " ")
    session = Session(1, bytes(16), "cartpole", "")
    assert session.judge(Kind.RESET, 1, b"reset") is Verdict.EXECUTE
    assert session.judge(Kind.CLOSE, 2, b"close") is Verdict.REFUSE
    error = PLAIN.decode(session.refusal)
    assert isinstance(error, Error)
    assert (error.code, error.details) == ("expected", {"expected": 1})
    session.finish(Kind.STATUS, b"status")
    assert session.judge(Kind.CLOSE, 2, b"close") is Verdict.EXECUTE


# CLOSE when the environment raises, §7.3


class Unclosable(gymnasium.Env[int, int]):
    observation_space = action_space = gymnasium.spaces.Discrete(2)  # type: ignore[assignment]

    def close(self) -> None:
        raise OSError("it is stuck")


def test_close_is_answered_closed_although_the_environment_raises() -> None:
    assert "also if the environment raises" in clause("7.3")
    with Network() as network:
        one = Service("stuck", Factory("stuck:Unclosable", Unclosable))
        network.env_agent(one)
        session = network.connection().open("stuck")
        assert session.request(Close()) == Closed()


# BUSY to an agent's reply, §7.7


def test_a_reply_that_cannot_be_relayed_is_answered_busy() -> None:
    assert "keeps the reply, and the learner asks again" in DOC.replace("\n", " ")
    broker = Broker()
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    [busy] = broker.say(b"\x01stranger", Percept(None, 0.0, False, False, {}), sid, 1)
    assert isinstance(busy.message, Busy)
    assert (busy.message.reason, busy.header.sid, busy.header.seq) == ("hello", sid, 1)
    assert broker.reaches(learner, sid) == env


# Signed sessions, §14


@pytest.mark.parametrize("role", [b"gymwire learner", b"gymwire agent"])
def test_a_personalization_is_padded_with_zeros(role: bytes) -> None:
    assert "followed by zero bytes" in clause("14.2")
    size = hashlib.blake2b.PERSON_SIZE
    assert f"{size} bytes: these texts" in clause("14.2")
    padded = hashlib.blake2b(b"x", person=role.ljust(size, b"\0")).digest()
    assert hashlib.blake2b(b"x", person=role).digest() == padded


def test_the_brokers_own_closed_has_no_tag_and_is_dropped_in_a_signed_session() -> None:
    assert "has no tag and is therefore dropped" in clause("14.4")
    broker = Broker()
    learner = broker.learner()
    [closed] = broker.say(learner, Close(), 99, 3)
    assert isinstance(closed.message, Closed)
    frame = bytes(PLAIN.encode(closed.message, 99, 3))
    codec = SignedCodec(both()[0])
    with pytest.raises(DecodingError):
        codec.decode(frame, read_header(frame))


# Vectors, §4.1.1


@pytest.mark.parametrize(("value", "set_to"), [([4, 5], [4, 5]), ((4, 5), [4, 5]), (6, [6, 6])])
def test_set_takes_a_value_for_each_environment_or_one_for_all(
    value: object, set_to: list[int]
) -> None:
    assert "a value for each environment, or one value of another type" in clause("4.1.1")
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    runner = Runner(envs)
    assert runner.access(Call("set", "gravity", (value,), {})) is None
    assert runner.access(Call("get", "gravity", (), {})) == {"value": tuple(set_to)}
    envs.close()


# Vectors on one page, §4.4


class Ends(gymnasium.Env[int, int]):
    """Ends with each step whose action is 1, and names the actions of 1 in its info."""

    observation_space = gymnasium.spaces.Discrete(9)  # type: ignore[assignment]
    action_space = gymnasium.spaces.Discrete(2)  # type: ignore[assignment]

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        return 0 if seed is None else seed, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return 8, 5.0, bool(action), False, {"one": 7} if action else {}


def runner(mode: AutoresetMode) -> Any:
    return Runner(SyncVectorEnv([Ends] * 3, autoreset_mode=mode))


def test_the_batched_spaces_are_those_of_the_text() -> None:
    assert "MultiDiscrete of shape [n]" in clause("4.4.1")
    box, binary = Box(0, 1, (2,)), MultiBinary(2)
    assert batch_space(box, 3) == Box(0, 1, (3, 2))
    assert batch_space(MultiDiscrete([2, 3]), 3).shape == (3, 2)
    assert batch_space(binary, 3) == Box(0, 1, (3, 2), np.int8)
    assert batch_space(Discrete(4), 3) == MultiDiscrete([4, 4, 4])
    assert batch_space(Dict(a=box), 3) == Dict(a=batch_space(box, 3))
    assert batch_space(Tuple([box]), 3) == Tuple([batch_space(box, 3)])
    assert batch_space(Text(4), 3) == Tuple([Text(4)] * 3)


def test_the_seeds_and_masks_of_a_vector_are_those_of_the_text() -> None:
    assert "environment i the seed s + i" in clause("4.4.2")
    disabled = runner(AutoresetMode.DISABLED)
    assert disabled.reset(2, None)[0].tolist() == [2, 3, 4]
    assert disabled.reset([5, None, 6], None)[0].tolist() == [5, 0, 6]
    mask = np.array([False, True, False])
    assert disabled.reset(None, {"reset_mask": mask})[0].tolist() == [5, 0, 6]
    _, reward, terminated, truncated, info = disabled.step(np.array([1, 0, 1]))
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
    assert "whether environment i has set it" in clause("4.4.3")
    assert (info["one"].tolist(), info["_one"].tolist()) == ([7, 0, 7], [True, False, True])


def test_autoreset_is_that_of_the_text() -> None:
    assert "its action is ignored, the reward is 0" in clause("4.4.4")
    later, same = runner(AutoresetMode.NEXT_STEP), runner(AutoresetMode.SAME_STEP)
    for one in (later, same):
        one.reset(1, None)
    actions = np.array([1, 0, 0])
    assert later.step(actions)[0].tolist() == [8, 8, 8]
    observation, reward, terminated, _, _ = later.step(actions)
    assert (observation.tolist(), reward.tolist()) == ([0, 8, 8], [0, 5, 5])
    assert not terminated.any()
    observation, _, terminated, _, info = same.step(actions)
    assert (observation.tolist(), terminated.tolist()) == ([0, 8, 8], [True, False, False])
    assert info["final_obs"][0] == 8
    assert info["final_info"]["one"].tolist() == [7, 0, 0]
