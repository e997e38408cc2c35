"""Every limit on the size of a message is checked before the message is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import structlog.testing
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, flatten_space
from gymnasium.vector.utils import batch_space

from gymwire.broker.auth import Policy, Rights
from gymwire.env_agent.agent import Agent
from gymwire.env_agent.description import MAX_BOUNDS, shorten
from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.factory import Factory
from gymwire.learner_agent.client.session import SMALL
from gymwire.protocol import logs, spaces
from gymwire.protocol.codec import MAX_CONTROL, MAX_MESSAGE, PLAIN
from gymwire.protocol.errors import ConfigurationError, EnvironmentFailed
from gymwire.protocol.messages import Act, Reset
from tests.wire import Network, close_all


class Wide(gymnasium.Env[Any, int]):
    """An environment with the observation space and metadata that a test sets."""

    observation_space: Space[Any] = Discrete(2)
    action_space = Discrete(2)  # type: ignore[assignment]
    metadata: dict[str, Any] = {}  # noqa: RUF012 - as in Gymnasium

    def __init__(self, **_: Any) -> None:
        pass

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.5, False, False, {}


SERVICE = Service("wide", Factory("wide:Wide", Wide))


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    Wide.observation_space, Wide.metadata = Discrete(2), {}


def per_channel(size: int, dtype: Any = np.float32) -> Box:
    """Return a space of pictures whose channels have bounds of their own."""
    high = np.broadcast_to(np.arange(1, 4), (size, size, 3))
    return Box(-high.astype(dtype), high.astype(dtype), dtype=dtype)


def flatten(space: Space[Any]) -> Box:
    """Return all elements of a space of boxes as one Box."""
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    return flat


def distinct(count: int) -> Box:
    """Return a space in which all bounds differ."""
    bounds = np.arange(1, count + 1, dtype=np.float64)
    return Box(-bounds, bounds, dtype=np.float64)


LARGE = {
    "84x84": per_channel(84),
    "224x224": per_channel(224),
    "distinct": distinct(100_000),
    "nested": Dict({f"camera{i}": per_channel(64) for i in range(20)}),
}


CHOICES = MultiDiscrete(np.arange(200_000) % 7 + 2, start=np.arange(200_000) % 5 - 3)
CHOICES_OF_ONE_START = Dict(choices=MultiDiscrete(np.arange(20_000) % 7 + 2), flag=Discrete(3))


@pytest.mark.parametrize("num_envs", [0, 4, 16])
@pytest.mark.parametrize(
    "space", [*LARGE.values(), CHOICES, CHOICES_OF_ONE_START], ids=[*LARGE, "choices", "mixed"]
)
def test_an_environment_with_large_bounds_opens(space: Space[Any], num_envs: int) -> None:
    Wide.observation_space = space
    with Network() as network:
        network.env_agent(SERVICE)
        session = network.connection().open("wide", num_envs=num_envs, autoreset_mode="NextStep")
        expected = batch_space(space, num_envs) if num_envs else space
        assert session.space("observation_space") == expected


@pytest.mark.parametrize("name", LARGE)
def test_an_offer_has_the_range_of_large_bounds(name: str) -> None:
    short = shorten(spaces.describe(LARGE[name]))
    assert len(PLAIN.encode(Reset(None, {"space": short}))) < MAX_BOUNDS
    listed, whole = flatten(spaces.build(short)), flatten(LARGE[name])
    assert (listed.shape, listed.dtype) == (whole.shape, whole.dtype)
    assert (listed.low.min(), listed.high.max()) == (whole.low.min(), whole.high.max())


def test_an_offer_has_the_range_of_many_choices() -> None:
    short = shorten(spaces.describe(CHOICES))
    assert short == [["MultiDiscrete", "<i8", [200_000], 8, -3]]
    mixed = shorten(spaces.describe(CHOICES_OF_ONE_START))
    assert mixed[1:] == [["MultiDiscrete", "<i8", [20_000], 8, 0], ["Discrete", "<i8", 3, 0]]


def test_an_offer_has_all_bounds_of_a_small_space() -> None:
    space = spaces.describe(distinct(1000))
    assert shorten(space) is space


def test_an_offer_that_is_too_large_is_an_error_at_once() -> None:
    Wide.metadata = {"blob": bytes(5_000_000)}
    with Network() as network:
        began = network.now
        with pytest.raises(
            ConfigurationError, match=r"OFFER of 'wide' has 5,000,\d+ bytes"
        ) as told:
            network.env_agent(SERVICE)
        assert f"limit is {MAX_CONTROL:,}" in str(told.value)
        assert network.now == began


MANY_PARTS = Dict({f"key{i}": Box(-i - 1, 1, (3,)) for i in range(3000)})


def test_an_offer_with_too_many_parts_is_an_error_at_once() -> None:
    Wide.observation_space = MANY_PARTS
    with Network() as network:
        began = network.now
        with pytest.raises(ConfigurationError, match=r"OFFER of 'wide' has more than 16,384 parts"):
            network.env_agent(SERVICE)
        assert network.now == began


@pytest.mark.parametrize(
    "large", [{"metadata": {"blob": bytes(5_000_000)}}, {"observation_space": MANY_PARTS}]
)
def test_an_offer_that_is_too_large_leaves_the_others_alone(
    large: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooLarge(Wide):
        pass

    monkeypatch.setattr(logs, "LONG_S", 3600.0)  # a busy machine may need more than a second
    for name, value in large.items():
        monkeypatch.setattr(TooLarge, name, value)
    services = [Service("large", Factory("large:TooLarge", TooLarge)), SERVICE]
    agent = Agent(services, cast(Any, None), cast(Any, None))
    with structlog.testing.capture_logs() as logged:
        offers = agent._describe(Environments(services))
    assert [offer.address for offer in offers] == ["wide"]
    (event,) = logged
    assert event["event"] == "offer left out"
    assert "OFFER of 'large' has" in event["why"]


class Odd:
    """An object that cannot be serialized."""


KWARGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "small": ({"a": 1, "b": [1, 2], "c": "x" * 1000}, []),
    "one large": ({"a": 1, "blob": bytes(5_000_000), "b": 2}, ["blob"]),
    "larger than any message": ({"blob": np.zeros(70_000_000, np.uint8), "b": 2}, ["blob"]),
    "many": ({f"part{i}": bytes(20_000) for i in range(5)}, ["part3", "part4"]),
    "costly": ({"table": [{}] * 1_000_000, "a": 1}, ["table"]),
    "too large a number": ({"seed": 2**5000, "a": 1}, []),
    "without a form": ({"odd": Odd(), "a": 1}, []),
    "large without a form": ({"odd": [Odd()] * 5000, "a": 1}, ["odd"]),
}


@pytest.mark.parametrize("name", KWARGS)
def test_large_registered_arguments_are_left_out_of_the_spec(name: str) -> None:
    given, left_out = KWARGS[name]
    Wide.metadata = {"render_modes": []}
    gymnasium.register("Wide-v0", entry_point=Wide, kwargs=given)
    with Network() as network, structlog.testing.capture_logs() as logged:
        try:
            network.env_agent(Service("wide", Factory("Wide-v0")))
            session = network.connection().open("wide")
        finally:
            del gymnasium.registry["Wide-v0"]
        assert [*session.opened.spec["kwargs"]] == [one for one in given if one not in left_out]
        assert session.request(Reset())
    named = [one["arguments"] for one in logged if "keyword arguments" in one["event"]]
    assert named == ([left_out] if left_out else [])


def test_an_opened_that_is_too_large_is_an_error() -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        close_all(network.hosts[0])
        Wide.metadata = {"blob": bytes(MAX_MESSAGE)}
        with pytest.raises(EnvironmentFailed, match=r"OPENED has 67,\d+,\d+ bytes") as told:
            network.connection().open("wide")
        assert f"limit is {MAX_MESSAGE:,}" in str(told.value)
        assert network.hosts[0].slots == {}


@pytest.mark.parametrize("size", [MAX_CONTROL, 5_000_000, 70_000_000])
def test_arguments_that_are_too_large_are_an_error_at_once(size: int) -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        connection = network.connection(wait_s=1e9)
        began = network.now
        with pytest.raises(ConfigurationError, match=r"OPEN has [\d,]+ bytes.* Make env_kwargs"):
            connection.open("wide", env_kwargs={"blob": bytes(size)})
        assert network.now == began
        connection.open("wide", env_kwargs={"blob": bytes(MAX_CONTROL - 1000)})


TOO_MANY_PARTS: list[Any] = [
    list(range(20_000)),
    [[0] * 100] * 300,
    [np.zeros(3)] * 5000,
    {f"k{i}": (i, i) for i in range(5000)},
]


@pytest.mark.parametrize("parts", TOO_MANY_PARTS)
def test_arguments_with_too_many_parts_are_an_error_at_once(parts: Any) -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        connection = network.connection(wait_s=1e9)
        began = network.now
        with pytest.raises(ConfigurationError, match=r"OPEN has more than 16,384 parts.* env_kw"):
            connection.open("wide", env_kwargs={"blob": parts})
        assert network.now == began


@pytest.mark.parametrize("size", [200, SMALL, MAX_MESSAGE])
def test_a_request_over_the_limit_is_an_error_and_changes_nothing(size: int) -> None:
    with Network() as network:
        network.env_agent(SERVICE)
        rights = Rights("anyone", use=("*",), offer=("*",), message_bytes=size)
        network.core.apply_policy(Policy(anyone=rights))
        session = network.connection().open("wide")
        session.request(Reset())
        for request in (Reset(None, {"blob": bytes(size)}), Act(bytes(size))):
            with pytest.raises(ConfigurationError, match=rf"has [\d,]+ bytes.* limit is {size:,}"):
                session.request(request)
        if size <= SMALL:
            with pytest.raises(ConfigurationError, match=f"ACT has .* limit is {size:,}"):
                session.step(bytes(size))
        assert session.step(1)[1] == 0.5
