from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from gymwire.broker.auth import Policy, Rights
from gymwire.broker.directory import ONLY_PAGE, PAGE_BYTES, PAGE_NAMES
from gymwire.broker.offers import MAX_TEXT
from gymwire.broker.rate_limit import BURST, LISTING_BYTES, LISTING_SHARE, RATE
from gymwire.protocol import codec, spaces, values
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.faults import MAX_DEPTH
from gymwire.protocol.messages import (
    Busy,
    BusyReason,
    Code,
    Error,
    Find,
    Found,
    Hello,
    Offer,
    Offered,
    Role,
    Welcome,
)
from gymwire.protocol.process_slots import MAX_SLOTS
from tests.broker.harness import DISCRETE, Broker, only

ENV, LEARNER, OLD = b"\x01env", b"\x01learner", b"\x01old"
KEY = b"k" * 40


def an_offer(address: str, size: int = 0, **changes: Any) -> Offer:
    fields: dict[str, Any] = {
        "env_id": "X-v0",
        "observation_space": DISCRETE,
        "action_space": DISCRETE,
        "spec": {},
        "metadata": {"text": "x" * size},
        "capacity": 4,
        "digest": b"d" * 32,
        **changes,
    }
    return Offer(address, **fields)


def a_broker(policy: Policy | None = None) -> Broker:
    broker = Broker() if policy is None else Broker(policy=policy)
    hello = Hello(Role.LEARNER, LEARNER, "gymwire", "host", [], capabilities=list(CAPABILITIES))
    only(broker.say(LEARNER, hello, key=None if policy is None else KEY), Welcome)
    return broker


def pages(broker: Broker, address: str = "", key: bytes | None = None) -> list[Found]:
    """Return all pages of a listing to LEARNER."""
    found: list[Found] = []
    rest: list[Any] = []
    while True:
        broker.now += LISTING_SHARE * BURST / RATE
        page = only(broker.say(LEARNER, Find(address, rest), key=key), Found)
        found.append(page)
        rest = page.rest
        if not rest:
            return found


def addresses(found: list[Found]) -> list[str]:
    return [entry["address"] for page in found for entry in page.offers]


def test_a_small_listing_is_one_page() -> None:
    broker = a_broker()
    broker.env(ENV, "b", "a")
    assert addresses(pages(broker)) == ["a", "b"]
    assert len(pages(broker)) == 1


def test_a_large_listing_comes_in_pages_of_bounded_size() -> None:
    broker = a_broker()
    sent = []
    for number in range(64):
        rid = b"\x01env%d" % number
        broker.hello(rid, Role.ENV)
        for i in range(4):
            sent.append(f"a{number}-{i}")
            broker.now += 1.0
            only(broker.say(rid, an_offer(sent[-1], 60_000)), Offered)
    found = pages(broker)
    assert addresses(found) == sorted(sent)
    assert max(len(PLAIN.encode(page)) for page in found) < PAGE_BYTES + 100_000
    assert len(found) > 256 * 60_000 // (PAGE_BYTES + 100_000)


def test_the_processes_of_one_address_come_in_pages() -> None:
    broker = a_broker()
    for number in range(40):
        rid = b"\x01env%d" % number
        broker.hello(rid, Role.ENV)
        only(broker.say(rid, an_offer("pool", 60_000)), Offered)
    for address in ("", "pool"):
        found = pages(broker, address)
        assert len(found) > 5
        assert addresses(found) == ["pool"] * 40


def test_an_offer_larger_than_a_page_is_listed() -> None:
    broker = a_broker()
    broker.hello(ENV, Role.ENV)
    for name in ("a", "b", "c"):
        broker.now += 10.0
        only(broker.say(ENV, an_offer(name, PAGE_BYTES * 2)), Offered)
    assert [len(page.offers) for page in pages(broker)] == [1, 1, 1]


def test_offers_that_vanish_between_two_pages_skip_no_others() -> None:
    broker = a_broker()
    for name in ("a", "b", "c"):
        broker.hello(name.encode() * 16, Role.ENV)
        broker.now += 10.0
        only(broker.say(name.encode() * 16, an_offer(name, PAGE_BYTES)), Offered)
    first = only(broker.say(LEARNER, Find()), Found)
    tables = broker.core._tables
    tables.withdraw_offer(tables.peers[b"b" * 16], "b")
    broker.now += 10.0
    assert addresses([first, only(broker.say(LEARNER, Find("", first.rest)), Found)]) == ["a", "c"]


def test_a_page_looks_at_a_bounded_number_of_hidden_addresses() -> None:
    rights = {KEY: Rights("alice", use=("z*",)), b"e" * 40: Rights("lab", offer=("*",))}
    broker = a_broker(Policy(rights, anyone=None))
    for number in range(10):
        rid = b"\x01env%d" % number
        broker.hello(rid, Role.ENV, key=b"e" * 40)
        for i in range(256):
            broker.now += 0.01
            broker.say(rid, an_offer(f"a{number}-{i}"), key=b"e" * 40)
    broker.hello(ENV, Role.ENV, key=b"e" * 40)
    only(broker.say(ENV, an_offer("z"), key=b"e" * 40), Offered)
    found = pages(broker, key=KEY)
    assert addresses(found) == ["z"]
    assert len(found) == 2560 // PAGE_NAMES + 1


