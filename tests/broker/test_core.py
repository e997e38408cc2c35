from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gymwire.broker import peers, sessions
from gymwire.broker.auth import Policy, Rights
from gymwire.broker.connections import CHECK_TICKS, LEARNER_SILENCE_S
from gymwire.broker.events import Send, Sender
from gymwire.broker.offers import MAX_OFFERS
from gymwire.broker.peers import GRACE_S
from gymwire.broker.recovery import REJOIN_S
from gymwire.protocol import codec
from gymwire.protocol.codec import MAX_CONTROL, PLAIN
from gymwire.protocol.messages import (
    LIVENESS_PREFIX,
    VERSION,
    Act,
    Attach,
    Busy,
    BusyReason,
    Bye,
    Call,
    Close,
    Closed,
    Code,
    Error,
    Find,
    Found,
    Gone,
    Hello,
    Kind,
    Offered,
    Open,
    Opened,
    Percept,
    Ping,
    Pong,
    Progress,
    Reset,
    Resume,
    Resumed,
    Role,
    Status,
    Welcome,
    Withdraw,
)
from gymwire.protocol.process_ids import AGENT_ID
from tests.broker.harness import (
    LEASE_S,
    LONG_AFTER_START,
    STARTED,
    Broker,
    SentMessage,
    offer,
    only,
    opened,
)
from tests.sampling import by_run

NONCE = b"n" * 16
ENV, ENV2, LEARNER, THIEF = b"\x01env", b"\x01env2", b"\x01learner", b"\x01thief"


@pytest.fixture
def broker() -> Broker:
    return Broker()


def checked(broker: Broker) -> list[int]:
    """Return the connections of learners whose silence the broker measures, once per period."""
    ticks = range(CHECK_TICKS)
    return [fd for _ in ticks for fd, _ in broker.core.learners_to_check(broker.now)]


def error_of(sends: list[SentMessage]) -> Error:
    return only(sends, Error)


# --- relaying -------------------------------------------------------------------------------------


