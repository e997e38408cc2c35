"""Peers of release 0.1.0 and of this one understand each other (docs/protocol.md §3.11).

tests/golden/release-0.1.0.txt keeps frames that the code of 0.1.0 encoded: every kind of message,
and a step with time stamps. It never changes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gymwire.protocol import stamps
from gymwire.protocol.capabilities import CAPABILITIES, EXTENSIONS, common, require
from gymwire.protocol.codec import (
    EXTENDED,
    FLAGS_AT,
    HEAD_LEN,
    HEADER_SIZE,
    MAX_EXTENSIONS,
    PLAIN,
    TIMED,
    Frame,
    read_header,
)
from gymwire.protocol.errors import DecodingError, VersionMismatch
from gymwire.protocol.messages import Hello, Kind, Message, Offer, Percept, Role, Welcome
from gymwire.protocol.values import decode, encode, unpack
from tests.protocol.examples import CODEC, DOCUMENTED, EXAMPLES, OBSERVED, SID
from tests.protocol.test_golden import read
from tests.sameness import assert_same

KEPT = read(Path(__file__).parents[1] / "golden" / "release-0.1.0.txt")
TIMED_FRAMES = {"ACT, timed", "PERCEPT, timed"}
EXTENDED_KINDS = (Kind.HELLO, Kind.WELCOME, Kind.OFFER)


def with_capabilities(message: Message) -> Message:
    assert isinstance(message, Hello | Welcome | Offer)
    return replace(message, capabilities=list(CAPABILITIES))


def as_release_0_1_0_reads(frame: Frame) -> tuple[bytes, list[Any]]:
    """Decode as 0.1.0 does: the header without unknown flags, and as many fields as it knows.

    It reads `head_len` bytes of head, and of the rest only the arrays that the head refers to.
    """
    end = HEADER_SIZE + int.from_bytes(frame[HEAD_LEN], "little")
    header = bytearray(frame[:HEADER_SIZE])
    header[FLAGS_AT] &= 0b11
    start = (end + 15) // 16 * 16
    fields = unpack(bytes(frame[HEADER_SIZE:end]), memoryview(frame)[start:])
    assert type(fields) is list
    return bytes(header), fields


def test_every_kind_of_0_1_0_is_kept() -> None:
    kinds = {read_header(frame).kind for frame in KEPT.values()}
    assert kinds == {kind for kind in Kind if kind <= Kind.ATTACHED}
    assert KEPT.keys() - TIMED_FRAMES <= EXAMPLES.keys()


@pytest.mark.parametrize("name", sorted(KEPT.keys() - TIMED_FRAMES))
def test_this_release_reads_a_frame_of_0_1_0(name: str) -> None:
    message, *numbers = EXAMPLES[name]
    header = read_header(KEPT[name])
    assert [header.sid, header.seq] == numbers
    back = CODEC.decode(KEPT[name], header)
    assert type(back) is type(message)
    for field in type(message).__dataclass_fields__:
        assert_same(getattr(back, field), getattr(message, field), field)


@pytest.mark.parametrize("name", sorted(KEPT.keys() - TIMED_FRAMES))
def test_0_1_0_reads_what_this_release_sends(name: str) -> None:
    message, sid, seq = EXAMPLES[name]
    if read_header(KEPT[name]).kind in EXTENDED_KINDS:
        message = with_capabilities(message)
    header, fields = as_release_0_1_0_reads(CODEC.encode(message, sid, seq))
    kept_header, kept_fields = as_release_0_1_0_reads(KEPT[name])
    assert header == kept_header
    assert_same(fields, kept_fields)


def test_time_stamps_are_those_of_0_1_0() -> None:
    act = stamps.request_stamps(CODEC.encode(*DOCUMENTED["ACT"]))
    assert act == KEPT["ACT, timed"]
    relayed = stamps.stamp_relay(bytes(act), 5_000, lambda: 8_000)
    _, request = stamps.strip_request(bytes(relayed))
    percept = CODEC.encode(Percept(OBSERVED, 0.0, False, False, {}), SID, 2)
    at = (90_000, 100_000, 102_000, 152_000)
    reply = stamps.append_reply(percept, request, *at, clock=lambda: 155_000)
    assert stamps.stamp_relay(bytes(reply), 205_000, lambda: 209_000) == KEPT["PERCEPT, timed"]
    assert stamps.strip_reply(KEPT["PERCEPT, timed"])[0][FLAGS_AT] & TIMED == 0


# --- extension fields -----------------------------------------------------------------------------

HELLO = Hello(Role.LEARNER, b"a" * 16, "gymwire 0.2.0", "host")
EMPTY = bytes(PLAIN.encode(HELLO))


def extended(packed: bytes, size: int | None = None) -> bytes:
    """HELLO with these bytes as its extension fields."""
    frame = bytearray(EMPTY + packed)
    frame += (len(packed) if size is None else size).to_bytes(4, "little")
    frame[FLAGS_AT] |= EXTENDED
    return bytes(frame)


@pytest.mark.parametrize("kind", EXTENDED_KINDS)
def test_capabilities_come_back(kind: Kind) -> None:
    message, sid, seq = EXAMPLES[kind.name]
    frame = PLAIN.encode(with_capabilities(message), sid, seq)
    assert frame[FLAGS_AT] & EXTENDED
    assert PLAIN.decode(frame) == with_capabilities(message)
    assert PLAIN.decode(memoryview(bytes(frame))) == with_capabilities(message)


def test_a_message_without_capabilities_has_the_bytes_of_0_1_0() -> None:
    assert EMPTY[FLAGS_AT] == 0
    assert PLAIN.decode(EMPTY) == HELLO


def test_extension_fields_of_a_later_release_are_ignored() -> None:
    frame = extended(encode({"capabilities": ["from-the-future"], "more": 1}))
    assert PLAIN.decode(frame) == replace(HELLO, capabilities=["from-the-future"])
    ping = bytearray(PLAIN.encode(EXAMPLES["PING"][0]) + encode({"x": 1}) + b"\x04\0\0\0")
    ping[FLAGS_AT] |= EXTENDED
    assert decode(encode({"x": 1})) == {"x": 1}
    assert PLAIN.decode(bytes(ping)) == EXAMPLES["PING"][0]


@pytest.mark.parametrize(
    "frame",
    [
        extended(b"", 1),
        extended(b"", 2**32 - 1),
        extended(b"\x80", 20),
        extended(b"\x80", 0),
        extended(b"\x90"),
        extended(b"\xc1"),
        extended(encode({"capabilities": "extensions"})),
        extended(encode({"x": "y" * MAX_EXTENSIONS})),
        EMPTY[:FLAGS_AT] + b"\x04" + EMPTY[FLAGS_AT + 1 :],
    ],
    ids=[
        "none",
        "a huge size",
        "more than there are",
        "no bytes",
        "an array",
        "no value",
        "a wrong type",
        "too many",
        "no size",
    ],
)
def test_malformed_extension_fields_are_refused(frame: bytes) -> None:
    with pytest.raises(DecodingError):
        PLAIN.decode(frame)


# --- negotiation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "both"),
    [
        ([], frozenset()),
        ([EXTENSIONS, "from-the-future"], frozenset({EXTENSIONS})),
        ([1, None, [EXTENSIONS], {"a": 1}], frozenset()),
    ],
)
def test_what_both_sides_name_is_used(theirs: list[object], both: frozenset[str]) -> None:
    assert common(theirs) == both


def test_a_missing_capability_names_both_versions_and_who_must_upgrade() -> None:
    require(EXTENSIONS, {EXTENSIONS}, who="the broker", theirs="gymwire 0.2.0", ours="gymwire 9")
    with pytest.raises(VersionMismatch, match=r"the broker \(gymwire 0.1.0\).*gymwire 9.*Upgrade"):
        require(EXTENSIONS, (), who="the broker", theirs="gymwire 0.1.0", ours="gymwire 9")


@pytest.mark.parametrize(("version", "who"), [(0, "the other side"), (2, "this side")])
def test_another_version_of_the_protocol_says_who_must_upgrade(version: int, who: str) -> None:
    frame = EMPTY[:1] + bytes([version]) + EMPTY[2:]
    with pytest.raises(VersionMismatch, match=f"version {version}, .*version 1.*on {who}"):
        read_header(frame)
