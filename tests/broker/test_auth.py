from __future__ import annotations

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from gymwire.broker import auth
from gymwire.broker.auth import Policy, Rights
from gymwire.broker.quotas import Usage
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import (
    LIVENESS_AGENT_SIZE,
    LIVENESS_PREFIX,
    Act,
    Busy,
    BusyReason,
    Code,
    EndedBy,
    Error,
    Find,
    Found,
    Gone,
    Offered,
    Open,
    Percept,
    Role,
    Welcome,
)
from tests.broker.harness import Broker, decoded, offer, only

KEY = zmq.curve_keypair()[0]
OTHER = zmq.curve_keypair()[0]
ENV, LEARNER = b"\x01env", b"\x01learner"
NONCE = b"n" * 16


def parse(text: str) -> Policy:
    return auth.parse(text.replace("KEY", KEY.decode()))


# --- reading --------------------------------------------------------------------------------------


def test_a_policy_says_what_a_key_may_do() -> None:
    policy = parse(
        '[peer.lab]\nkey = "KEY"\noffer = ["lab/*"]\nuse = ["a", "b?"]\nsessions = 2\n'
        "requests_in_flight = 3\nmessage_bytes = 4\nsteps_per_s = 0.5\n"
        'observe = ["*"]\nstop = ["lab/*"]\n'
    )
    rights = policy.rights(KEY)
    assert rights == Rights("lab", ("lab/*",), ("a", "b?"), 2, 3, 4, 0.5, True, ("*",), ("lab/*",))
    assert rights.may_observe("b2")
    assert rights.may_stop("lab/x")
    assert not rights.may_stop("b2")
    assert rights.may_offer("lab/x/y")
    assert not rights.may_offer("lab")
    assert rights.may_use("b2")
    assert not rights.may_use("b")


def test_a_key_that_is_not_listed_is_refused_unless_anyone_is_named() -> None:
    assert not parse('[peer.lab]\nkey = "KEY"').admits(OTHER)
    policy = parse('[anyone]\nuse = ["demo/*"]')
    rights = policy.rights(OTHER)
    assert rights is not None
    assert rights.may_use("demo/x")
    assert not rights.may_offer("demo/x")


