"""Environments are closed if the session that they were made for cannot be opened."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import structlog
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from gymwire.env_agent.agent import Agent
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.runners.runner import Runner
from gymwire.env_agent.wrappers import Wrapper
from gymwire.errors import ConfigurationError, GymwireError
from gymwire.protocol.messages import EnvKind, Open

NEXT_STEP = AutoresetMode.NEXT_STEP


class Counted(gymnasium.Env[Any, Any]):
    """An environment that is listed while it is open."""

    observation_space: Any = Discrete(3)
    action_space: Any = Discrete(2)
    open: list[Counted] = []  # noqa: RUF012 - of all of them
    made = 0

    def __init__(self, fails_at: int = 99, grows: bool = False) -> None:
        if Counted.made == fails_at:
            raise OSError("no more licences")
        Counted.made += 1
        Counted.open.append(self)
        if grows:
            self.observation_space = Discrete(Counted.made)

    def close(self) -> None:
        Counted.open.remove(self)


@pytest.fixture(autouse=True)
def _counted() -> None:
    Counted.open, Counted.made = [], 0


def make(factory: Factory, num_envs: int = 0, kind: str = "", **kwargs: Any) -> Runner:
    environments = Environments([service := Service("a", factory, 4)])
    mode = NEXT_STEP.value if num_envs else ""
    request = Open("a", b"", None, kwargs, num_envs, mode, kind=kind)
    return environments.make(service, request)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [({"fails_at": 3}, OSError), ({"grows": True}, RuntimeError)],
    ids=["constructor", "spaces"],
)
def test_those_of_a_vector_that_cannot_be_made(kwargs: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make(Factory("counted", Counted), 4, **kwargs)
    assert Counted.made >= 3
    assert not Counted.open


class Stubborn(Counted):
    """An environment whose `close` raises."""

    def close(self) -> None:
        super().close()
        raise ValueError("busy")


def test_all_of_a_vector_are_closed_even_if_one_raises_in_close() -> None:
    runner = make(Factory("stubborn", Stubborn), 3)
    with pytest.raises(ValueError, match="busy"):
        runner.close()
    assert not Counted.open


def test_all_of_a_vector_even_if_one_cannot_be_closed() -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(OSError, match="licences"):
        make(Factory("stubborn", Stubborn), 4, fails_at=3)
    assert [log["error"] for log in logs] == ["ValueError: busy"] * 3
    assert not Counted.open


class Lost:
    """Stands for an environment whose connection is lost."""

    def __getattr__(self, name: str) -> Any:
        raise EOFError("connection closed")


def test_one_without_attributes_hides_neither_the_error_nor_the_others() -> None:
    with pytest.raises(OSError, match="no licence"), closed_on_error([Lost(), Counted()]):
        raise OSError("no licence")
    assert not Counted.open


def _raise(env: Any) -> Any:
    raise OSError("wrapper failed")


@pytest.mark.parametrize("num_envs", [0, 2])
@pytest.mark.parametrize("wrapper", [_raise, lambda env: 7], ids=["raises", "no environment"])
@pytest.mark.parametrize("by_id", [False, True])
def test_one_whose_wrapper_fails(
    num_envs: int, wrapper: Callable[..., Any], by_id: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make_one = "counted", Counted
    if by_id:
        name, make_one = "CountedHere-v0", None  # type: ignore[assignment]
        monkeypatch.setitem(
            gymnasium.registry, name, EnvSpec(name, entry_point=lambda **kwargs: Counted(**kwargs))
        )
    wrappers = (Wrapper("inner", gymnasium.Wrapper, {}), Wrapper("outer", wrapper, {}))
    with pytest.raises((OSError, ConfigurationError)):
        make(Factory(name, make_one, wrappers=wrappers), num_envs)
    assert Counted.made == 1
    assert not Counted.open


class Foreign:
    """The base class of the package gym."""


class Unreadable(Foreign):
    """An environment of old gym whose spaces cannot be read."""

    observation_space = action_space = object()
    close = Counted.close
    __init__ = Counted.__init__
    metadata: dict[str, Any] = {}  # noqa: RUF012 - as old gym declares it


class Other:
    """Something else that can be closed."""

    close = Counted.close
    __init__ = Counted.__init__


class Closed(Counted):
    """An environment whose spaces raise."""

    @property
    def observation_space(self) -> Any:  # type: ignore[override]
        raise AttributeError("no licence for the spaces")


class Vector(SyncVectorEnv):
    """A vector that returns only some of its environments."""

    config = {"batch_size": 1}  # noqa: RUF012 - as EnvPool declares it


def _vector() -> Any:
    return Vector([Counted] * 2)


@pytest.mark.parametrize(
    ("make_one", "wrappers", "kind"),
    [
        (Unreadable, (), EnvKind.ENV),
        (Other, (), EnvKind.ENV),
        (Other, (), EnvKind.PARALLEL),
        (Closed, (), EnvKind.ENV),
        (Counted, (), EnvKind.PARALLEL),
    ],
)
def test_what_is_not_such_an_environment(
    make_one: Any, wrappers: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("gym")
    module.Env = Foreign  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gym", module)
    with pytest.raises((GymwireError, AttributeError)):
        make(Factory("it", make_one, wrappers=wrappers), kind=kind)
    assert Counted.made == 1
    assert not Counted.open


@pytest.mark.parametrize("wrappers", [(), (Wrapper("inner", gymnasium.Wrapper, {}),)])
def test_a_vector_that_cannot_be_used(wrappers: Any) -> None:
    with pytest.raises(ConfigurationError):
        Factory("vector", _vector, wrappers=wrappers).make_first()
    assert Counted.made == 2
    assert not Counted.open


class Rough(Counted):
    """An environment that cannot be described."""

    observation_space = Box(-1, 1, (2,))
    metadata = 7  # type: ignore[assignment]


def test_the_first_one_of_an_offer_that_is_left_out() -> None:
    agent = Agent(
        [Service("rough", Factory("rough", Rough), 1)],
        lambda: pytest.fail("no connection"),
        lambda _: pytest.fail("no connection"),
    )
    with pytest.raises(ConfigurationError):
        agent.run()
    assert Counted.made == 1
    assert not Counted.open


def test_the_first_ones_of_an_env_agent_that_cannot_connect() -> None:
    def connect() -> Any:
        assert len(Counted.open) == 1
        raise OSError("no broker")

    agent = Agent([Service("a", Factory("counted", Counted), 1)], connect, lambda _: connect())
    with pytest.raises(OSError, match="no broker"):
        agent.run()
    assert not Counted.open


def test_a_forked_copy_closes_none_of_them() -> None:
    reader, writer = os.pipe()

    class Tells:
        def close(self) -> None:
            os.write(writer, b"closed")

    pid = os.getpid()
    child = 0
    try:
        with closed_on_error([Tells()]):
            child = os.fork()
            if not child:
                raise SystemExit(3)
    finally:
        if os.getpid() != pid:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    os.close(writer)
    assert os.read(reader, 10) == b""
    os.close(reader)
