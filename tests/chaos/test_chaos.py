"""No single fault loses or doubles a step, changes a result or makes a process hang.

Each test is one family of faults against real processes; `python -m tests.chaos` mixes them for any
duration.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.errors import BrokerUnreachable, OfferError
from tests.chaos import bounds, clocks, long_step
from tests.chaos.chain import ChainEnv, judge
from tests.chaos.course import Course
from tests.chaos.fleet import ADDRESS, Fleet, descriptors, fleet, until
from tests.chaos.relays import MessageRelay, TcpRelay, Weather
from tests.processes import PATIENCE_S
from tests.sameness import assert_same

BACKGROUND: list[Callable[[Fleet], None]] = []


def in_the_background(scenario: Callable[[Fleet], None]) -> Callable[[Fleet], None]:
    """Run a scenario that mostly waits beside the others; its test collects the result."""
    BACKGROUND.append(scenario)
    return scenario


def _run(scenario: Callable[[Fleet], None], folder: Path) -> None:
    folder.mkdir()
    with fleet(folder, keys="keys" in scenario.__name__) as made:
        scenario(made)


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    base = tmp_path_factory.mktemp("background")
    with ThreadPoolExecutor(len(BACKGROUND)) as pool:
        yield {one.__name__: pool.submit(_run, one, base / one.__name__) for one in BACKGROUND}


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path) as made:
        yield made


@contextlib.contextmanager
def course(
    url: str,
    name: str = "learner",
    connection: BrokerConnection | None = None,
    **facts: object,
) -> Iterator[Course]:
    with ProxyEnv(ADDRESS, url, wait_s=5.0, connection=connection) as env:
        yield Course(env, name, seed=len(name), **facts)  # type: ignore[arg-type]


def go(course: Course, requests: int = 20) -> None:
    for _ in range(requests):
        course.advance()


def assert_exactly_once(fleet: Fleet, *courses: Course, losses: int = 0) -> None:
    """Assert that each request was executed once, and that `losses` sessions were lost."""
    answered, lost = {}, {}
    for one in courses:
        answered.update(one.answered)
        lost.update(one.lost)
    assert judge(fleet.ledger, answered, lost).faults == []
    assert len(lost) == losses


@contextlib.contextmanager
def in_a_request(fleet: Fleet, course: Course) -> Iterator[None]:
    """Keep the course in a slow request during the block; the request must end soon after."""
    before = len(fleet.ledger.read_text().splitlines())
    failures: list[BaseException] = []

    def advance() -> None:
        try:
            course.advance()
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    thread = threading.Thread(target=advance, daemon=True)
    thread.start()
    until(lambda: len(fleet.ledger.read_text().splitlines()) > before, "the request is executing")
    yield
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the learner hangs"
    if failures:
        raise failures[0]


# --- env agents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2], ids=["reset", "step"])
def test_a_killed_env_agent_is_noticed_in_the_middle_of_a_request(fleet: Fleet, step: int) -> None:
    fleet.broker()
    agent = fleet.env_agent()
    with course(fleet.url, slow=((step, 60.0),)) as one:
        go(one, step)
        with in_a_request(fleet, one):
            agent.kill()
        fleet.env_agent()
        one.slow = ()
        go(one)
        assert_exactly_once(fleet, one, losses=1)


@in_the_background
def a_frozen_env_agent_is_reported_and_one_that_wakes_has_lost_nothing(fleet: Fleet) -> None:
    fleet.broker()
    agent = fleet.env_agent("--max-sessions", "1")
    with course(fleet.url) as one:
        go(one)
        agent.freeze()
        woken = threading.Timer(2.0, agent.thaw)
        woken.start()
        go(one)
        woken.join()
        assert_exactly_once(fleet, one)
        agent.freeze()
        while not one.lost_at:
            one.advance()
        # Back again, it must not hold the one slot for a session that its learner gave up.
        agent.thaw()
        until(lambda: _advances(one), "the slot is free again")
        go(one)
        assert_exactly_once(fleet, one, losses=1)


@in_the_background
def a_frozen_broker_that_wakes_has_lost_no_session(fleet: Fleet) -> None:
    broker = fleet.broker()
    agent = fleet.env_agent()
    with course(fleet.url) as one:
        go(one)
        broker.freeze()
        agent.says("broker lost")
        broker.thaw()
        go(one)
        assert_exactly_once(fleet, one)


@in_the_background
def a_connection_that_is_dead_for_one_side_only_is_replaced(fleet: Fleet) -> None:
    fleet.broker("--no-local-channels")
    fleet.env_agent()
    with contextlib.closing(TcpRelay(fleet.port)) as relay, course(relay.url) as one:
        go(one)
        relay.half_open()
        go(one)
        assert_exactly_once(fleet, one)


@in_the_background
def a_connection_that_swallows_everything_is_replaced(fleet: Fleet) -> None:
    fleet.broker("--no-local-channels")
    fleet.env_agent()
    with contextlib.closing(TcpRelay(fleet.port)) as relay, course(relay.url) as one:
        go(one)
        relay.doom()
        go(one)
        assert_exactly_once(fleet, one)


@in_the_background
def an_env_agent_that_is_cut_off_is_reported(fleet: Fleet) -> None:
    fleet.broker()
    with contextlib.closing(TcpRelay(fleet.port)) as relay:
        agent = fleet.env_agent(url=relay.url)
        with course(fleet.url) as one:
            go(one)
            relay.mode = "black-hole"
            while not one.lost_at:
                one.advance()
            relay.mode = "pass"
            # It dials again once its own heartbeats have failed, and perhaps one handshake.
            until(lambda: _advances(one), "the agent is back", 3 * PATIENCE_S)
            go(one)
            assert_exactly_once(fleet, one, losses=1)
            assert agent.alive


def _long_step(case: long_step.Case) -> Callable[[Fleet], None]:
    def scenario(fleet: Fleet) -> None:
        # Longer than every heartbeat, resend and grace period; and after a restart of the broker,
        # than the time for which it takes any session for one that may still be announced.
        long_step.go_through(case, fleet, 12.0)

    return scenario


for name, case in long_step.CASES.items():
    if not case.idle or case.restart:
        in_the_background(_long_step(case)).__name__ = f"a_long_step_that_{name}"


@pytest.mark.parametrize("scenario", BACKGROUND, ids=lambda scenario: scenario.__name__)
def test_losses_that_take_seconds_to_notice(
    scenario: Callable[[Fleet], None], background: dict[str, Future[None]]
) -> None:
    background[scenario.__name__].result(60.0)


def _advances(course: Course) -> bool:
    with contextlib.suppress(OfferError):
        course.advance()
        return True
    return False


def test_a_killed_worker_takes_only_its_own_sessions_and_is_replaced(fleet: Fleet) -> None:
    fleet.broker()
    agent = fleet.env_agent("--workers", "2", "--max-sessions", "2")
    agent.says("offering", times=2)
    with course(fleet.url, "left") as left, course(fleet.url, "right") as right:
        go(left)
        go(right)
        os.kill(agent.children()[0], signal.SIGKILL)
        while not left.lost_at and not right.lost_at:
            left.advance()
            right.advance()
        for one in (left, right):
            until(lambda one=one: _advances(one), "another worker takes over")  # type: ignore[misc]
            go(one)
        assert_exactly_once(fleet, left, right, losses=1)


# --- brokers --------------------------------------------------------------------------------------


def test_a_broker_restarted_in_the_middle_of_a_step_and_ten_times_quickly(fleet: Fleet) -> None:
    broker = fleet.broker()
    fleet.env_agent()
    with course(fleet.url, slow=((2, 1.0),)) as one:
        go(one, 2)
        with in_a_request(fleet, one):
            broker.kill()
            broker.start()
        for _ in range(10):
            broker.kill()
            broker.start()
            one.advance()
        go(one)
        assert_exactly_once(fleet, one)


def test_a_broker_restarted_while_many_learners_hold_sessions(fleet: Fleet) -> None:
    broker = fleet.broker()
    fleet.env_agent("--max-sessions", "40", "--threads", "2")
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(contextlib.closing(BrokerConnection(fleet.url))) for _ in range(40)
        ]
        courses = [
            stack.enter_context(course(fleet.url, f"l{i}", one))
            for i, one in enumerate(connections)
        ]
        for one in courses:
            go(one, 2)
        broker.kill()
        broker.start()
        for one in courses:  # the last of them are idle for long after the restart
            go(one, 2)
        assert_exactly_once(fleet, *courses)


def test_a_broker_that_stays_away_is_given_up_after_timeout_s(fleet: Fleet) -> None:
    broker = fleet.broker()
    fleet.env_agent()
    with ProxyEnv(ADDRESS, fleet.url, timeout_s=1.0) as env:
        local = ChainEnv()
        assert_same(local.reset(seed=1), env.reset(seed=1), "reset")
        broker.kill()
        with pytest.raises(BrokerUnreachable, match="silent for 1 s"):
            env.step(3)
        broker.start()
        got = None
        while got is None:  # called again, it waits on for the very same step
            with contextlib.suppress(BrokerUnreachable):
                got = env.step(3)
        assert_same(local.step(3), got, "step")


# --- learners -------------------------------------------------------------------------------------


def test_a_killed_learner_frees_its_slot_and_a_frozen_one_goes_on(fleet: Fleet) -> None:
    fleet.broker("--lease", "2")
    fleet.env_agent("--max-sessions", "1")
    first = fleet.learner("first")
    first.says("goes on", times=2)
    first.freeze()
    first.thaw()
    first.says("goes on", times=4)
    assert '"lost"' not in first.text()
    first.kill()
    until(lambda: _used(fleet) == 0, "the slot is free again")
    with course(fleet.url) as one:
        go(one)
        assert_exactly_once(fleet, one)


def _used(fleet: Fleet) -> int:
    with contextlib.closing(BrokerConnection(fleet.url)) as connection:
        return sum(offer["used"] for offer in connection.find(ADDRESS))


def test_an_idle_learner_keeps_its_session_also_over_a_restart_of_the_broker(fleet: Fleet) -> None:
    broker = fleet.broker("--lease", "1")
    agent = fleet.env_agent("--max-sessions", "1")
    with course(fleet.url, "idle") as idle:
        go(idle)
        broker.kill()
        broker.start()
        agent.says("broker restarted")
        # Longer than the lease, during which the learner says nothing at all.
        assert not threading.Event().wait(2.5)
        assert _used(fleet) == 1
        go(idle)
        assert_exactly_once(fleet, idle)


# --- messages and connections ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "weather",
    [
        Weather(double=0.3),
        Weather(delay=0.3, delay_s=0.1),
        Weather(drop=0.04, double=0.2, delay=0.2, delay_s=0.1),
    ],
    ids=["doubled", "delayed-and-reordered", "dropped-too"],
)
def test_messages(fleet: Fleet, weather: Weather) -> None:
    fleet.broker("--no-local-channels")
    relay = MessageRelay(fleet.url, seed=1)
    with contextlib.closing(relay):
        fleet.env_agent(url=relay.url)
        with course(relay.url, episode=20) as one:
            relay.weather = weather
            go(one, 50)
            assert relay.done["dropped"] + relay.done["doubled"] + relay.done["delayed"] > 0
            relay.weather = Weather()
            go(one)
            assert_exactly_once(fleet, one)


@pytest.mark.parametrize("at", ["learner", "env-agent"])
@pytest.mark.parametrize("fault", ["reset", "stall", "throttle"])
def test_connections(fleet: Fleet, fault: str, at: str) -> None:
    fleet.broker("--no-local-channels")
    with contextlib.closing(TcpRelay(fleet.port)) as relay:
        fleet.env_agent(url=relay.url if at == "env-agent" else None)
        with course(relay.url if at == "learner" else fleet.url) as one:
            go(one)
            calm = threading.Timer(1.0, _calm, [relay])
            calm.start()
            match fault:
                case "reset":
                    relay.reset()
                case "throttle":
                    relay.rate = 1000.0
                case _:
                    relay.mode = fault
            go(one, 10)
            calm.join()
            go(one)
            assert_exactly_once(fleet, one)


def _calm(relay: TcpRelay) -> None:
    relay.mode, relay.rate = "pass", None


def test_a_learner_that_does_not_read_delays_nobody_else(fleet: Fleet) -> None:
    fleet.broker("--no-local-channels")
    fleet.env_agent("--threads", "1", size=1 << 20)
    with contextlib.closing(TcpRelay(fleet.port)) as relay:
        slow = course(relay.url, "slow", size=1 << 20, slow=((2, 1.0),))
        with slow as one, course(fleet.url, "other", size=1 << 20) as other:
            go(one, 2)
            go(other, 2)
            with in_a_request(fleet, one):
                relay.mode = "stall"
                go(other)
                relay.mode = "pass"
            go(one, 2)
            assert_exactly_once(fleet, one, other)


# --- the host -------------------------------------------------------------------------------------


def test_a_full_disk_for_logs_stops_nobody(fleet: Fleet) -> None:
    broker = fleet.broker(full_disk=True)
    agent = fleet.env_agent(full_disk=True)
    with course(fleet.url) as one:
        go(one)
        broker.kill()
        broker.start()
        go(one)
        assert_exactly_once(fleet, one)
    agent.end()
    broker.end()


def test_a_broker_out_of_descriptors_keeps_its_peers_and_accepts_others_later(
    fleet: Fleet,
) -> None:
    broker = fleet.broker(descriptors=40)
    fleet.env_agent("--threads", "1")
    with course(fleet.url) as one:
        go(one)
        crowd = []
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(BrokerUnreachable):
                for _ in range(40):
                    connection = BrokerConnection(fleet.url, timeout_s=0.5)
                    crowd.append(stack.enter_context(contextlib.closing(connection)))
            assert len(crowd) < 40
            assert descriptors(broker.pid) <= 40
            go(one)
        until(lambda: _used(fleet) == 1, "there is room again")
        go(one)
        assert_exactly_once(fleet, one)
    broker.end()


def test_no_clock_but_the_monotonic_one_is_read() -> None:
    assert clocks.wall_clock_calls() == []


@pytest.mark.skipif(not clocks.can_jump(), reason="no C compiler to build a jumping clock with")
def test_a_jumping_clock_changes_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(clocks.jumping(fleet.folder)))
    broker = fleet.broker("--lease", "2")
    fleet.env_agent()
    with course(fleet.url) as one:
        go(one, 100)
        broker.kill()
        broker.start()
        go(one, 100)
        assert_exactly_once(fleet, one)


# --- afterwards -----------------------------------------------------------------------------------


def test_every_process_ends_in_time_on_a_signal(fleet: Fleet) -> None:
    broker = fleet.broker()
    agent = fleet.env_agent("--grace", "0")
    with course(fleet.url) as one:
        go(one)
        agent.end()
        while not one.lost_at:
            one.advance()
        broker.end()


def test_sessions_and_floods_leave_nothing_behind(fleet: Fleet) -> None:
    broker = fleet.broker("--lease", "0.5")
    agent = fleet.env_agent("--max-sessions", "64", "--threads", "1")

    def leaves_nothing(act: Callable[[], None]) -> None:
        before = {part: bounds.Use.of(part) for part in (broker, agent)}
        act()
        for part, was in before.items():
            bounds.until_free(part, was.descriptors + 4)
            # At 10,000 sessions this slope would stay within the stated bound.
            bounds.until_given_back(part, was.memory + bounds.MEMORY // 10)

    def flood() -> None:
        with bounds.greedy(fleet.url, reads=False), course(fleet.url) as one:
            go(one, 100)

    bounds.open_and_close(fleet.url, 100)  # what is made once is made now
    flood()
    leaves_nothing(lambda: bounds.open_and_close(fleet.url, 300))
    leaves_nothing(lambda: bounds.open_and_abandon(fleet.url, 100))
    leaves_nothing(flood)
