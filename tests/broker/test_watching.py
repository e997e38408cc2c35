"""WATCH and WATCHED at the broker (docs/protocol.md §6.8)."""

from __future__ import annotations

import pytest

from gymwire.broker import watches
from gymwire.broker.auth import parse
from gymwire.broker.journal import Drop
from gymwire.broker.rate_limit import BURST
from gymwire.protocol.capabilities import WATCH
from gymwire.protocol.codec import MAX_CONTROL
from gymwire.protocol.messages import (
    Busy,
    Code,
    Error,
    Hello,
    Ping,
    Role,
    Watch,
    Watched,
)
from tests.broker.harness import Broker, SentMessage, offer, only

ENV, OTHER, LEARNER, WATCHER = b"\x01env", b"\x01other", b"\x01learner", b"\x01watcher"
FRAME = Watched(1, "image/png", b"picture")


def agent(broker: Broker, rid: bytes = ENV, capabilities: tuple[str, ...] = (WATCH,)) -> None:
    """Connect a serving loop that offers cartpole."""
    broker.say(rid, Hello(Role.ENV, rid.ljust(16), "toy 3", "lab", [], list(capabilities)))
    broker.say(rid, offer("cartpole"))


@pytest.fixture
def broker() -> Broker:
    broker = Broker()
    agent(broker)
    broker.learner(WATCHER)
    return broker


def asked(sent: list[SentMessage]) -> tuple[bytes, int, int]:
    """Return the loop that gets a WATCH, its number there, and its `after`."""
    [one] = sent
    assert isinstance(one.message, Watch), sent
    return one.rid, one.header.seq, one.message.after