def test_a_learner_of_an_earlier_release_gets_one_longer_page_without_a_rest() -> None:
    broker = a_broker()
    broker.learner(OLD)
    broker.hello(ENV, Role.ENV)
    for name in ("a", "b"):
        broker.now += 10.0
        only(broker.say(ENV, an_offer(name, ONLY_PAGE * PAGE_BYTES)), Offered)
    found = only(broker.say(OLD, Find()), Found)
    assert (addresses([found]), found.rest) == (["a"], [])
    assert not codec.read_header(PLAIN.encode(found)).flags & codec.EXTENDED


@pytest.mark.parametrize(
    "after", [["a"], ["a", -1], ["a", True], [0, 0], ["a", 0, 0], ["a", 2**40], [["a"], 0], [None]]
)
def test_a_rest_that_the_broker_never_sent_is_refused(after: list[Any]) -> None:
    broker = a_broker()
    assert only(broker.say(LEARNER, Find("", after)), Error).code == Code.PROTOCOL


def test_a_peer_gets_pages_no_faster_than_the_rate_limit_and_is_not_cut_off() -> None:
    broker = a_broker()
    broker.hello(ENV, Role.ENV)
    for name in ("a", "b", "c"):
        broker.now += 10.0
        only(broker.say(ENV, an_offer(name, 300_000)), Offered)
    sizes, began = [], broker.now
    while broker.now < began + 60.0:
        [answer] = broker.say(LEARNER, Find())
        if isinstance(answer.message, Busy):
            assert answer.message.reason == BusyReason.RATE
            broker.now += answer.message.retry_after_s
        else:
            sizes.append(len(PLAIN.encode(answer.message)))
    assert sum(sizes) <= (BURST + 60.0 * RATE) * LISTING_BYTES
    assert len(sizes) > 60


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": -1},
        {"capacity": MAX_SLOTS + 1},
        {"env_id": "x" * (MAX_TEXT + 1)},
        {"direct": "x" * (MAX_TEXT + 1)},
    ],
    ids=str,
)
def test_an_offer_with_a_field_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    broker = a_broker()
    broker.hello(ENV, Role.ENV)
    assert only(broker.say(ENV, an_offer("a", **changes)), Error).code == Code.PROTOCOL
    assert addresses(pages(broker)) == []


def in_lists(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [*range(0, MAX_DEPTH, 7), *range(MAX_DEPTH - 5, MAX_DEPTH)])
def test_an_offer_of_any_depth_is_listed_or_refused(levels: int) -> None:
    broker = a_broker()
    broker.env(ENV, "b")
    other = b"\x01other"
    broker.hello(other, Role.ENV)
    [reply] = broker.say(other, an_offer("a", metadata={"x": in_lists(1, levels)}))
    listed = addresses(pages(broker))
    if isinstance(reply.message, Error):
        assert levels > MAX_DEPTH - 5
        assert (reply.message.code, listed) == (Code.LIMIT, ["b"])
        assert "metadata" in reply.message.text
    else:
        assert listed == ["a", "b"]


@pytest.mark.parametrize("parts", [15_000, 60_000, 113_000])
def test_an_offer_of_many_parts_is_listed_beside_others_or_refused(parts: int) -> None:
    broker = a_broker()
    broker.hello(ENV, Role.ENV)
    for number in range(30):
        broker.now += 1.0
        only(broker.say(ENV, an_offer(f"a{number:02}", metadata={"x": [{}] * 100})), Offered)
    broker.now += 1.0
    [reply] = broker.say(ENV, an_offer("b", metadata={"x": [{}] * parts}))
    was_accepted = isinstance(reply.message, Offered)
    assert was_accepted or "parts. Use arrays" in str(reply.message)
    assert ("b" in addresses(pages(broker))) == was_accepted


def test_an_entry_has_what_the_protocol_says() -> None:
    broker = a_broker()
    broker.hello(ENV, Role.ENV)
    sizes = {"text": "x", "array": np.zeros(70_000), "bytes": bytes(70_000)}
    space = spaces.describe(Box(-1, np.ones(3), dtype=np.float64), root="space")
    only(broker.say(ENV, an_offer("a", metadata=sizes, observation_space=space)), Offered)
    [entry] = pages(broker)[0].offers
    assert values.encode(entry.pop("metadata")) == values.encode(sizes)
    assert values.encode(entry.pop("observation_space")) == values.encode(space)
    assert entry == {
        "address": "a",
        "env_id": "X-v0",
        "action_space": DISCRETE,
        "capacity": 4,
        "used": 0,
        "host": "host",
        "software": "gymwire test",
        "identity": "",
        "direct": None,
        "state": "ready",
        "pid": None,
        "agent_pid": None,
        "stuck": 0,
    }


def test_another_offer_replaces_the_entry() -> None:
    broker = a_broker()
    broker.hello(ENV, Role.ENV)
    for env_id in ("X-v0", "X-v1"):
        only(broker.say(ENV, an_offer("a", env_id=env_id)), Offered)
        assert [entry["env_id"] for entry in pages(broker)[0].offers] == [env_id]
