"""What operators see and stop: OBSERVE, REPORT and STOP at the broker (docs/protocol.md §6.5)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from gymwire.broker import observation
from gymwire.broker.auth import Policy, Rights, parse
from gymwire.broker.journal import MAX_DETAILS, Drop, Loss
from gymwire.broker.rate_limit import BURST
from gymwire.protocol.capabilities import OBSERVE
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import (
    Act,
    Busy,
    Bye,
    Code,
    EndedBy,
    Error,
    Gone,
    Hello,
    Message,
    Observe,
    Observed,
    Open,
    Percept,
    Ping,
    Report,
    Role,
    Stop,
    Stopped,
    Withdraw,
)
from gymwire.protocol.process_ids import with_process
from tests.broker.harness import Broker, SentMessage, offer, only

ENV, LEARNER, OPERATOR, PULSE = b"\x01env", b"\x01learner", b"\x01operator", b"\x01pulse"


@pytest.fixture
def broker() -> Broker:
    return Broker()


def observed(broker: Broker, operator: bytes = OPERATOR) -> Observed:
    """All pages as one."""
    if operator not in broker.core.peer_ids:
        broker.learner(operator)
    found = Observed({}, [], [])
    rest: list[Any] = []
    for seq in itertools.count(1):
        page = only(broker.say(operator, Observe(rest), seq=seq), Observed)
        found = Observed(
            page.broker, found.offers + page.offers, found.sessions + page.sessions, page.rest
        )
        rest = page.rest
        if not rest:
            return found
    raise AssertionError


def open_many(broker: Broker, count: int, address: str = "cartpole") -> list[int]:
    return [
        broker.open(LEARNER, address, nonce=address[:4].encode() + number.to_bytes(12))
        for number in range(count)
    ]


def refusal(sent: list[SentMessage]) -> Error:
    return only(sent, Error)


# --- pages ----------------------------------------------------------------------------------------


def test_an_observation_names_agent_learner_and_counters(broker: Broker) -> None:
    hello = Hello(Role.ENV, b"a" * 16, "gymwire test", "lab", pid=11)
    broker.say(ENV, hello)
    broker.say(ENV, with_process(offer("cartpole"), 11, 10))
    broker.say(LEARNER, Hello(Role.LEARNER, b"l" * 16, "gymwire test", "desk", pid=12))
    sid = broker.open(LEARNER)
    broker.say(LEARNER, Act(0), sid, 1)
    found = observed(broker)
    [one], [session] = found.offers, found.sessions
    assert (one["address"], one["host"], one["pid"], one["agent_pid"]) == (
        "cartpole",
        "lab",
        11,
        10,
    )
    assert (one["slots"], one["used"], one["state"], one["name"]) == (4, 1, "ready", "anyone")
    assert session["sid"] == sid
    assert session["agent"] == one["agent"]
    assert (session["learner"], session["learner_host"], session["learner_pid"]) == (
        "anyone",
        "desk",
        12,
    )
    assert (session["host"], session["pid"], session["frames"]) == ("lab", 11, 1)
    assert (found.broker["sessions"], found.broker["sessions_opened"]) == (1, 1)
    assert found.broker["frames"] == 1
    assert b"a" * 16 not in PLAIN.encode(found)  # the id of a process is a secret


def test_workers_of_an_env_agent_have_one_name(broker: Broker) -> None:
    names = set()
    for number, (host, pid) in enumerate([("lab", 10), ("lab", 10), ("lab", 20), ("b", 10)]):
        rid = b"\x01env%d" % number
        broker.say(rid, Hello(Role.ENV, rid.ljust(16), "gymwire test", host, pid=number + 1))
        broker.say(rid, with_process(offer("cartpole"), number + 1, pid))
        names.add(broker.core._tables.peers[rid].agent_id)
    assert len(names) == 3


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250])
def test_the_pages_hold_each_session_once(broker: Broker, count: int) -> None:
    broker.env(capacity=1000)
    broker.learner()
    sids = open_many(broker, count)
    assert [session["sid"] for session in observed(broker).sessions] == sids


@pytest.mark.parametrize("count", [1, 100, 101, 250])
def test_the_pages_hold_each_offer_once(broker: Broker, count: int) -> None:
    for number in range(count):
        broker.env(b"\x01env%d" % number, *[f"a{number % 7}/b{number}"])
    names = [one["address"] for one in observed(broker).offers]
    assert names == sorted({f"a{number % 7}/b{number}" for number in range(count)})


@pytest.mark.parametrize("ended", [range(50), range(90, 160), range(100, 250, 2), range(250)])
def test_sessions_that_last_are_listed_once_although_others_end(
    broker: Broker, ended: range
) -> None:
    broker.env(capacity=1000)
    broker.learner()
    broker.learner(OPERATOR)
    sids = open_many(broker, 250)
    seen: list[int] = []
    rest: list[Any] = []
    for seq in itertools.count(1):
        page = only(broker.say(OPERATOR, Observe(rest), seq=seq), Observed)
        seen += [session["sid"] for session in page.sessions]
        rest = page.rest
        if not rest:
            break
        if seq == 2:  # after the first page of sessions
            for number in ended:
                broker.say(OPERATOR, Stop(), sids[number], 1000 + number)
            late = broker.open(LEARNER, nonce=b"late".ljust(16))
    lasting = [sid for number, sid in enumerate(sids) if number not in ended or number < 100]
    assert seen == [*lasting, late]


@pytest.mark.parametrize(
    "after",
    [
        [1], ["offers"], ["offers", 1, 0], ["offers", "a", -1], ["offers", "a", 2**40],
        ["other", 1, 1],
        ["sessions", "a", 1], ["sessions", 1.5, 0], ["sessions", 1], [[]], [None, None, None],
    ],
)  # fmt: skip
def test_an_invented_rest_is_refused(broker: Broker, after: list[Any]) -> None:
    broker.learner(OPERATOR)
    error = refusal(broker.say(OPERATOR, Observe(after), seq=1))
    assert (error.code, "OBSERVED.rest" in error.text) == (Code.PROTOCOL, True)


@pytest.mark.parametrize(
    "after",
    [
        ["offers", "", 0], ["offers", "zzz", 7], ["offers", "cartpole", 2**31 - 1],
        ["sessions", -(2**70), -(2**70)], ["sessions", 2**70, 2**70], ["sessions", True, False],
    ],
)  # fmt: skip
def test_any_rest_of_the_right_form_gets_a_page(broker: Broker, after: list[Any]) -> None:
    broker.env()
    broker.open(broker.learner())
    broker.learner(OPERATOR)
    only(broker.say(OPERATOR, Observe(after), seq=1), Observed)


def test_what_is_hidden_does_not_make_a_page_long(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "PAGE_EXAMINED", 10)
    policy = parse_policy('observe = ["lab/*"]')
    broker = Broker(policy=policy)
    for number in range(40):
        broker.env(b"\x01e%d" % number, f"hidden/{number}")
    broker.env(ENV, "lab/cartpole", "secret/cartpole", capacity=100)
    broker.learner()
    open_many(broker, 40, "secret/cartpole")
    [sid] = open_many(broker, 1, "lab/cartpole")
    found = observed(broker)
    assert [one["address"] for one in found.offers] == ["lab/cartpole"]
    assert [one["sid"] for one in found.sessions] == [sid]
    assert found.broker["sessions"] == 41


def test_observing_without_a_pause_has_to_wait(broker: Broker) -> None:
    broker.env(capacity=1000)
    broker.learner()
    open_many(broker, 200)
    broker.learner(OPERATOR)
    for seq in range(int(BURST)):
        [sent] = broker.say(OPERATOR, Observe(["sessions", -1, 0]), seq=seq)
        if isinstance(sent.message, Busy):
            break
    else:
        raise AssertionError("never refused")
    broker.now += sent.message.retry_after_s + 0.01
    only(broker.say(OPERATOR, Observe(), seq=9999), Observed)


def asked_until_busy(broker: Broker, request: Message) -> int:
    for seq in range(int(BURST) + 10):
        [sent] = broker.say(OPERATOR, request, seq=seq)
        if isinstance(sent.message, Busy):
            return seq
    raise AssertionError("never refused")


def test_a_page_costs_what_it_passes_over(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "PASSED", 1)  # as if there were 256 times as many sessions
    broker.env(capacity=400)
    broker.learner()
    open_many(broker, 400)
    broker.learner(OPERATOR)
    assert asked_until_busy(broker, Observe(["sessions", -1, 400])) < 200


def test_a_page_costs_what_it_takes_to_group_the_loops_of_an_address(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "LOOPS", 1)
    for i in range(64):
        broker.env(b"\x01env%d" % i)
    broker.learner(OPERATOR)
    assert asked_until_busy(broker, Observe(["offers", "cartpole", 64])) < 1000


def test_stopping_an_env_agent_costs_what_it_takes_to_find_it(broker: Broker) -> None:
    for i in range(100):
        broker.learner(b"\x01learner%d" % i)
    broker.learner(OPERATOR)
    assert asked_until_busy(broker, Stop("nobody")) < 1000


# --- who may --------------------------------------------------------------------------------------


def parse_policy(rights: str) -> Policy:
    return parse(f'[anyone]\noffer = ["*"]\nuse = ["*"]\n{rights}')


REQUESTS: list[tuple[str, Message]] = [("observe", Observe()), ("stop", Stop())]


@pytest.mark.parametrize(("verb", "request_"), REQUESTS)
def test_without_a_policy_only_the_host_may(verb: str, request_: Message) -> None:
    broker = Broker()
    broker.env()
    sid = broker.open(broker.learner())
    broker.learner(OPERATOR)
    broker.on_host = False
    error = refusal(broker.say(OPERATOR, request_, sid if verb == "stop" else 0, 1))
    assert error.code == Code.DENIED
    assert f"only processes on the broker's host may {verb}" in error.text


@pytest.mark.parametrize("rights", ["", 'observe = []\nstop = ["lab/*"]'])
def test_with_a_policy_a_key_may_what_its_entry_says(rights: str) -> None:
    broker = Broker(policy=parse_policy(rights))
    broker.env()
    sid = broker.open(broker.learner())
    broker.learner(OPERATOR)
    error = refusal(broker.say(OPERATOR, Observe(), seq=1))
    assert (error.code, "named 'anyone'" in error.text) == (Code.DENIED, True)
    error = refusal(broker.say(OPERATOR, Stop(), sid, 2))
    assert (error.code, "may not stop" in error.text) == (Code.DENIED, True)
    assert observed_sids(broker) == [sid]


def observed_sids(broker: Broker) -> list[int]:
    return [one.sid for one in broker.core.snapshot(broker.now).sessions]


def test_a_policy_replaces_the_rule_about_the_host() -> None:
    broker = Broker(policy=parse_policy('observe = ["*"]'))
    broker.on_host = False
    broker.env()
    assert len(observed(broker).offers) == 1


@pytest.mark.parametrize("value", ['"*"', "[1]", "3", "true"])
@pytest.mark.parametrize("right", ["observe", "stop"])
def test_a_right_is_a_list_of_patterns(right: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{right} must be a list of address patterns"):
        parse(f"[anyone]\n{right} = {value}")


# --- reports --------------------------------------------------------------------------------------


def report(*rows: Any) -> Report:
    return Report(list(rows))


def test_a_report_shows_until_it_is_old(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    broker.say(ENV, report([sid, 1200, 400.0, 0.001, 0.002, 0.4, True]))
    [session] = observed(broker).sessions
    shown = ("steps", "steps_per_s", "p50_s", "p99_s", "in_step_s", "direct")
    assert [session[key] for key in shown] == [1200, 400.0, 0.001, 0.002, 0.4, True]
    broker.now += 3.0
    [session] = observed(broker).sessions
    assert (session["steps"], session["in_step_s"]) == (1200, None)


def test_every_connection_of_the_process_may_report(broker: Broker) -> None:
    broker.env(agent=b"p")
    broker.hello(PULSE, Role.PROGRESS, agent=b"p")
    sid = broker.open(broker.learner())
    broker.say(PULSE, report([sid, 5, 1.0, 0.1, 0.1, 0.0, False]))
    [session] = observed(broker).sessions
    assert (session["steps"], session["direct"]) == (5, False)


def test_nobody_reports_the_sessions_of_another(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    broker.env(b"\x01other", "other")
    broker.say(b"\x01other", report([sid, 5, 1.0, 0.1, 0.1, 0.0, False]))
    found = observed(broker)
    assert found.sessions[0]["steps"] is None
    assert found.broker["dropped"] == {Drop.NOT_OURS: 1}


@pytest.mark.parametrize(
    "row",
    [
        None, [], [1], {}, "x", ["1", 1, 1.0, 1.0, 1.0, 0.0, False],
        [1, -1, 1.0, 1.0, 1.0, 0.0, True],
        [1, 2**63, 1.0, 1.0, 1.0, 0.0, True], [1, 1, float("nan"), 1.0, 1.0, 0.0, True],
        [1, 1, 1.0, float("inf"), 1.0, 0.0, True], [1, 1, 1.0, 1.0, -1e-9, 0.0, True],
        [1, 1, 1.0, 1.0, 1.0, None, True], [1, 1, 1.0, 1.0, 1.0, 0.0, 1],
        [1, 1, 2**2000, 1.0, 1.0, 0.0, True], [1, 2**2000, 1.0, 1.0, 1.0, 0.0, True],
        [1, 1, 1.0, 1.0, 1.0, 0.0, True, 1], [1, 1.5, 1.0, 1.0, 1.0, 0.0, True],
    ],
    ids=repr,
)  # fmt: skip
def test_a_malformed_row_is_refused(broker: Broker, row: object) -> None:
    broker.env()
    error = refusal(broker.say(ENV, report(row)))
    assert error.code == Code.PROTOCOL
    assert "A row of REPORT must be" in error.text


def test_a_report_has_a_limited_number_of_rows(broker: Broker) -> None:
    broker.env()
    row = [1, 1, 1.0, 1.0, 1.0, 0.0, False]
    assert broker.say(ENV, report(*[row] * 1000)) == []
    assert refusal(broker.say(ENV, report(*[row] * 1001))).code == Code.PROTOCOL


# --- stopping -------------------------------------------------------------------------------------


def test_a_stopped_session_ends_for_both_sides_which_learn_who_stopped_it(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    broker.say(OPERATOR, Hello(Role.LEARNER, b"o" * 16, "gymwire test", "desk", pid=77))
    sent = broker.say(OPERATOR, Stop(), sid, 4)
    assert {one.rid: type(one.message) for one in sent} == {
        OPERATOR: Stopped, LEARNER: Gone, ENV: Gone,
    }  # fmt: skip
    assert sent[0].header.seq == 4
    losses = {one.message for one in sent if isinstance(one.message, Gone)}
    reason = "an operator ('anyone', process 77 on desk) has stopped it"
    assert losses == {Gone(reason, EndedBy.OPERATOR)}
    found = observed(broker)
    assert found.sessions == []
    assert found.broker["sessions_lost"] == {Loss.OPERATOR: 1}


def test_a_repeated_stop_gets_the_answer_that_the_session_has_ended(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    broker.learner(OPERATOR)
    broker.say(OPERATOR, Stop(), sid, 4)
    assert only(broker.say(OPERATOR, Stop(), sid, 4), Stopped) == Stopped(0, 0)


@pytest.mark.parametrize(("agent", "sid"), [("", 12345), ("", 0), ("nobody", 0), ("x" * 5000, 0)])
def test_what_does_not_exist_is_not_stopped(broker: Broker, agent: str, sid: int) -> None:
    broker.env()
    broker.learner(OPERATOR)
    error = refusal(broker.say(OPERATOR, Stop(agent), sid, 1))
    assert error.code == Code.NOT_STOPPED
    assert len(error.text) < 200


def worker(broker: Broker, number: int, pid: int, capabilities: list[str]) -> bytes:
    """Connect a serving loop and a progress connection; return the routing id of the latter."""
    agent = b"agent%d" % number
    for rid, role in ((b"\x01e%d" % number, Role.ENV), (b"\x01p%d" % number, Role.PROGRESS)):
        hello = Hello(role, agent, "gymwire test", "lab", [], capabilities, pid)
        broker.say(rid, hello)
    broker.say(b"\x01e%d" % number, with_process(offer("cartpole"), pid, 10))
    return b"\x01p%d" % number


def test_a_stopped_env_agent_drains_with_all_its_workers(broker: Broker) -> None:
    pulses = {worker(broker, number, 11 + number, [OBSERVE]) for number in range(3)}
    broker.env(b"\x01other", "cartpole")
    broker.open(broker.learner())
    agent = next(one["agent"] for one in observed(broker).offers if one["agent_pid"] == 10)
    answer, *orders = broker.say(OPERATOR, Stop(agent), seq=5)
    assert answer.message == Stopped(3, 1)
    assert {one.rid for one in orders} == pulses
    assert all(isinstance(one.message, Stop) for one in orders)
    states = [(one["agent_pid"], one["state"]) for one in observed(broker).offers]
    assert sorted(states, key=str) == [(10, "draining")] * 3 + [(None, "ready")]


def test_an_env_agent_of_an_earlier_release_is_not_stopped(broker: Broker) -> None:
    worker(broker, 1, 11, [])
    [one] = observed(broker).offers
    error = refusal(broker.say(OPERATOR, Stop(one["agent"]), seq=5))
    assert error.code == Code.NOT_STOPPED
    assert "Send SIGTERM" in error.text


def test_a_stop_waits_for_the_progress_connections_of_all_processes(broker: Broker) -> None:
    broker.env()
    [one] = observed(broker).offers
    assert only(broker.say(OPERATOR, Stop(one["agent"]), seq=5), Busy).reason == "unreachable"
    assert observed(broker).offers[0]["state"] == "ready"


def test_an_env_agent_is_stopped_only_with_the_right_for_all_its_addresses() -> None:
    broker = Broker(policy=parse_policy('observe = ["*"]\nstop = ["lab/*"]'))
    hello = Hello(Role.PROGRESS, ENV, "gymwire test", "lab", [], [OBSERVE])
    broker.env(ENV, "lab/one", "other/two")
    broker.say(PULSE, hello)
    agent = observed(broker).offers[0]["agent"]
    error = refusal(broker.say(OPERATOR, Stop(agent), seq=1))
    assert (error.code, "may not stop 'other/two'" in error.text) == (Code.DENIED, True)
    broker.say(ENV, Withdraw("other/two"))
    assert {one["state"] for one in observed(broker).offers} == {"ready", "draining"}


# --- what is refused and dropped ------------------------------------------------------------------


def details(broker: Broker) -> list[tuple[str, dict[str, object]]]:
    return [(one.event, one.facts) for one in broker.core.take_notes() if one.detail]


def test_each_refused_or_dropped_frame_is_noted_with_reason_and_sender(broker: Broker) -> None:
    broker.env()
    sid = broker.open(broker.learner())
    broker.core.take_notes()
    broker.say(LEARNER, Open("nowhere", b"x" * 16), seq=2)
    broker.say(b"\x01stranger", Ping())
    broker.say(ENV, Percept(0, 0.0, False, False, {}), sid + 1, 1)
    broker.say(LEARNER, Bye())
    broker.core.attach(memoryview(b"nonsense"), broker.now)
    noted = details(broker)
    assert [(event, facts.get("code", facts["why"])) for event, facts in noted] == [
        ("frame refused", Code.ADDRESS_UNKNOWN),
        ("frame refused", "busy"),
        ("frame dropped", Drop.NO_TOKEN),
    ]
    assert noted[0][1]["peer"] == "anyone"
    assert noted[1][1]["rid"] == b"\x01stranger".hex()


def test_details_are_limited_in_rate_and_all_are_counted(broker: Broker) -> None:
    for _ in range(MAX_DETAILS + 5):
        broker.say(b"\x01stranger", Ping())
    assert len(details(broker)) == MAX_DETAILS
    broker.expire(0.1)
    broker.say(b"\x01stranger", Ping())
    assert [event for event, _ in details(broker)] == ["frames not shown", "frame refused"]
    assert observed(broker).broker["busy"] == {"hello": MAX_DETAILS + 6}


def test_every_note_about_a_session_names_its_learner(broker: Broker) -> None:
    policy = Policy(anyone=Rights("alice", offer=("*",), use=("*",), stop=("*",)))
    broker = Broker(policy=policy)
    broker.env()
    broker.say(LEARNER, Hello(Role.LEARNER, b"l" * 16, "gymwire test", "desk", pid=12))
    sid = broker.open(LEARNER)
    broker.learner(OPERATOR)
    broker.say(OPERATOR, Stop(), sid, 1)
    notes = [one for one in broker.core.take_notes() if one.event.startswith("session")]
    assert [one.event for one in notes] == ["session opened", "session lost"]
    for one in notes:
        assert one.facts["session"] == f"{sid:016x}"
        shown = [one.facts[key] for key in ("learner", "learner_host", "learner_pid")]
        assert shown == ["alice", "desk", 12]
