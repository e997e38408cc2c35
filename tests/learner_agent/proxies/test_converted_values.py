"""Values of many types arrive as docs/protocol.md §10 says, tested with real processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol import named_tuples
from tests.processes import programs
from tests.sameness import assert_same
from tests.typed_envs import Fortran, Typed, Weather

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture(scope="module")
def broker(broker_url: str) -> Iterator[str]:
    with programs() as started:
        started.env_agent(broker_url, "--address", "typed", "--env", "tests.typed_envs:Typed")
        started.env_agent(broker_url, "--address", "fortran", "--env", "tests.typed_envs:Fortran")
        started.env_agent(broker_url, "--address", "mixed", "--env", "tests.typed_envs:Mixed")
        yield broker_url


def _converted(info: dict[str, Any]) -> dict[str, Any]:
    """Return the info of a local Typed as the table says."""
    items = info["items"].copy()
    items[0] = items[0].value
    place = named_tuples.rebuild("Place", ("x", "y"), [*info["report"].place])
    report = {"weather": info["report"].weather.value, "place": place}
    return {**info, "weather": info["weather"].value, "report": report, "items": items}


@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("tensors", [False, True])
def test_a_single_environment(broker: str, direct: str, tensors: bool) -> None:
    local = Typed()
    with ProxyEnv("typed", broker, direct=direct, env_kwargs={"tensors": tensors}) as remote:
        here: Any = local.reset(seed=3)
        there: Any = remote.reset(seed=3)
        for _ in range(4):
            assert_same(there[0], here[0])
            assert_same(repr(there[-1]), repr(_converted(here[-1])))
            assert there[-1]["report"]["place"].y == 2.0
            here, there = local.step(1), remote.step(1)


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_vector(broker: str, sessions: int) -> None:
    local = SyncVectorEnv([Typed] * 3)
    remote = ProxyVectorEnv("typed", 3, broker, sessions=sessions)
    here: Any = local.reset(seed=3)
    there: Any = remote.reset(seed=3)
    for _ in range(3):
        assert_same(there[0], here[0])
        for i in range(3):
            assert here[-1]["weather"][i] is Weather.RAIN
            assert there[-1]["weather"][i] == "rain"
            assert there[-1]["report"][i]["place"] == (1.0, 2.0)
            assert_same(there[-1]["items"][i].tolist(), ["sun", [1, None]])
        assert_same(there[-1]["draw"], here[-1]["draw"])
        here, there = local.step(np.zeros(3, int)), remote.step(np.zeros(3, int))
    remote.close()


@pytest.mark.parametrize("direct", ["auto", "never"])
def test_arrays_keep_their_order_in_memory(broker: str, direct: str) -> None:
    local = Fortran()
    with ProxyEnv("fortran", broker, direct=direct) as remote:
        here: Any = local.reset(seed=3)
        there: Any = remote.reset(seed=3)
        for _ in range(4):
            assert_same(there, here)
            assert there[0].strides == here[0].strides
            for key in ("mask", "objects"):
                assert there[-1][key].strides == here[-1][key].strides
            here, there = local.step(1), remote.step(1)
    envs = SyncVectorEnv([Fortran] * 2)
    many = ProxyVectorEnv("fortran", 2, broker, direct=direct)
    assert_same(many.reset(seed=3), envs.reset(seed=3))
    assert many.step(np.zeros(2, int))[0].strides == envs.step(np.zeros(2, int))[0].strides
    many.close()


@pytest.mark.parametrize("sessions", [1, 2])
def test_exact_infos_are_not_cast_even_in_a_copy(broker: str, sessions: int) -> None:
    for exact, expected in ((False, [1, 0]), (True, [1, 0.5])):
        with ProxyVectorEnv("mixed", 2, broker, sessions=sessions, exact_infos=exact) as envs:
            assert envs.reset(seed=4)[1]["value"].tolist() == expected
            with pickle.loads(pickle.dumps(envs)) as copied:
                assert copied.reset(seed=4)[1]["value"].tolist() == expected
