"""What an env agent chooses (names, values, fields) neither redirects nor breaks a proxy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.env_agent.config import service
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.protocol import percept_layouts, vector_infos
from gymwire.protocol.errors import AttributeDenied, DecodingError, ProtocolError
from gymwire.protocol.messages import Call, Message, RenderedFrame, Result
from tests.learner_agent.client.test_interrupted import in_memory
from tests.sameness import assert_same
from tests.vector_envs import Moody
from tests.wire import BROKER, Network


@pytest.fixture
def network() -> Iterator[Network]:
    with in_memory() as made:
        yield made


def names_of_proxies() -> list[str]:
    with in_memory(), ProxyEnv("moody", BROKER) as env:
        found = {*dir(env), *dir(env._owner), "_closed", "closed", "_exit_stack"}
    return sorted(found)


def test_an_exposed_name_of_the_proxys_own_is_never_asked_for(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Message] = []
    begin = RemoteSession.begin

    def noted(self: RemoteSession, message: Message) -> None:
        asked.append(message)
        begin(self, message)

    monkeypatch.setattr(RemoteSession, "begin", noted)
    names = names_of_proxies()
    network.env_agent(service(address="odd", env="tests.vector_envs:Moody", expose=names))
    env, local = ProxyEnv("odd", BROKER), Moody()
    wrapped = TimeLimit(env, 100)
    assert_same(wrapped.reset(seed=1), local.reset(seed=1))
    assert_same(wrapped.step(1), local.step(1))
    assert env.spec is None
    copy.deepcopy(env).close()
    wrapped.close()
    assert [one for one in asked if isinstance(one, Call)] == []


@pytest.mark.parametrize("names", [None, 5, "action_masks", [5, b"x", ["y"], None], {"a": 1}])
def test_the_list_of_exposed_names_may_be_anything(network: Network, names: Any) -> None:
    with ProxyEnv("moody", BROKER) as env:
        env._session.opened.limits["attributes"] = names
        with pytest.raises(AttributeDenied, match="does not expose 'gravity'"):
            _ = env.gravity
        with pytest.raises(AttributeDenied, match="does not expose 'gravity'"):
            env.gravity = 5


@pytest.mark.parametrize("value", [None, 5, [], {}, {"values": 1}, "value", {b"value": 1}])
def test_a_malformed_attribute_is_the_agents_fault(
    network: Network, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    vector = ProxyVectorEnv("moody", 3, BROKER, sessions=2)
    with ProxyEnv("moody", BROKER) as env, vector:
        monkeypatch.setattr(RemoteSession, "_read", lambda *_: Result(value))
        for call in (lambda: env.action_masks, lambda: vector.get_attr("action_masks")):
            with pytest.raises(ProtocolError, match=r"sent a malformed .* 'action_masks'"):
                call()
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["observation_space", "action_space", "single_action_space"])
def test_a_space_that_cannot_be_used_is_the_agents_fault(
    network: Network, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    init, huge = RemoteSession.__init__, [["Text", 2**40, 2**40, "a"]]

    def bent(self: Any, connection: Any, sid: int, open_msg: Any, opened: Any, *rest: Any) -> None:
        init(self, connection, sid, open_msg, replace(opened, **{name: huge}), *rest)

    monkeypatch.setattr(RemoteSession, "__init__", bent)
    with pytest.raises(DecodingError, match=rf"The env agent of 'moody' .*{name} makes a sample"):
        ProxyVectorEnv("moody", 3, BROKER)
    monkeypatch.undo()


@pytest.mark.parametrize("frame", [5, 0.5, b"x", {"a": 1}, np.zeros(())])
def test_a_malformed_picture_is_the_agents_fault(
    network: Network, monkeypatch: pytest.MonkeyPatch, frame: Any
) -> None:
    with ProxyVectorEnv("moody", 3, BROKER) as vector:
        monkeypatch.setattr(RemoteSession, "_read", lambda *_: RenderedFrame(frame))
        with pytest.raises(ProtocolError, match="malformed picture for environments 0 to 2"):
            vector.render()
        monkeypatch.undo()


def test_a_malformed_reply_of_a_vector_counts_as_returned(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SessionGroup.read

    def bent(group: SessionGroup, i: int, timeout_s: float | None = None) -> Any:
        reply: Any = read(group, i, timeout_s)
        if i == 1 and isinstance(reply, RenderedFrame):
            return replace(reply, frame=5)
        return replace(reply, reward=np.float64(1)) if i == 1 else reply

    with ProxyVectorEnv("moody", 3, BROKER, sessions=2, render_mode="ansi") as vector:
        vector.reset()
        actions = vector.action_space.sample()
        monkeypatch.setattr(SessionGroup, "read", bent)
        for _ in range(2):
            with pytest.raises(ProtocolError, match="malformed percept for environment 2"):
                vector.step(actions)
            vector.send(actions, [0, 1, 2])
            with pytest.raises(ProtocolError, match="malformed percept for environment 2"):
                vector.recv(3)
            with pytest.raises(ProtocolError, match="malformed picture for environment 2"):
                vector.render()
        monkeypatch.undo()
        assert vector.step(actions)[1].shape == (3,)


@pytest.mark.parametrize("sessions", [1, 2])
def test_malformed_infos_of_a_vector_are_the_agents_fault(
    network: Network, monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    monkeypatch.setattr(Moody, "_info", lambda _: {"key": "text"})
    with ProxyVectorEnv("moody", 2, BROKER, sessions=sessions) as vector:
        vector.reset()
        actions = vector.action_space.sample()
        malformed = r"The env agent of 'moody' .*sent .*malformed.*: No list of items at"
        for _ in range(2):
            with monkeypatch.context() as patch:
                for module in (vector_infos, percept_layouts):
                    patch.setattr(module, "to_wire", lambda *_: [{}, [[["key"], [2]]], []])
                with pytest.raises(DecodingError, match=malformed):
                    vector.reset()
                with pytest.raises(DecodingError, match=malformed):
                    vector.step(actions)
                vector.step_async(actions)
                with pytest.raises(DecodingError, match=malformed):
                    vector.step_wait()
            assert list(vector.step(actions)[4]["key"]) == ["text"] * 2


def test_a_vector_refuses_attributes_that_would_change_nothing(network: Network) -> None:
    class Own(ProxyVectorEnv):
        note = ""

    with Own("moody", 3, BROKER) as vector:
        with pytest.raises(AttributeDenied, match=r"Set it .* with set_attr\('gravity', …\)"):
            vector.gravity = 500
        vector.note = "mine"
        vector.spec = gymnasium.spec("CartPole-v1")
        vector._private = 1
        with pytest.raises(AttributeDenied, match="agent at 'moody' does not expose 'gravity'"):
            vector.set_attr("gravity", 500)


@pytest.mark.parametrize(("python", "sessions"), [(None, 1), (sys.executable, 2)])
def test_a_vector_as_a_whole_gets_the_one_value_for_all(
    network: Network, python: str | None, sessions: int
) -> None:
    env = "tests.offered_vectors:Walkers"
    network.env_agent(service(address="own", env=env, python=python, expose=["gravity"]))
    with ProxyVectorEnv("own", 2, BROKER, sessions=sessions) as vector:
        vector.set_attr("gravity", 2.5)
        assert vector.get_attr("gravity") == (2.5,) * sessions