def test_several_keys_may_have_one_name() -> None:
    policy = parse(f'[peer.lab]\nkeys = ["KEY", {OTHER.decode()!r}]')
    assert policy.admits(KEY)
    assert policy.admits(OTHER)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[peer.lab", "not valid TOML"),
        ("[peers]", r"\[peers\]"),
        ("[peer.lab]", "needs either key"),
        ('[peer.lab]\nkey = "short"', "'short' is not a public key"),
        ('[peer.lab]\nkey = "' + "#" * 40 + '"', "is not a public key"),
        ("[peer.lab]\nkeys = []", "must be a list"),
        ('[peer.lab]\nkey = "KEY"\n[peer.two]\nkey = "KEY"', ".peer.lab. already has the key"),
        ('[peer.lab]\nkey = "KEY"\noffers = []', "unknown setting 'offers'"),
        ('[peer.lab]\nkey = "KEY"\noffer = "x"', "offer must be a list"),
        ('[peer.lab]\nkey = "KEY"\nsessions = 0', "sessions must be a whole number above 0"),
        ('[peer.lab]\nkey = "KEY"\nsessions = true', "sessions must be a whole number above 0"),
        ('[peer.lab]\nkey = "KEY"\nsteps_per_s = nan', "steps_per_s must be a number above 0"),
        ("peer = 3", "must be a table"),
        ("anyone = []", "must be a table"),
    ],
)
def test_an_invalid_policy_names_the_wrong_place(text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        parse(text)


@given(st.text())
def test_any_text_is_a_policy_or_a_configuration_error(text: str) -> None:
    try:
        auth.parse(text)
    except ConfigurationError:
        return


# --- limits ---------------------------------------------------------------------------------------


def test_steps_over_the_rate_wait_for_as_long_as_it_takes() -> None:
    rights, usage = Rights("x", steps_per_s=2.0), Usage(10.0)
    assert usage.admit(rights, 1, 1, 10.0) is None
    assert usage.admit(rights, 1, 2, 10.0) == pytest.approx(0.5)
    assert usage.admit(rights, 1, 2, 10.25) == pytest.approx(0.25)
    assert usage.admit(rights, 1, 2, 10.5) is None


def test_a_request_sent_again_is_in_flight_once() -> None:
    rights, usage = Rights("x", requests_in_flight=1), Usage(0.0)
    assert usage.admit(rights, 1, 1, 0.0) is None
    assert usage.admit(rights, 1, 1, 0.0) is None
    assert usage.admit(rights, 2, 1, 0.0) is not None
    usage.end_request(1, 1, executed=True)
    assert usage.admit(rights, 2, 1, 0.0) is None
    usage.end_session(2)
    assert usage.is_idle(0.0)


# --- at the core ----------------------------------------------------------------------------------


def site(**limits: int) -> Broker:
    env = Rights("lab", offer=("lab/*",), vouched=True)
    learner = Rights("alice", use=("lab/*",), vouched=True, **limits)  # type: ignore[arg-type]
    broker = Broker(policy=Policy({KEY: env, OTHER: learner}, anyone=None))
    broker.env(ENV, "lab/a", key=KEY)
    broker.learner(LEARNER, key=OTHER)
    return broker


def denied(broker: Broker, text: str, *arguments: object) -> None:
    error = only(broker.say(*arguments[:2], seq=1, key=arguments[2]), Error)  # type: ignore[arg-type, misc]
    assert error.code == Code.DENIED
    assert text in error.text


def test_a_missing_right_is_refused_with_the_key_and_its_rights() -> None:
    broker = site()
    denied(broker, f"{KEY.decode()} ", ENV, offer("other/a"), KEY)
    denied(
        broker,
        "may not offer 'other/a'. It may offer only lab/*",
        ENV,
        offer("other/a"),
        KEY,
    )
    denied(
        broker,
        "'alice' in this broker's policy, may not use 'other/a'",
        LEARNER,
        Open("other/a", NONCE),
        OTHER,
    )


def test_a_listing_hides_what_the_key_may_neither_use_nor_offer() -> None:
    broker = site()
    found = only(broker.say(LEARNER, Find(), key=OTHER), Found)
    assert [one["address"] for one in found.offers] == ["lab/a"]
    broker.core.apply_policy(Policy({KEY: Rights("l", offer=("*",)), OTHER: Rights("a")}, None))
    assert only(broker.say(LEARNER, Find(), key=OTHER), Found).offers == []


def test_a_key_that_is_not_in_the_policy_is_refused_and_disconnected() -> None:
    broker = site()
    error = only(broker.hello(b"\x01new", Role.LEARNER, key=zmq.curve_keypair()[0]), Error)
    assert error.code == Code.DENIED
    assert broker.core.take_hang_ups() == [(broker.fds[b"\x01new"], 0)]


def test_without_a_policy_an_address_belongs_to_the_key_that_came_first() -> None:
    broker = Broker()
    broker.env(ENV, key=KEY)
    only(broker.hello(b"\x01two", Role.ENV, key=OTHER), Welcome)
    error = only(broker.say(b"\x01two", offer("cartpole"), key=OTHER), Error)
    assert error.code == Code.ADDRESS_TAKEN
    only(broker.hello(b"\x01three", Role.ENV, key=KEY), Welcome)
    only(broker.say(b"\x01three", offer("cartpole"), key=KEY), Offered)


def test_sessions_over_the_limit_are_refused_until_one_ends() -> None:
    broker = site(sessions=1)
    broker.open(LEARNER, "lab/a", key=OTHER, env_key=KEY)
    error = only(broker.say(LEARNER, Open("lab/a", b"m" * 16), seq=2, key=OTHER), Error)
    assert error.code == Code.LIMIT
    assert "has 1 sessions" in error.text


def test_a_large_message_is_refused_to_a_key_that_may_send_small_ones() -> None:
    broker = site(message_bytes=100)
    sid = broker.open(LEARNER, "lab/a", key=OTHER, env_key=KEY)
    error = only(broker.say(LEARNER, Act(b"x" * 200), sid, 1, key=OTHER), Error)
    assert error.code == Code.TOO_LARGE


def test_steps_over_the_rate_get_busy_and_go_on_later() -> None:
    broker = site(steps_per_s=1)
    sid = broker.open(LEARNER, "lab/a", key=OTHER, env_key=KEY)
    [passed_on] = broker.say(LEARNER, Act(1), sid, 1, key=OTHER)
    assert passed_on.rid == ENV
    busy = only(broker.say(LEARNER, Act(1), sid, 2, key=OTHER), Busy)
    assert busy.reason == BusyReason.RATE
    assert busy.retry_after_s == pytest.approx(1.0)
    broker.now += 1.0
    only(broker.say(LEARNER, Act(1), sid, 2, key=OTHER), Act)


def test_replies_to_a_limited_learner_pass_and_free_its_place_in_flight() -> None:
    broker = site(requests_in_flight=1)
    sid = broker.open(LEARNER, "lab/a", key=OTHER, env_key=KEY)
    only(broker.say(LEARNER, Act(1), sid, 1, key=OTHER), Act)
    assert only(broker.say(LEARNER, Act(1), sid, 2, key=OTHER), Busy).reason == BusyReason.RATE
    [reply] = broker.say(ENV, Percept(0, 0.0, False, False, {}), sid, 1, key=KEY)
    assert reply.rid == LEARNER
    only(broker.say(LEARNER, Act(1), sid, 2, key=OTHER), Act)


def test_a_learner_with_limits_gets_no_direct_connection() -> None:
    broker = site(steps_per_s=1)
    request = Open("lab/a", NONCE, direct=True)
    assert not only(broker.say(LEARNER, request, seq=1, key=OTHER), Open).direct


def test_removing_a_learner_from_the_policy_ends_its_sessions_for_both_sides() -> None:
    broker = site()
    sid = broker.open(LEARNER, "lab/a", key=OTHER, env_key=KEY)
    env = Rights("lab", offer=("lab/*",), vouched=True)
    sends = decoded(broker.core.apply_policy(Policy({KEY: env}, anyone=None)))
    gone = {one.rid: one.message.ended_by for one in sends if isinstance(one.message, Gone)}
    assert gone == {LEARNER: EndedBy.POLICY, ENV: EndedBy.POLICY}
    assert [one.message.code for one in sends if isinstance(one.message, Error)] == [Code.DENIED]
    assert broker.core.relay(LEARNER, bytes(24), OTHER) is None
    assert sid not in broker.core._tables.sessions
    assert broker.core.take_hang_ups() == [(broker.fds[LEARNER], 0)]


def test_removing_a_right_ends_the_offers_and_sessions_that_need_it() -> None:
    broker = site()
    broker.open(LEARNER, "lab/a", key=OTHER, env_key=KEY)
    learner = Rights("alice", use=("lab/*",))
    broker.core.apply_policy(Policy({KEY: Rights("lab"), OTHER: learner}, anyone=None))
    assert not broker.core._tables.sessions
    assert only(broker.say(LEARNER, Find(), key=OTHER), Found).offers == []


def test_the_log_names_each_evicted_process_once() -> None:
    broker = site()
    agents = [b"a" * 16, b"b" * 16]
    for agent in agents:
        for number in range(2):
            broker.hello(ENV + agent[:1] + bytes([number]), Role.ENV, agent=agent, key=KEY)
        broker.hello(ENV + agent[:1] + b"p", Role.PROGRESS, agent=agent, key=KEY)
        broker.frame(LIVENESS_PREFIX + agent[:LIVENESS_AGENT_SIZE], b"", KEY)
    broker.core.take_notes()
    broker.core.apply_policy(Policy({}, anyone=None))
    notes = [one.facts for one in broker.core.take_notes() if one.event == "peer evicted"]
    told = [(one["role"], one.get("connections")) for one in notes]
    assert told == [(Role.ENV, None), (Role.LEARNER, None), (Role.ENV, 4), (Role.ENV, 4)]
    assert not any(one.get("pid") == 0 for one in notes)
