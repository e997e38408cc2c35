"""All slots of an env agent are listed from its first offer on."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol import process_ids, process_slots
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Code, Error, Find, Found, Offer, Offered, Open, Role
from gymwire.protocol.process_slots import with_process_slots
from tests.broker.harness import Broker, offer, only
from tests.chaos.fleet import until
from tests.processes import Programs

ENV, ENV2 = b"\x01env", b"\x01env2"
LEARNER = b"\x01learner"


def listed(broker: Broker) -> tuple[int, int]:
    """Slots and used slots of the only offer, as a learner sees them."""
    broker.learner()
    [entry] = only(broker.say(LEARNER, Find()), Found).offers
    return entry["capacity"], entry["used"]


def test_the_first_offer_of_a_process_lists_all_of_its_slots() -> None:
    broker = Broker()
    for loop, slots in ((ENV, 5), (ENV2, 5)):
        broker.hello(loop, Role.ENV, agent=b"process")
        only(broker.say(loop, with_process_slots(offer("cartpole", slots), 10)), Offered)
        assert listed(broker) == (10, 0)
        [state] = broker.core.snapshot(broker.now).offers
        assert state.slots == 10


def test_a_session_needs_a_slot_of_a_loop_that_has_offered() -> None:
    broker = Broker()
    broker.hello(ENV, Role.ENV, agent=b"process")
    broker.say(ENV, with_process_slots(offer("cartpole", 1), 10))
    broker.learner()
    broker.open(LEARNER)
    error = only(broker.say(LEARNER, Open("cartpole", b"2" * 16), seq=2), Error)
    assert error.code == Code.NO_FREE_SLOT
    assert listed(broker) == (10, 1)


@pytest.mark.parametrize("said", [None, -1, 0, 3, "many", 1e9, 2**31, True, [10]], ids=repr)
def test_without_a_sensible_number_the_slots_of_its_loops_are_listed(said: object) -> None:
    broker = Broker()
    broker.hello(ENV, Role.ENV)
    strange = offer("cartpole", 4)
    strange.spec[process_slots.KEY] = said
    only(broker.say(ENV, strange), Offered)
    assert listed(broker) == (4, 0)


def test_the_offer_has_the_fields_of_the_previous_release() -> None:
    made = with_process_slots(offer("cartpole", 1), 8)
    back = PLAIN.decode(PLAIN.encode(made))
    assert isinstance(back, Offer)
    assert (back.capacity, back.digest) == (1, b"d".ljust(32, b"."))
    assert process_slots.process_slots(back) == 8


def test_an_env_agent_that_starts_is_never_listed_with_some_of_its_slots(
    programs: Programs,
) -> None:
    _, url = programs.broker()
    options = ("--address", "cartpole", "--env", "CartPole-v1", "--max-sessions", "8")
    starting = threading.Thread(target=programs.env_agent, args=(url, *options))
    seen: list[tuple[int, int, str]] = []
    with contextlib.closing(BrokerConnection(url)) as connection:
        starting.start()

        def has_started() -> bool:
            found = connection.find()
            seen.extend((one["capacity"], one["used"], one["state"]) for one in found)
            return not starting.is_alive()

        until(has_started, "the env agent offers")
    assert set(seen) == {(8, 0, "ready")}


PIDS = [(7, 7), (8, 7), (2**31 - 1, 1)]
STRANGE = [None, 7, [], [7], [7, 7, 7], [0, 7], [7, -1], [2**31, 7], ["7", "7"], {7: 7}, [7.5, 7]]


@pytest.mark.parametrize("said", [*map(list, PIDS), *STRANGE])
def test_a_listing_has_the_process_ids_that_an_offer_gives(said: Any) -> None:
    broker = Broker()
    broker.hello(ENV, Role.ENV)
    made = offer("cartpole")
    made.spec[process_ids.KEY] = said
    only(broker.say(ENV, made), Offered)
    [entry] = only(broker.say(broker.learner(), Find()), Found).offers
    known = tuple(said) if said not in STRANGE else (None, None)
    assert (entry["pid"], entry["agent_pid"]) == known


def test_an_offer_says_which_process_makes_it() -> None:
    made = process_ids.with_process(with_process_slots(offer("cartpole", 1), 8), 12, 11)
    back = PLAIN.decode(PLAIN.encode(made))
    assert isinstance(back, Offer)
    assert process_ids.process_of(back) == (12, 11)
    assert process_slots.process_slots(back) == 8
    assert process_ids.process_of(offer("cartpole")) == (None, None)
