"""Time stamps at the ends of frames (docs/protocol.md §8)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from gymwire.protocol import stamps
from gymwire.protocol.codec import HEADER_SIZE, PLAIN, TIMED, Frame, read_header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import Act, Percept, Reset

SID, SEQ = 0x1122334455667788, 7
ACT = PLAIN.encode(Act(3), SID, SEQ)
PERCEPT = PLAIN.encode(Percept([1, 2], 1.0, False, False, {}), SID, SEQ)


@pytest.fixture
def clock() -> Callable[[], int]:
    """Return a clock that reads 1000, 1001, 1002, and so on."""
    return itertools.count(1000).__next__


def timed_percept(clock: Callable[[], int], request: bytes = bytes(16)) -> Frame:
    return stamps.append_reply(PERCEPT, request, 10, 20, 30, 40, clock)


def test_a_request_that_asks_has_the_flag_and_room_for_the_broker() -> None:
    frame = stamps.request_stamps(ACT)
    assert read_header(frame) == read_header(ACT)._replace(flags=TIMED)
    assert frame[HEADER_SIZE:] == ACT[HEADER_SIZE:] + bytes(16)


def test_stripping_the_stamps_restores_the_request() -> None:
    assert stamps.strip_request(bytes(stamps.request_stamps(ACT))) == (ACT, bytes(16))


def test_the_broker_writes_into_the_room_that_it_finds(clock: Callable[[], int]) -> None:
    frame = stamps.request_stamps(ACT)
    passed = stamps.stamp_relay(memoryview(frame), 999, clock)
    assert passed[:-16] == frame[:-16]
    assert passed[-16:] == (999).to_bytes(8, "little") + (1000).to_bytes(8, "little")


def test_requests_that_differ_in_the_brokers_stamps_are_the_same(clock: Callable[[], int]) -> None:
    first, second = (
        bytes(stamps.stamp_relay(bytes(stamps.request_stamps(ACT)), 0, clock)) for _ in range(2)
    )
    assert first != second
    assert stamps.strip_request(first)[0] == stamps.strip_request(second)[0] == ACT


def test_a_reply_carries_the_stamps_of_all(clock: Callable[[], int]) -> None:
    request = stamps.strip_request(
        bytes(stamps.stamp_relay(bytes(stamps.request_stamps(ACT)), 999, clock))
    )[1]
    reply = stamps.stamp_relay(bytes(timed_percept(clock, request)), 900, clock)
    frame, taken = stamps.strip_reply(bytes(reply))
    assert frame == PERCEPT
    assert taken == (999, 1000, 10, 20, 30, 40, 1001, 900, 1002)


def test_in_a_direct_session_the_brokers_stamps_are_zero(clock: Callable[[], int]) -> None:
    taken = stamps.strip_reply(bytes(timed_percept(clock)))[1]
    assert (taken.request_received, taken.request_sent) == (0, 0)
    assert (taken.reply_received, taken.reply_sent) == (0, 0)


@pytest.mark.parametrize("cut", range(1, 17))
def test_a_request_too_short_for_its_stamps_is_refused(cut: int) -> None:
    with pytest.raises(DecodingError, match="16 bytes of time stamps"):
        stamps.strip_request(bytes(stamps.request_stamps(ACT)[:-cut]))


@pytest.mark.parametrize("cut", [1, 16, 71, 72])
def test_a_reply_too_short_for_its_stamps_is_refused(cut: int, clock: Callable[[], int]) -> None:
    with pytest.raises(DecodingError, match="72 bytes of time stamps"):
        stamps.strip_reply(bytes(timed_percept(clock)[:-cut]))


@pytest.mark.parametrize("head_len", [2**32 - 1, 3, 100])
def test_a_head_that_reaches_into_the_stamps_is_refused(head_len: int) -> None:
    frame = bytearray(stamps.request_stamps(ACT))
    frame[4:8] = head_len.to_bytes(4, "little")
    with pytest.raises(DecodingError):
        stamps.strip_request(bytes(frame))


@pytest.mark.parametrize("frame", [ACT, PERCEPT])
def test_the_broker_leaves_frames_alone_that_have_no_room(
    frame: bytes, clock: Callable[[], int]
) -> None:
    for room in range(16):
        data = bytearray(frame) + bytes(room)
        data[3] |= TIMED
        assert stamps.stamp_relay(bytes(data), 1, clock) == data


def test_the_broker_stamps_nothing_but_steps(clock: Callable[[], int]) -> None:
    frame = bytes(stamps.request_stamps(PLAIN.encode(Reset(1), SID, SEQ)))
    assert stamps.stamp_relay(frame, 1, clock) is frame


@pytest.mark.parametrize("place", [1, 3, 4, 5, 6, 8])
def test_stamps_that_run_backwards_are_refused(place: int, clock: Callable[[], int]) -> None:
    request = (5).to_bytes(8, "little") + (6).to_bytes(8, "little")
    frame = bytearray(stamps.stamp_relay(bytes(timed_percept(clock, request)), 7, clock))
    at = len(frame) - stamps.REPLY_SIZE + 8 * place
    frame[at : at + 8] = (1).to_bytes(8, "little")
    with pytest.raises(DecodingError, match="backwards"):
        stamps.strip_reply(bytes(frame))