def test_requests_and_replies_are_relayed_without_looking_at_their_bodies(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    head = codec.HEADER.pack(codec.MAGIC, 1, 3, 255, 0xFFFFFFFF, sid, 1)
    assert broker.core.relay(learner, head + b"\xc1 no msgpack", None) == env
    assert broker.core.relay(env, head[:2] + b"\x04" + head[3:], None) == learner


def test_a_session_that_is_not_open_yet_relays_nothing(broker: Broker) -> None:
    broker.env()
    learner = broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", NONCE), seq=1)
    assert broker.reaches(learner, forwarded.header.sid) is None


def test_a_forged_sid_is_denied_and_not_relayed(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    thief = broker.learner(THIEF)
    assert broker.reaches(thief, sid) is None
    error = error_of(broker.say(thief, Act(0), sid, 1))
    assert error.code == Code.DENIED


def test_another_env_agent_cannot_answer_for_a_session(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    broker.env(ENV2, "other")
    assert broker.reaches(ENV2, sid) is None
    assert error_of(broker.say(ENV2, Closed(), sid, 1)).code == Code.PROTOCOL
    assert sid in broker.core._tables.sessions


def test_a_routing_id_with_another_key_is_refused_on_every_frame() -> None:
    broker = Broker()
    broker.env(key=b"env-key")
    broker.learner(key=b"key")
    sid = broker.open(LEARNER, key=b"key", env_key=b"env-key")
    act = bytes(PLAIN.encode(Act(0), sid, 1))
    assert broker.core.relay(LEARNER, act, b"key") == ENV
    assert broker.core.relay(LEARNER, act, b"other") is None
    assert error_of(broker.frame(LEARNER, act, b"other")).code == Code.DENIED
    assert error_of(broker.say(LEARNER, Bye(), key=None)).code == Code.DENIED


def test_a_learner_cannot_send_an_error_to_an_env_agent(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    [answer] = broker.say(learner, Error(Code.DENIED, "go away"), sid, 1)
    assert (answer.rid, answer.rid != env) == (learner, True)
    assert isinstance(answer.message, Error)
    assert answer.message.code == Code.PROTOCOL


def test_a_request_that_its_agent_does_not_read_is_answered_busy(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    act = bytes(PLAIN.encode(Act(0), sid, 7))
    for full, reason in ((True, BusyReason.QUEUE_FULL), (False, BusyReason.UNREACHABLE)):
        [send] = broker.core.undelivered(env, act, learner, full, broker.now)
        header = codec.read_header(send.frame)
        assert (send.rid, header.sid, header.seq) == (learner, sid, 7)
        assert PLAIN.decode(send.frame) == Busy(reason, 0.05)


@pytest.mark.parametrize("full", [True, False])
def test_a_damaged_request_that_cannot_be_delivered_is_answered_like_any_other(
    broker: Broker, *, full: bool
) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    head = codec.HEADER.pack(codec.MAGIC, 1, 3, 255, 0xFFFFFFFF, sid, 7)
    assert broker.core.relay(learner, head, None) == env
    [send] = broker.core.undelivered(env, head, learner, full, broker.now)
    header = codec.read_header(send.frame)
    assert (send.rid, header.kind, header.sid, header.seq) == (learner, Kind.BUSY, sid, 7)


def test_a_reply_that_cannot_be_delivered_is_dropped(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    percept = bytes(PLAIN.encode(Percept(0, 0.0, False, False, {}), sid, 1))
    assert broker.core.undelivered(learner, percept, env, True, broker.now) == []


# --- opening --------------------------------------------------------------------------------------


def test_open_goes_to_the_agent_with_a_sid_and_the_learners_identity() -> None:
    broker = Broker()
    broker.env(key=b"env-key")
    broker.learner(key=b"key")
    request = Open("cartpole", NONCE, "rgb_array", {"a": 1}, 3, "NextStep", True, learner="forged")
    [forwarded] = broker.say(LEARNER, request, seq=5, key=b"key")
    assert forwarded.rid == ENV
    assert forwarded.header.sid != 0
    assert forwarded.header.seq == 5
    assert forwarded.message == replace(
        request, learner="key", learner_name="anyone", learner_host="host", learner_pid=0
    )


def test_right_after_a_start_an_unknown_address_may_still_appear() -> None:
    broker = Broker(now=STARTED)
    broker.hello(LEARNER, Role.LEARNER)
    asked = Open("cartpole", b"n" * 16, None, {}, 0, "", False)
    error = only(broker.say(LEARNER, asked), Error)
    assert "No env agent offers 'cartpole'" in error.text
    assert "has just started" in error.text
    assert "wait_s" not in error.text  # the learner may wait already
    broker.now += 10.0
    error = only(broker.say(LEARNER, asked), Error)
    assert "has just started" not in error.text


def test_open_twice_with_one_nonce_opens_one_session(broker: Broker) -> None:
    broker.env()
    learner = broker.learner()
    first = broker.say(learner, Open("cartpole", NONCE), seq=1)
    again = broker.say(learner, Open("cartpole", NONCE), seq=1)
    assert first == again
    assert len(broker.core._tables.sessions) == 1


def test_another_learner_cannot_open_with_the_same_nonce(broker: Broker) -> None:
    broker.env()
    broker.open(broker.learner())
    thief = broker.learner(THIEF)
    assert error_of(broker.say(thief, Open("cartpole", NONCE), seq=1)).code == Code.DENIED


def test_a_nonce_opens_no_session_at_another_address(broker: Broker) -> None:
    broker.env()
    learner = broker.learner()
    broker.open(learner)
    assert error_of(broker.say(learner, Open("lake", NONCE), seq=2)).code == Code.DENIED


def test_an_open_that_crossed_a_restart_finds_the_session_that_it_opened() -> None:
    broker = Broker(now=5.0)
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    learner = broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", NONCE), seq=1)
    assert (forwarded.rid, forwarded.header.sid) == (ENV, 77)
    [answer] = broker.say(ENV, opened(), 77, 1)
    assert (answer.rid, type(answer.message)) == (learner, Opened)
    assert broker.reaches(learner, 77) == ENV


def test_an_answer_to_open_that_crossed_a_restart_does_not_end_its_session() -> None:
    broker = Broker(now=5.0)
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    assert broker.say(ENV, opened(), 77, 1) == []
    assert only(broker.say(broker.learner(), Resume(NONCE), 77, 3), Resumed)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_nonce_of_another_length_is_refused(broker: Broker, length: int) -> None:
    broker.env()
    error = error_of(broker.say(broker.learner(), Open("cartpole", b"x" * length), seq=1))
    assert error.code == Code.PROTOCOL


def test_a_new_session_goes_to_the_least_loaded_agent(broker: Broker) -> None:
    broker.env(ENV)
    broker.env(ENV2)
    learner = broker.learner()
    homes = [broker.say(learner, Open("cartpole", bytes([i]) * 16), seq=i)[0].rid for i in range(4)]
    assert sorted(homes) == [ENV, ENV, ENV2, ENV2]


def test_an_agent_in_a_long_step_is_taken_last(broker: Broker) -> None:
    broker.env(ENV)
    broker.env(ENV2)
    learner = broker.learner()
    sid = broker.open(learner)
    busy = broker.core._tables.sessions[sid].loop.rid
    other = ENV2 if busy == ENV else ENV
    broker.open(learner, nonce=b"2" * 16)
    assert broker.core._tables.sessions[broker.open(learner, nonce=b"3" * 16)].loop.rid == ENV
    broker.say(busy, Progress(3.0), sid, 1)
    chosen = [
        broker.say(learner, Open("cartpole", bytes([i]) * 16), seq=i)[0].rid for i in range(3)
    ]
    assert chosen == [other] * 3


def test_when_all_slots_are_in_use_open_says_so_at_once(broker: Broker) -> None:
    broker.env(capacity=1)
    learner = broker.learner()
    broker.open(learner)
    error = error_of(broker.say(learner, Open("cartpole", b"2" * 16), seq=2))
    assert error.code == Code.NO_FREE_SLOT
    assert error.details == {"slots": 1}


def test_a_closed_session_frees_its_slot(broker: Broker) -> None:
    env, learner = broker.env(capacity=1), broker.learner()
    sid = broker.open(learner)
    [asked] = broker.say(learner, Close(), sid, 1)
    [answer] = broker.say(asked.rid, Closed(), sid, 1)
    assert (asked.rid, answer.rid) == (env, learner)
    assert broker.open(learner, nonce=b"2" * 16) != sid


def test_an_agent_that_refuses_to_open_keeps_its_slot(broker: Broker) -> None:
    env, learner = broker.env(capacity=1), broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", NONCE), seq=1)
    [answer] = broker.say(env, Error(Code.OPEN_FAILED, "no"), forwarded.header.sid, 1)
    assert (answer.rid, answer.message) == (learner, Error(Code.OPEN_FAILED, "no"))
    assert broker.open(learner, nonce=b"2" * 16)


def test_an_unknown_address_names_the_nearest_and_all_others(broker: Broker) -> None:
    broker.env(ENV, "cartpole", "taxi")
    error = error_of(broker.say(broker.learner(), Open("cartpol", NONCE), seq=1))
    assert error.code == Code.ADDRESS_UNKNOWN
    assert "Did you mean 'cartpole'?" in error.text
    assert error.details == {"known": ["cartpole", "taxi"]}


def test_with_nothing_on_offer_an_unknown_address_says_that(broker: Broker) -> None:
    error = error_of(broker.say(broker.learner(), Open("cartpole", NONCE), seq=1))
    assert error.code == Code.ADDRESS_UNKNOWN
    assert "has no offers" in error.text


def test_an_invalid_address_has_an_error_code_of_its_own(broker: Broker) -> None:
    error = error_of(broker.say(broker.learner(), Open("Cart Pole", NONCE), seq=1))
    assert error.code == Code.ADDRESS_INVALID


def test_a_pinned_address_goes_to_that_identity_only() -> None:
    good, other = b"a" * 16, b"b" * 16
    named = Rights("lab", offer=("cartpole",), vouched=True)
    broker = Broker(policy=Policy({good: named, other: named}))
    broker.env(ENV, key=good)
    broker.env(ENV2, key=other)
    learner = broker.learner()
    for i in range(3):
        pinned = Open(f"cartpole@{other.decode()}", bytes([i]) * 16)
        [forwarded] = broker.say(learner, pinned, seq=i)
        assert forwarded.rid == ENV2
        assert isinstance(forwarded.message, Open)
        assert forwarded.message.address == "cartpole"
    error = error_of(broker.say(learner, Open("cartpole@cccccccccccccccc", NONCE), seq=9))
    assert error.code == Code.ADDRESS_UNKNOWN
    assert "not by cccccccccccccccc" in error.text


def test_only_a_learner_opens_and_only_an_env_agent_offers(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    assert error_of(broker.say(env, Open("cartpole", NONCE), seq=1)).code == Code.PROTOCOL
    assert error_of(broker.say(learner, offer("mine"))).code == Code.PROTOCOL


# --- offers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"env_id": "Taxi-v3"}, "has another id. "),
        ({"observation_space": [["Discrete", "<i8", 3, 0]]}, "has another observation space. "),
        (
            {"env_id": "x", "action_space": [["MultiBinary", 2]]},
            "has another id and action space. ",
        ),
        ({}, "has another digest: the versions of gymwire may differ. "),
    ],
)
def test_an_address_that_stands_for_another_environment_is_taken(
    broker: Broker, other: dict[str, Any], difference: str
) -> None:
    broker.env(ENV)
    broker.hello(ENV2, Role.ENV)
    offered = replace(offer("cartpole", digest=b"other"), **other)
    error = error_of(broker.say(ENV2, offered))
    assert error.code == Code.ADDRESS_TAKEN
    assert "taken: another env agent or Simulation, on host, offers CartPole-v1 there" in error.text
    assert difference in error.text


def test_the_same_environment_may_be_offered_by_many(broker: Broker) -> None:
    broker.env(ENV)
    broker.env(ENV2)
    [found] = broker.say(broker.learner(), Find())
    assert isinstance(found.message, Found)
    assert [entry["capacity"] for entry in found.message.offers] == [4, 4]


def test_loops_of_one_process_are_listed_as_one_offer(broker: Broker) -> None:
    broker.env(ENV, agent=b"process")
    broker.env(ENV2, agent=b"process")
    learner = broker.learner()
    broker.open(learner)
    [found] = broker.say(learner, Find("cartpole"))
    assert isinstance(found.message, Found)
    [entry] = found.message.offers
    assert (entry["address"], entry["capacity"], entry["used"]) == ("cartpole", 8, 1)


def test_find_may_name_one_address(broker: Broker) -> None:
    broker.env(ENV, "cartpole", "taxi")
    found = only(broker.say(broker.learner(), Find("taxi")), Found)
    assert [entry["address"] for entry in found.offers] == ["taxi"]


def test_an_offer_cannot_be_pinned(broker: Broker) -> None:
    broker.hello(ENV, Role.ENV)
    error = error_of(broker.say(ENV, offer("cartpole@aaaaaaaaaaaaaaaa")))
    assert error.code == Code.ADDRESS_INVALID


def test_a_draining_agent_gets_no_new_sessions_and_keeps_its_old_ones(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    assert broker.say(env, Withdraw("cartpole")) == []
    error = error_of(broker.say(learner, Open("cartpole", b"2" * 16), seq=2))
    assert error.code == Code.NO_FREE_SLOT
    assert "are shutting down" in error.text
    assert broker.reaches(learner, sid) == env


def test_the_address_of_a_lost_agent_is_free_for_another_environment(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(env, broker.now)
    broker.env(ENV2, digest=b"other")
    [forwarded] = broker.say(learner, Open("cartpole", b"2" * 16), seq=2)
    assert forwarded.rid == ENV2
    # Back in time it goes on with its sessions, and gets no new ones.
    broker.core.reachable(env)
    assert broker.reaches(learner, sid) == env
    found = only(broker.say(learner, Find()), Found)
    assert [entry["used"] for entry in found.offers] == [1]
    assert error_of(broker.say(env, offer("cartpole"))).code == Code.ADDRESS_TAKEN


def test_an_agent_of_the_same_pool_leaves_the_offer_of_a_lost_one_alone(broker: Broker) -> None:
    env = broker.env()
    broker.core.unreachable(env, broker.now)
    broker.env(ENV2)
    broker.core.reachable(env)
    found = only(broker.say(broker.learner(), Find()), Found)
    assert [entry["capacity"] for entry in found.offers] == [4, 4]


def test_a_stranger_cannot_take_the_address_of_a_lost_agent() -> None:
    broker = Broker()
    env = broker.env(key=b"owner")
    broker.core.unreachable(env, broker.now)
    broker.hello(ENV2, Role.ENV, key=b"stranger")
    error = error_of(broker.say(ENV2, offer("cartpole", digest=b"other"), key=b"stranger"))
    assert error.code == Code.ADDRESS_TAKEN


@pytest.mark.parametrize(
    "large", ["x" * 900_000, [[]] * 16_000, [0] * 16_000], ids=["text", "lists", "numbers"]
)
def test_the_room_that_the_offers_of_a_peer_take_is_bounded(broker: Broker, large: object) -> None:
    broker.hello(ENV, Role.ENV)
    answers = []
    for i in range(20):
        request = replace(offer(f"a{i}"), metadata={"large": large})
        [answer] = broker.say(ENV, request)
        answers.append(answer.message)
        broker.now += 1.0
    assert isinstance(answers[0], Offered)
    refused = answers[-1]
    assert isinstance(refused, Error)
    assert refused.code == Code.LIMIT
    assert "MiB" in refused.text
    stand = [answer for answer in answers if isinstance(answer, Offered)]
    assert list(broker.core._tables.peers[ENV].offers) == [answer.address for answer in stand]


def test_an_offer_that_is_made_again_takes_its_room_once(broker: Broker) -> None:
    broker.hello(ENV, Role.ENV)
    for _ in range(20):
        only(broker.say(ENV, replace(offer("a"), metadata={"large": "x" * 900_000})), Offered)
        broker.now += 1.0


def test_nothing_is_left_of_an_offer_that_is_displaced(broker: Broker) -> None:
    env = broker.env()
    broker.say(env, Withdraw("cartpole"))
    broker.core.unreachable(env, broker.now)
    broker.env(ENV2, digest=b"other")
    peer = broker.core._tables.peers[env]
    assert not any((peer.offers, peer.offer_bytes, peer.draining))


def test_an_agent_that_does_not_respond_is_not_reported_as_full(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    broker.core.unreachable(env, broker.now)
    error = error_of(broker.say(learner, Open("cartpole", b"2" * 16), seq=2))
    assert error.code == Code.ADDRESS_UNKNOWN  # so that a learner with `wait_s` asks again
    assert "No env agent that offers 'cartpole' is responding (host host)." in error.text


# --- lost and found -------------------------------------------------------------------------------


def test_the_sessions_of_a_lost_agent_are_gone_after_the_grace(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(env, broker.now)
    assert not [one for one in broker.expire(GRACE_S / 2) if type(one.message) is Gone]
    gone = [one for one in broker.expire(GRACE_S) if one.rid == learner]
    assert [(one.header.sid, type(one.message)) for one in gone] == [(sid, Gone)]
    assert sid not in broker.core._tables.sessions
    assert env not in broker.core._tables.peers


def test_an_agent_that_comes_back_within_the_grace_keeps_its_sessions(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(env, broker.now)
    broker.expire(GRACE_S / 2)
    broker.hello(env, Role.ENV, sessions=[[sid, NONCE, "cartpole", ""]])
    assert [one for one in broker.expire(10 * GRACE_S) if type(one.message) is Gone] == []
    assert broker.reaches(learner, sid) == env


def test_an_agent_that_comes_back_on_a_new_socket_keeps_its_sessions(broker: Broker) -> None:
    env, learner = broker.env(agent=b"process"), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(env, broker.now)
    broker.hello(ENV2, Role.ENV, agent=b"process", sessions=[[sid, NONCE, "cartpole", ""]])
    broker.expire(10 * GRACE_S)
    assert broker.reaches(learner, sid) == ENV2
    assert broker.reaches(ENV2, sid) == learner


def test_another_agent_cannot_announce_somebody_elses_session(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    sends = broker.hello(ENV2, Role.ENV, sessions=[[sid, NONCE, "cartpole", ""]])
    assert [type(one.message) for one in sends] == [Welcome, Gone]
    assert broker.reaches(learner, sid) == env


def test_while_an_agent_is_lost_a_ping_says_unreachable(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(env, broker.now)
    assert only(broker.say(learner, Ping(), sid, 1), Busy).reason == BusyReason.UNREACHABLE


def test_bye_of_an_agent_ends_its_sessions_at_once(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    [gone] = broker.say(env, Bye("done"))
    assert (gone.rid, gone.header.sid, type(gone.message)) == (learner, sid, Gone)


def test_bye_on_the_progress_connection_ends_the_sessions_of_the_whole_process(
    broker: Broker,
) -> None:
    agent, learner = b"a" * 16, broker.learner()
    for number, address in enumerate(("one", "two")):
        broker.env(b"\x01loop%d" % number, address, agent=agent)
    broker.env(b"\x01other", "other", agent=b"o" * 16)
    broker.open(learner, "other", nonce=b"o" * 16)
    sids = {broker.open(learner, each, nonce=f"{each:16}".encode()) for each in ("one", "two")}
    broker.hello(b"\x01pulse", Role.PROGRESS, agent=agent)
    gone = broker.say(b"\x01pulse", Bye("its grace period is over"))
    assert {one.header.sid for one in gone} == sids
    for one in gone:
        assert only([one], Gone).reason.endswith("has stopped: its grace period is over")


def test_a_session_that_its_agent_has_lost_frees_its_slot(broker: Broker) -> None:
    env, learner = broker.env(capacity=1), broker.learner()
    sid = broker.open(learner)
    lost = Error(Code.SESSION_LOST, "unknown")
    [answer] = broker.say(env, lost, sid, 1)
    assert (answer.rid, answer.message) == (learner, lost)
    assert broker.open(learner, nonce=b"2" * 16)


@pytest.mark.parametrize("text", [b"\xac", b"\xd9\x0c", b"\xda\0\x0c", b"\xdb\0\0\0\x0c"])
@pytest.mark.parametrize("array", [b"\x93", b"\xdc\0\3", b"\xdd\0\0\0\3"])
def test_a_lost_session_is_noticed_in_each_form_of_messagepack(
    broker: Broker, array: bytes, text: bytes
) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    head = array + text + Code.SESSION_LOST.encode() + b"\xa1x\x80"
    header = codec.HEADER.pack(codec.MAGIC, VERSION, Kind.ERROR, 0, len(head), sid, 1)
    [answer] = broker.frame(env, header + head)
    assert (answer.rid, answer.message) == (learner, Error(Code.SESSION_LOST, "x"))
    assert not broker.core._tables.sessions


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x93",
        b"\xacsession-lost",
        b"\x93\xacsession-los",
        b"\x93\xadsession-lost!\xa1x\x80",
        b"\x93\xa1x\xacsession-lost\x80",
        b"\x93" + b"\x91" * 100,
        b"\x93\xa1\xff",
        b"\x93\xc1",
        PLAIN.encode(Error("x", "", {"a": [{}] * 3900}))[codec.HEADER_SIZE :],
    ],
)
def test_an_error_of_an_open_session_is_relayed_undecoded(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)

    def decode(*_: object) -> NoReturn:
        raise AssertionError("decoded")

    for name in ("broker.decoding.decode", "broker.session_messages.error_text"):
        monkeypatch.setattr(f"gymwire.{name}", decode)
    header = codec.HEADER.pack(codec.MAGIC, VERSION, Kind.ERROR, 0, len(head), sid, 1)
    sender = Sender(env, broker.fds[env], None, "")
    assert broker.core.receive(sender, header + head, broker.now) == [Send(learner, header + head)]
    assert broker.reaches(learner, sid) == env


def test_a_killed_learner_keeps_its_slot_for_the_lease_and_no_longer(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(learner, broker.now)
    assert [one for one in broker.expire(LEASE_S - 1) if type(one.message) is Gone] == []
    gone = [one for one in broker.expire(2.0) if type(one.message) is Gone]
    assert [(one.rid, one.header.sid) for one in gone] == [(env, sid)]
    assert not broker.core._tables.sessions
    broker.expire()
    assert learner not in broker.core._tables.peers


def test_a_learner_whose_connection_is_back_keeps_its_session(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(learner, broker.now)
    broker.core.reachable(learner)
    assert {type(one.message) for one in broker.expire(10 * LEASE_S)} <= {Ping}
    assert broker.reaches(learner, sid) == env


def test_a_learner_that_says_bye_frees_its_slots_at_once(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    [gone] = broker.say(learner, Bye())
    assert (gone.rid, gone.header.sid, type(gone.message)) == (env, sid, Gone)
    assert learner not in broker.core._tables.peers


def test_a_connection_that_went_down_is_probed(broker: Broker) -> None:
    learner = broker.learner()
    broker.core.link_down(broker.fds[learner])
    [probe] = broker.expire()
    assert (probe.rid, type(probe.message)) == (learner, Ping)
    assert learner in broker.core._tables.peers
    for _ in range(10):
        broker.expire()
    assert broker.expire() == []


def test_the_descriptor_of_a_connection_may_be_another_peers_by_now(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    fd = broker.fds[learner]
    broker.hello(THIEF, Role.LEARNER, fd=fd)
    broker.core.link_down(fd)
    for _ in range(3):
        assert all(type(one.message) is Ping for one in broker.expire())
    assert broker.reaches(learner, sid) == env


def test_a_peer_whose_descriptor_was_reused_is_still_probed(broker: Broker) -> None:
    broker.env()
    learner = broker.learner()
    broker.open(learner)
    broker.hello(THIEF, Role.LEARNER, fd=broker.fds[learner])
    asked = {one.rid for _ in range(20) for one in broker.expire(1.0)}
    assert learner in asked


def test_a_learner_without_heartbeats_is_disconnected_once(broker: Broker) -> None:
    broker.env()
    learner = broker.learner()
    broker.open(learner)
    [watched] = checked(broker)
    broker.core.silent_for(watched, LEARNER_SILENCE_S - 0.1)
    assert broker.core.take_hang_ups() == []
    broker.core.silent_for(watched, LEARNER_SILENCE_S + 0.1)
    assert broker.core.take_hang_ups() == [(broker.fds[learner], 0)]
    assert checked(broker) == []
    broker.say(learner, Ping())
    assert checked(broker) == [watched]


def test_only_learners_with_sessions_and_a_known_descriptor_are_checked(
    broker: Broker,
) -> None:
    broker.env()
    learner = broker.learner()
    broker.learner(b"\x01idle")
    broker.open(learner)
    broker.hello(THIEF, Role.LEARNER, fd=broker.fds[learner])
    assert checked(broker) == []


def test_after_it_was_suspended_the_broker_ignores_silence_for_a_while(broker: Broker) -> None:
    broker.env()
    broker.open(broker.learner())
    broker.core.woke_up(broker.now)
    assert checked(broker) == []


# --- resuming -------------------------------------------------------------------------------------


def test_resume_binds_the_session_to_the_new_connection_of_its_learner(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.core.unreachable(learner, broker.now)
    again = broker.learner(b"\x01again")
    assert only(broker.say(again, Resume(NONCE), sid, 4), Resumed) == Resumed()
    assert broker.reaches(again, sid) == env
    assert broker.reaches(env, sid) == again
    assert broker.reaches(learner, sid) is None
    assert [one for one in broker.expire(2 * LEASE_S) if type(one.message) is Gone] == []


def test_resume_with_another_nonce_is_denied(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    thief = broker.learner(THIEF)
    assert error_of(broker.say(thief, Resume(b"x" * 16), sid, 1)).code == Code.DENIED


def test_resume_with_another_key_is_denied() -> None:
    broker = Broker()
    broker.env()
    broker.learner(key=b"key")
    sid = broker.open(LEARNER, key=b"key")
    broker.core.unreachable(LEARNER, broker.now)
    broker.learner(THIEF, key=b"thief")
    error = error_of(broker.say(THIEF, Resume(NONCE), sid, 1, key=b"thief"))
    assert error.code == Code.DENIED


def test_a_session_in_use_is_taken_over_only_on_demand(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    again = broker.learner(b"\x01again")
    error = error_of(broker.say(again, Resume(NONCE), sid, 1))
    assert (error.code, "another process" in error.text) == (Code.DENIED, True)
    assert broker.reaches(learner, sid) == env
    assert only(broker.say(again, Resume(NONCE, take_over=True), sid, 1), Resumed)
    assert broker.reaches(again, sid) == env
    assert broker.reaches(learner, sid) is None


def test_a_restarted_broker_asks_for_patience_then_binds_what_both_announce() -> None:
    broker = Broker(epoch=2, now=5.0)
    learner = broker.learner()
    assert only(broker.say(learner, Act(0), 77, 3), Busy).reason == BusyReason.STARTING
    assert only(broker.say(learner, Resume(NONCE), 77, 3), Busy).reason == BusyReason.STARTING
    welcome, *others = broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    assert isinstance(welcome.message, Welcome)
    assert (welcome.message.epoch, others) == (2, [])
    assert only(broker.say(learner, Resume(NONCE), 77, 3), Resumed)
    assert broker.reaches(learner, 77) == ENV


def test_a_restarted_broker_asks_for_resume_first() -> None:
    broker = Broker(now=5.0)
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    learner = broker.learner()
    broker.now += 60.0
    for message in (Act(0), Close(), Ping()):
        assert only(broker.say(learner, message, 77, 1), Busy).reason == BusyReason.HELLO


def test_an_announced_session_whose_learner_never_comes_ends() -> None:
    broker = Broker(now=5.0)
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    assert broker.expire(LEASE_S) == []
    assert only(broker.expire(REJOIN_S), Gone)


def test_an_announced_session_waits_while_a_connection_has_not_sent_hello() -> None:
    broker = Broker(now=5.0)
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]], fd=1)
    for fd in (1, 2):
        broker.core.link_up(fd)
    assert broker.expire(REJOIN_S + 3600.0) == []
    broker.core.link_down(2)
    assert only(broker.expire(), Gone)


def test_the_lease_of_a_lost_learner_ends_whatever_else_is_connected() -> None:
    broker = Broker(now=5.0)
    broker.env()
    learner = broker.learner()
    broker.open(learner)
    broker.core.link_up(99)
    broker.core.unreachable(learner, broker.now)
    sends = broker.expire(LEASE_S)
    assert any(isinstance(one.message, Gone) for one in sends)


def test_a_session_is_expected_while_the_progress_connection_that_named_it_lasts() -> None:
    broker = Broker(now=5.0)
    broker.hello(b"\x01pulse", Role.PROGRESS, sessions=[[77, NONCE, "cartpole", ""]])
    learner = broker.learner()
    broker.now += REJOIN_S + 3600.0
    assert only(broker.say(learner, Resume(NONCE), 77, 3), Busy).reason == BusyReason.STARTING
    broker.say(b"\x01pulse", Bye("done"))
    assert error_of(broker.say(learner, Resume(NONCE), 77, 3)).code == Code.SESSION_LOST


LIVENESS = LIVENESS_PREFIX + b"a" * 15
"""The routing id of the liveness connection of the agent b"a" * 16."""


def test_sessions_are_expected_of_a_connected_agent_that_has_not_sent_hello() -> None:
    broker = Broker(now=5.0)
    assert broker.frame(LIVENESS, b"") == []
    learner = broker.learner()
    broker.now += REJOIN_S - 1.0
    assert only(broker.say(learner, Resume(NONCE), 77, 3), Busy).reason == BusyReason.STARTING
    broker.now += 1.0
    assert error_of(broker.say(learner, Resume(NONCE), 77, 3)).code == Code.SESSION_LOST


@pytest.mark.parametrize("progress_first", [False, True])
def test_no_session_is_expected_of_an_agent_that_has_named_all(*, progress_first: bool) -> None:
    broker = Broker(now=5.0)
    if not progress_first:
        broker.frame(LIVENESS, b"")
    broker.hello(b"\x01pulse", Role.PROGRESS, agent=b"a" * 16)
    if progress_first:
        broker.frame(LIVENESS, b"")
    broker.now += 60.0
    answer = broker.say(broker.learner(), Resume(NONCE), 77, 3)
    assert error_of(answer).code == Code.SESSION_LOST


def test_no_session_is_expected_of_an_agent_that_is_lost() -> None:
    broker = Broker(now=5.0)
    broker.frame(LIVENESS, b"")
    broker.now += 60.0
    broker.core.unreachable(LIVENESS, broker.now)
    broker.expire()
    answer = broker.say(broker.learner(), Resume(NONCE), 77, 3)
    assert error_of(answer).code == Code.SESSION_LOST


def test_a_key_that_may_not_offer_makes_the_broker_expect_nothing() -> None:
    policy = Policy(anyone=Rights("anyone", use=("*",)))
    broker = Broker(now=5.0, policy=policy)
    assert broker.frame(LIVENESS, b"") == []
    broker.hello(b"\x01pulse", Role.PROGRESS, sessions=[[77, NONCE, "cartpole", ""]])
    broker.now += 60.0
    answer = broker.say(broker.learner(), Resume(NONCE), 77, 3)
    assert error_of(answer).code == Code.SESSION_LOST


def test_an_empty_frame_over_another_connection_is_an_error(broker: Broker) -> None:
    assert error_of(broker.frame(b"\x01learner", b"")).code == Code.PROTOCOL


def test_an_announced_session_holds_its_slot() -> None:
    broker = Broker(now=5.0)
    broker.hello(ENV, Role.ENV, sessions=[[77, NONCE, "cartpole", ""]])
    broker.say(ENV, offer("cartpole", capacity=1))
    error = error_of(broker.say(broker.learner(), Open("cartpole", b"2" * 16), seq=1))
    assert error.code == Code.NO_FREE_SLOT


@pytest.mark.parametrize(
    "row",
    [
        7, [], [0, NONCE, "a", ""], [2**64, NONCE, "a", ""], [1, b"short", "a", ""],
        [1, NONCE, "A" * 10**5, ""], [1, NONCE, "a", "x" * 10**5], [1, NONCE, b"a", ""],
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_announcement_is_refused(broker: Broker, row: object) -> None:
    assert error_of(broker.hello(ENV, Role.ENV, sessions=[row]))
    assert not broker.core._tables.sessions


def test_after_the_start_an_unknown_session_is_lost_for_good(broker: Broker) -> None:
    learner = broker.learner()
    for message in (Act(0), Reset(), Resume(NONCE), Ping()):
        assert error_of(broker.say(learner, message, 77, 1)).code == Code.SESSION_LOST


def test_closing_an_unknown_session_is_not_an_error(broker: Broker) -> None:
    [answer] = broker.say(broker.learner(), Close(), 77, 3)
    assert (answer.header.sid, answer.header.seq, answer.message) == (77, 3, Closed())


def test_an_agent_that_names_an_unknown_session_gets_gone(
    broker: Broker,
) -> None:
    env = broker.env()
    for message in (Status(0, {}), opened()):
        [gone] = broker.say(env, message, 77, 1)
        assert (gone.rid, gone.header.sid, type(gone.message)) == (env, 77, Gone)


# --- progress and pings ---------------------------------------------------------------------------


def test_progress_is_passed_on_from_any_connection_of_the_same_process(broker: Broker) -> None:
    broker.env(agent=b"process")
    learner = broker.learner()
    sid = broker.open(learner)
    broker.hello(b"\x01pulse", Role.PROGRESS, agent=b"process")
    [sent] = broker.say(b"\x01pulse", Progress(2.5), sid, 9)
    assert (sent.rid, sent.header.seq, sent.message) == (learner, 9, Progress(2.5))


def test_progress_from_another_process_is_dropped(broker: Broker) -> None:
    broker.env(agent=b"process")
    sid = broker.open(broker.learner())
    broker.hello(b"\x01pulse", Role.PROGRESS, agent=b"other")
    assert broker.say(b"\x01pulse", Progress(2.5), sid, 9) == []


def test_a_ping_is_answered_with_the_time_in_the_step(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    assert only(broker.say(learner, Ping(), sid, 1), Pong) == Pong(None)
    broker.say(env, Progress(60.0), sid, 1)
    broker.now += 1.0
    assert only(broker.say(learner, Ping(), sid, 1), Pong) == Pong(61.0)
    broker.now += 10.0
    assert only(broker.say(learner, Ping(), sid, 1), Pong) == Pong(None)


@pytest.mark.parametrize("since_s", [10**400, -(10**400), float("nan"), float("inf"), -1.0])
def test_an_absurd_time_in_a_step_does_no_harm(broker: Broker, since_s: float) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.say(env, Progress(since_s), sid, 1)
    assert only(broker.say(learner, Ping(), sid, 1), Pong)


def test_a_ping_without_a_session_asks_for_the_broker_alone(broker: Broker) -> None:
    [answer] = broker.say(broker.learner(), Ping(), 0, 5)
    assert (answer.header.seq, answer.message) == (5, Pong(None))


def test_a_ping_for_somebody_elses_session_is_denied(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    assert error_of(broker.say(broker.learner(THIEF), Ping(), sid, 1)).code == Code.DENIED


# --- bounds and garbage ---------------------------------------------------------------------------


def test_a_peer_without_hello_gets_busy(broker: Broker) -> None:
    for message in (Act(0), Open("cartpole", NONCE), Find(), Ping(), offer("a"), Bye()):
        [answer] = broker.say(LEARNER, message, 3, 9)
        assert answer.message == Busy(BusyReason.HELLO, 0.0)
        assert (answer.header.sid, answer.header.seq) == (3, 9)


def test_a_large_opened_without_hello_gets_busy_and_not_too_large(
    broker: Broker,
) -> None:
    large = replace(opened(), metadata={"blob": bytes(MAX_CONTROL)})
    assert only(broker.say(ENV, large, 77, 1), Busy).reason == BusyReason.HELLO


def test_a_routing_id_made_by_libzmq_is_refused(broker: Broker) -> None:
    error = error_of(broker.hello(b"\0abcd", Role.LEARNER))
    assert "routing id of its own" in error.text


def test_an_unknown_role_is_refused(broker: Broker) -> None:
    assert error_of(broker.hello(LEARNER, "king")).code == Code.PROTOCOL
    assert not broker.core._tables.peers


def test_the_error_for_another_version_names_both(broker: Broker) -> None:
    frame = bytearray(PLAIN.encode(Hello(Role.LEARNER, b"", "", "")))
    frame[1] = 9
    error = error_of(broker.frame(LEARNER, frame))
    assert error.code == Code.VERSION
    assert "version 9" in error.text
    assert "version 1" in error.text


def test_what_is_not_for_a_broker_is_refused(broker: Broker) -> None:
    learner = broker.learner()
    for message in (Pong(), Gone("x"), Welcome(1, "", "", 1, 1.0), Offered("a"), Found([])):
        assert error_of(broker.say(learner, message)).code == Code.PROTOCOL


def test_a_large_control_message_is_refused_unread(broker: Broker) -> None:
    broker.env()
    request = Open("cartpole", NONCE, env_kwargs={"blob": bytes(MAX_CONTROL)})
    error = error_of(broker.say(broker.learner(), request, seq=1))
    assert error.code == Code.TOO_LARGE


@given(st.binary(max_size=80))
def test_garbage_is_answered_and_changes_nothing(data: bytes) -> None:
    broker = Broker()
    sends = broker.frame(LEARNER, data)
    assert [one.rid for one in sends] == [LEARNER]
    assert not broker.core._tables.peers


@given(
    st.sampled_from(
        [
            PLAIN.encode(Open("cartpole", NONCE), 0, 1),
            PLAIN.encode(Resume(NONCE), 1, 1),
            PLAIN.encode(offer("cartpole"), 0, 1),
            PLAIN.encode(Progress(1.0), 1, 1),
            PLAIN.encode(Hello(Role.ENV, b"a", "", "", [[1, NONCE, "a", ""]])),
            PLAIN.encode(Error(Code.SESSION_LOST, ""), 1, 1),
            PLAIN.encode(Call("get", "x"), 1, 1),
        ]
    ),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    st.sampled_from([ENV, LEARNER, THIEF]),
)
def test_damaged_messages_never_break_the_broker(
    frame: bytes | bytearray, damage: list[tuple[int, int]], rid: bytes
) -> None:
    broker = Broker()
    broker.env()
    broker.open(broker.learner())
    data = bytearray(frame)
    for place, byte in damage:
        data[place % len(data)] = byte
    broker.frame(rid, data)
    broker.expire(1.0)
    broker.core.goodbye()


def test_peers_sessions_and_offers_are_bounded(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MAX_PEERS", 3)
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    monkeypatch.setattr(sessions, "MAX_UNCLAIMED", 0)
    env = broker.env(ENV)
    learner = broker.learner()
    for i in range(2):
        broker.open(learner, nonce=bytes([i]) * 16)
    error = error_of(broker.say(learner, Open("cartpole", b"x" * 16), seq=1))
    assert error.code == Code.LIMIT
    for i in range(1, MAX_OFFERS):
        only(broker.say(env, offer(f"a{i}")), Offered)
    assert error_of(broker.say(env, offer("one-more"))).code == Code.LIMIT
    sends = broker.hello(ENV2, Role.ENV, sessions=[[7, b"7" * 16, "cartpole", ""]])
    assert [type(one.message) for one in sends] == [Welcome, Gone]
    assert error_of(broker.hello(THIEF, Role.LEARNER)).code == Code.LIMIT
    assert len(broker.core._tables.peers) == 3
    assert len(broker.core._tables.sessions) == 2


def test_the_peers_of_one_key_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_PEERS", 20)
    broker, hostile = Broker(), b"x" * 40
    rids = [b"\x01x%d" % i for i in range(30)]
    sends = [broker.hello(rid, Role.LEARNER, key=hostile) for rid in rids]
    assert [type(one.message) for [one] in sends] == [Welcome] * 15 + [Error] * 15
    assert "15 of them with your key" in error_of(sends[-1]).text
    broker.learner(key=b"h" * 40)
    broker.say(rids[0], Bye("done"), key=hostile)
    broker.learner(rids[-1], key=hostile)


def test_nothing_is_left_of_many_sessions(broker: Broker) -> None:
    env = broker.env(capacity=1)
    for i in range(by_run(1_000, 3_000)):
        learner = broker.learner(b"\x01" + i.to_bytes(15))
        sid = broker.open(learner, nonce=i.to_bytes(16))
        match i % 4:
            case 0:
                broker.say(env, Closed(), sid, 1)
                broker.say(learner, Bye())
            case 1:
                broker.say(learner, Bye())
            case 2:
                broker.core.unreachable(learner, broker.now)
                broker.expire(LEASE_S + 1.0)
                broker.expire()
            case _:
                broker.say(env, Error(Code.SESSION_LOST, "unknown"), sid, 1)
                broker.say(learner, Bye())
        broker.core.take_notes()
    tables = broker.core._tables
    assert set(tables.peers) == {env}
    held = (
        tables.sessions, tables.by_nonce, tables.routes, tables.orphans, tables.lost,
        tables.unwatched, tables.peers[env].sessions,
    )  # fmt: skip
    assert not any(held)
    assert len(tables.by_fd) == 1


def test_a_broker_that_stops_sends_bye_to_every_peer(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sends = broker.core.goodbye()
    assert {send.rid for send in sends} == {env, learner}
    assert all(isinstance(PLAIN.decode(send.frame), Bye) for send in sends)


def test_the_log_notes_offers_and_sessions(broker: Broker) -> None:
    env, learner = broker.env(), broker.learner()
    sid = broker.open(learner)
    broker.say(env, Closed(), sid, 1)
    broker.say(env, Bye())
    notes = broker.core.take_notes()
    events = [note.event for note in notes]
    assert events == ["offering", "session opened", "session closed", "agent left"]
    assert len(str(notes[0].facts["agent"])) == AGENT_ID  # as `gymwire ps` shows it
    assert broker.now == LONG_AFTER_START


@pytest.mark.parametrize("says_bye", [True, False])
def test_the_log_notes_each_session_that_is_lost_with_its_env_agent(
    broker: Broker, says_bye: bool
) -> None:
    env, learner = broker.env(), broker.learner()
    broker.open(learner)
    broker.open(learner, nonce=b"m" * 16)
    broker.core.take_notes()
    if says_bye:
        broker.say(env, Bye())
    else:
        broker.core.unreachable(env, broker.now)
        broker.expire(GRACE_S)
    notes = broker.core.take_notes()
    assert [note.event for note in notes] == ["session lost", "session lost", "agent left"]
    assert len({note.facts["session"] for note in notes[:2]}) == 2
    why = "has stopped" if says_bye else "is gone"
    assert all(why in str(note.facts["why"]) for note in notes)


def test_an_agent_leaves_with_the_last_of_its_loops_that_offer_anything(broker: Broker) -> None:
    loops = [broker.env(b"\x01%d" % i, "a", "b", agent=b"x" * 16) for i in range(3)]
    broker.env(ENV2, "a")
    broker.say(loops[0], offer("a", capacity=9))  # again
    broker.hello(b"\x01idle", Role.ENV, agent=b"x" * 16)
    left = []
    for loop in (*loops, b"\x01idle"):
        broker.core.take_notes()
        broker.say(loop, Bye())
        left.append([note.event for note in broker.core.take_notes()])
    assert left == [[], [], ["agent left"], []]
    broker.env(loops[0], "a", agent=b"x" * 16)
    broker.core.take_notes()
    broker.say(loops[0], Bye())
    assert [note.event for note in broker.core.take_notes()] == ["agent left"]
    assert [*broker.core._tables._offers] == [ENV2]


# --- local channels -------------------------------------------------------------------------------


def welcomed(broker: Broker, rid: bytes, role: str, host: str) -> Welcome:
    return only(broker.say(rid, Hello(role, rid, "test", host)), Welcome)


@pytest.fixture
def near() -> Broker:
    """A broker on `here` with local channels."""
    return Broker(local=("unix:///here", "here"))


@pytest.mark.parametrize("role", [Role.LEARNER, Role.ENV])
def test_a_peer_on_the_brokers_host_gets_an_attach_token(near: Broker, role: str) -> None:
    welcome = welcomed(near, b"\x01one", role, "here")
    assert (welcome.local_channel, len(welcome.attach_token)) == ("unix:///here", 16)
    assert welcomed(near, b"\x01two", role, "here") != welcome
    assert welcomed(near, b"\x01one", role, "here") == welcome
    peer = near.core.attach(PLAIN.encode(Attach(welcome.attach_token)), near.now)
    assert peer == (b"\x01one", None)


@pytest.mark.parametrize(("role", "host"), [(Role.LEARNER, "there"), (Role.PROGRESS, "here")])
def test_other_peers_get_no_attach_token(near: Broker, role: str, host: str) -> None:
    welcome = welcomed(near, b"\x01one", role, host)
    assert (welcome.local_channel, welcome.attach_token) == ("", b"")


def test_a_broker_without_local_channels_gives_no_attach_token() -> None:
    welcome = welcomed(Broker(), b"\x01one", Role.LEARNER, "here")
    assert (welcome.local_channel, welcome.attach_token) == ("", b"")


def test_an_attach_token_ends_with_its_peer(near: Broker) -> None:
    welcome = welcomed(near, b"\x01one", Role.LEARNER, "here")
    near.say(b"\x01one", Bye())
    assert near.core.attach(PLAIN.encode(Attach(welcome.attach_token)), near.now) is None
    assert not near.core.has_attach_tokens


@pytest.mark.parametrize(
    "first",
    [b"", b"x", PLAIN.encode(Attach(b"")), PLAIN.encode(Attach(b"x" * 16)), PLAIN.encode(Ping())],
)
def test_a_connection_without_an_attach_token_is_not_attached(near: Broker, first: bytes) -> None:
    welcomed(near, b"\x01far", Role.LEARNER, "there")  # its attach token is empty
    welcomed(near, b"\x01one", Role.LEARNER, "here")
    assert near.core.attach(first, near.now) is None


def test_a_flooding_peer_gets_no_local_channel(near: Broker) -> None:
    welcome = welcomed(near, b"\x01one", Role.LEARNER, "here")
    attach = PLAIN.encode(Attach(welcome.attach_token))
    assert near.core.attach(attach, near.now) is not None
    for _ in range(5000):
        near.say(b"\x01one", Ping())
    assert near.core.attach(attach, near.now) is None
    assert near.core.attach(attach, near.now + 60.0) is not None


def test_a_bug_in_the_handling_of_one_frame_does_not_end_the_broker(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    broker.env(ENV)
    with monkeypatch.context() as patch:
        patch.setattr(sessions.Sessions, "open", fail)
        broker.learner(LEARNER)
        error = error_of(broker.say(LEARNER, Open("cartpole", NONCE), seq=1))
    assert error.code == Code.PROTOCOL
    assert "failed to handle OPEN: ValueError" in error.text
    [note] = [one for one in broker.core.take_notes() if one.event.startswith("frame failed")]
    assert "a bug" in str(note.facts["traceback"])
    assert broker.open(LEARNER)
