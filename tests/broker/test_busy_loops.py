"""A new session goes to a loop that is idle, not to one that may still step or close."""

from __future__ import annotations

import pytest

from gymwire.env_agent.config import service
from gymwire.protocol.messages import Close, Reset
from tests.wire import Network

POLE = service(address="pole", env="CartPole-v1")


@pytest.mark.parametrize("loops", [2, 8])
def test_a_loop_that_is_silent_since_its_session_ended_gets_no_other_one(loops: int) -> None:
    with Network() as network:
        agents = [network.env_agent(POLE) for _ in range(loops)]
        connection = network.connection()
        connection.open("pole").request(Reset())
        (busy,) = [one for one in agents if not one.idle]
        # From now on, its thread executes a step that does not end.
        network.loops.remove(busy)
        next(one for one in network.connections() if one.loop is busy).loop = None
        connection.close()
        for _ in range(loops - 1):
            network.connection().open("pole")
        assert all(not one.idle for one in agents)


def test_a_loop_that_has_closed_its_session_is_heard_at_once() -> None:
    with Network() as network:
        network.env_agent(POLE)
        network.connection().open("pole").request(Close())
        network.pass_time(0.05)
        (loop,) = network.core._tables.loops("pole")
        assert not loop.may_be_closing