def test_a_frame_goes_to_the_watcher_who_asked_for_it(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    rid, number, after = asked(broker.say(WATCHER, Watch(7), sid, 500))
    assert (rid, after) == (ENV, 7)
    [answer] = broker.say(ENV, FRAME, sid, number)
    assert (answer.rid, answer.message) == (WATCHER, FRAME)
    assert (answer.header.sid, answer.header.seq) == (sid, 500)
    # Each request is answered once.
    assert broker.say(ENV, FRAME, sid, number) == []
    assert broker.core._journal.dropped == {Drop.NOT_AWAITED: 1}


def test_a_frame_that_nobody_asked_for_goes_nowhere(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    agent(broker, OTHER)
    _, number, _ = asked(broker.say(WATCHER, Watch(), sid, 500))
    assert broker.say(OTHER, FRAME, sid, number) == []  # of another env agent
    assert broker.say(ENV, FRAME, sid, number + 1) == []
    assert broker.say(ENV, FRAME, sid + 1, number) == []
    assert broker.core._journal.dropped == {Drop.NOT_AWAITED: 3}


def test_a_request_that_is_repeated_during_a_long_step_is_answered_once(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    numbers = set()
    for seq in (500, 500, 501):
        numbers.add(asked(broker.say(WATCHER, Watch(), sid, seq))[1])
        broker.now += 1
    [number] = numbers
    [answer] = broker.say(ENV, FRAME, sid, number)
    assert answer.header.seq == 501


def test_a_watcher_that_asks_too_often_has_to_wait(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    _, number, _ = asked(broker.say(WATCHER, Watch(), sid, 500))
    broker.say(ENV, FRAME, sid, number)
    busy = only(broker.say(WATCHER, Watch(), sid, 501), Busy)
    assert busy.reason == "rate"
    assert busy.retry_after_s == pytest.approx(watches.MIN_WATCH_S)
    broker.now += busy.retry_after_s
    assert asked(broker.say(WATCHER, Watch(), sid, 501))[1] != number


def test_a_watcher_that_chooses_another_environment_gets_that_one_only(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    _, first, _ = asked(broker.say(WATCHER, Watch(), sid, 500))
    broker.now += 1
    [sent] = broker.say(WATCHER, Watch(0, 3), sid, 501)
    assert sent.message == Watch(0, 3)
    assert broker.say(ENV, FRAME, sid, first) == []
    [answer] = broker.say(ENV, Watched(1, "image/png", b"third", "", 4), sid, sent.header.seq)
    assert (answer.header.seq, answer.message) == (501, Watched(1, "image/png", b"third", "", 4))


def test_one_frame_at_most_is_on_its_way_to_a_watcher(broker: Broker) -> None:
    rids = [b"\x01l%d" % number for number in range(3)]
    sids = [broker.open(broker.learner(rid), nonce=rid.ljust(16)) for rid in rids]
    numbers = []
    for sid in sids:
        numbers.append(asked(broker.say(WATCHER, Watch(), sid, 500))[1])
        broker.now += 1
    pairs = zip(sids, numbers, strict=True)
    assert [len(broker.say(ENV, FRAME, sid, number)) for sid, number in pairs] == [0, 0, 1]


def test_a_watcher_that_does_not_read_gets_no_frame(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    broker.unread = watches.MAX_UNREAD + 1
    busy = only(broker.say(WATCHER, Watch(), sid, 500), Busy)
    assert (busy.reason, busy.retry_after_s) == ("rate", watches.UNREAD_RETRY_S)
    broker.unread = watches.MAX_UNREAD
    asked(broker.say(WATCHER, Watch(), sid, 500))


def test_two_watchers_do_not_wait_for_each_other(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    broker.learner(b"\x01second")
    _, first, _ = asked(broker.say(WATCHER, Watch(), sid, 500))
    _, second, _ = asked(broker.say(b"\x01second", Watch(), sid, 500))
    [answer] = broker.say(ENV, FRAME, sid, second)
    assert answer.rid == b"\x01second"
    [answer] = broker.say(ENV, FRAME, sid, first)
    assert answer.rid == WATCHER


def test_frames_are_paid_for_by_the_watcher_alone(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    large = Watched(1, "image/png", bytes(MAX_CONTROL - 1024))
    shown, waits = 0, 0
    for seq in range(500, 600):
        sent = broker.say(WATCHER, Watch(), sid, seq)
        broker.now += watches.MIN_WATCH_S
        if isinstance(sent[0].message, Busy):
            waits += 1
        else:
            shown += len(broker.say(ENV, large, sid, asked(sent)[1]))
    assert 5 < shown < 20  # of 1 MiB, in 5 s
    assert shown + waits == 100
    assert len(broker.say(ENV, Ping())) == 1  # its bucket is still full
    assert broker.core._limiter._buckets[ENV][0] >= BURST - 2


def test_a_frame_over_the_limit_is_refused(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    _, number, _ = asked(broker.say(WATCHER, Watch(), sid, 500))
    error = only(broker.say(ENV, Watched(1, "image/png", bytes(MAX_CONTROL)), sid, number), Error)
    assert error.code == Code.TOO_LARGE


def test_the_table_of_watchers_is_bounded(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    rids = [b"\x01w%d" % number for number in range(watches.MAX_WATCHES + 1)]
    numbers = []
    for rid in rids:
        broker.learner(rid)
        numbers.append(asked(broker.say(rid, Watch(), sid, 500))[1])
    assert broker.say(ENV, FRAME, sid, numbers[0]) == []  # the oldest is forgotten,
    assert len(broker.say(ENV, FRAME, sid, numbers[-1])) == 1  # the latest is not


def test_an_env_agent_of_an_earlier_release_is_not_watched() -> None:
    broker = Broker()
    agent(broker, capabilities=())
    sid = broker.open(broker.learner())
    broker.learner(WATCHER)
    error = only(broker.say(WATCHER, Watch(), sid, 500), Error)
    text = "The env agent on lab (toy 3) cannot be watched"
    assert (error.code, error.text) == (
        Code.NOT_WATCHABLE,
        f"{text}: it is of an earlier release. Upgrade gymwire there.",
    )


def test_what_does_not_exist_is_not_watched(broker: Broker) -> None:
    error = only(broker.say(WATCHER, Watch(), 12345, 500), Error)
    assert (error.code, "no session" in error.text) == (Code.NOT_WATCHABLE, True)


@pytest.mark.parametrize(
    ("rights", "why"),
    [
        ('observe = ["*"]\nstop = ["*"]', "may not watch: its entry has no `watch`"),
        ('watch = ["lab/*"]', "may not watch 'cartpole'. It may watch only lab/*"),
        ('watch = ["cart*"]', None),
    ],
)
def test_a_key_watches_only_with_the_right(rights: str, why: str | None) -> None:
    broker = Broker(policy=parse(f'[anyone]\noffer = ["*"]\nuse = ["*"]\n{rights}\n'))
    agent(broker)
    sid = broker.open(broker.learner())
    broker.learner(WATCHER)
    sent = broker.say(WATCHER, Watch(), sid, 500)
    if why is None:
        assert asked(sent)[0] == ENV
    else:
        error = only(sent, Error)
        assert (error.code, why in error.text) == (Code.DENIED, True)


def test_without_a_policy_only_processes_of_the_host_watch(broker: Broker) -> None:
    sid = broker.open(broker.learner())
    broker.on_host = False
    error = only(broker.say(WATCHER, Watch(), sid, 500), Error)
    assert error.code == Code.DENIED
    assert "only processes on the broker's host may watch" in error.text
