"""The rules of scaling, with a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gymwire.fleet.scaling import (
    DRAINING,
    PATIENCE_S,
    READY,
    STARTING,
    AgentLoad,
    Decision,
    Scale,
    Scaler,
    choose,
)

SLOTS = 4


def scale(least: int = 1, most: int = 8, free_slots: int = 2) -> Scale:
    return Scale(least, most, free_slots, idle_s=60.0, slots={"a": SLOTS})


def ready(number: int, used: int = 0) -> AgentLoad:
    return AgentLoad(f"lab/{number}", READY, used, {"a": SLOTS - used})


def starting(number: int) -> AgentLoad:
    return AgentLoad(f"lab/{number}", STARTING, 0, {})


def draining(number: int, used: int = 0) -> AgentLoad:
    return AgentLoad(f"lab/{number}", DRAINING, used, {})


def test_an_empty_fleet_starts_its_least_number() -> None:
    assert Scaler(scale(least=3)).decide([], 0.0) == Decision(start=3)


def test_agents_start_while_fewer_slots_are_free_than_the_floor() -> None:
    scaler = Scaler(scale(free_slots=6))
    assert scaler.decide([ready(0, 3), ready(1, 4)], 0.0) == Decision(start=2)


def test_agents_that_are_starting_count_until_they_take_too_long() -> None:
    scaler = Scaler(scale())
    agents = [ready(0, SLOTS), starting(1)]
    assert scaler.decide(agents, 0.0) == Decision()
    assert scaler.decide(agents, PATIENCE_S - 1) == Decision()
    assert scaler.decide(agents, PATIENCE_S) == Decision(start=1)


def test_the_most_agents_include_those_that_drain() -> None:
    scaler = Scaler(scale(most=3))
    assert scaler.decide([ready(0, SLOTS), ready(1, SLOTS), draining(2, 1)], 0.0) == Decision()


def test_the_least_number_does_not_wait_for_draining_agents() -> None:
    scaler = Scaler(scale(least=2, most=2, free_slots=0))
    assert scaler.decide([ready(0), draining(1, 1)], 0.0) == Decision(start=1)


def test_an_agent_drains_after_it_was_idle_for_the_whole_time() -> None:
    scaler = Scaler(scale())
    agents = [ready(0, 1), ready(1)]
    assert scaler.decide(agents, 0.0) == Decision()
    assert scaler.decide(agents, 59.0) == Decision()
    assert scaler.decide([ready(0, 1), ready(1, 1)], 60.0) == Decision()
    assert scaler.decide(agents, 61.0) == Decision()
    assert scaler.decide(agents, 121.0) == Decision(drain=("lab/1",))


def test_an_idle_agent_stays_while_its_slots_are_needed() -> None:
    scaler = Scaler(scale(free_slots=4))
    agents = [ready(0, 1), ready(1)]
    scaler.decide(agents, 0.0)
    assert scaler.decide(agents, 1000.0) == Decision()


def test_a_fleet_that_is_too_large_drains_idle_agents_only() -> None:
    scaler = Scaler(scale(most=1, free_slots=0))
    assert scaler.decide([ready(0, 1), ready(1), ready(2, 2)], 0.0) == Decision(drain=("lab/1",))


def test_all_addresses_have_their_floor() -> None:
    scaler = Scaler(Scale(1, 8, 2, 60.0, {"a": 4, "b": 1}))
    agent = AgentLoad("lab/0", READY, 1, {"a": 4, "b": 0})
    assert scaler.decide([agent], 0.0) == Decision(start=2)


def test_scaling_down_chooses_those_that_lose_least() -> None:
    agents = [ready(0, 2), ready(1), starting(2), ready(3), draining(4)]
    assert choose(agents, 3) == ("lab/2", "lab/3", "lab/1")
    assert choose(agents, 9)[-1] == "lab/0"


LOADS = st.lists(
    st.tuples(st.sampled_from([STARTING, READY, DRAINING]), st.integers(0, SLOTS)), max_size=12
)


@given(st.lists(st.tuples(LOADS, st.floats(0, 500)), max_size=6), st.integers(0, 4))
def test_no_decision_drains_a_session_or_leaves_the_bounds(
    reports: list[tuple[list[tuple[str, int]], float]], least: int
) -> None:
    scaler, now = Scaler(scale(least=least)), 0.0
    for loads, passed_s in reports:
        now += passed_s
        agents = [
            AgentLoad(f"lab/{n}", state, used if state != STARTING else 0, {"a": SLOTS - used})
            for n, (state, used) in enumerate(loads)
        ]
        decision = scaler.decide(agents, now)
        alive = {one.name: one for one in agents if one.state != DRAINING}
        assert all(alive[name].used == 0 for name in decision.drain)
        assert not (decision.start and decision.drain)
        after = len(alive) + decision.start - len(decision.drain)
        assert after >= min(least, len(alive) + decision.start)
        assert not decision.start or len(alive) + decision.start <= 8
        assert len(alive) < least or after >= least
