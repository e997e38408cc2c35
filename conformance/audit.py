"""Rules for every frame of an env agent, whatever its kind."""

from __future__ import annotations

from gymwire.conformance.check import Violation, expect
from gymwire.protocol import stamps
from gymwire.protocol.arrays import ALIGNMENT
from gymwire.protocol.codec import (
    COMPACT,
    EXTENDED,
    HEADER_SIZE,
    TIMED,
    Codec,
    Header,
    read_header,
    split,
)
from gymwire.protocol.errors import DecodingError, VersionMismatch
from gymwire.protocol.messages import Kind, Message

DEFINED_FLAGS = COMPACT | TIMED | EXTENDED
WITH_VALUES = (Kind.STATUS, Kind.PERCEPT)  # the kinds that an env agent may send in compact form


def header_of(frame: bytes) -> Header:
    """Return the header of a frame. Raises Violation."""
    try:
        header = read_header(frame)
    except VersionMismatch as error:
        raise Violation("version 1 in byte 1 of the frame", str(error), "3.8") from None
    except DecodingError as error:
        raise Violation("a header of 24 bytes and the head", str(error), "3.7") from None
    expect(
        not header.flags & ~DEFINED_FLAGS,
        "flag bits from 3 on are 0",
        f"flags {header.flags:#04x} of {header.kind.name}",
        "3.7",
    )
    compact = header.flags & COMPACT and header.kind not in WITH_VALUES
    expect(not compact, "COMPACT only where a space applies", header.kind.name, "11.8")
    timed = header.flags & TIMED and header.kind is not Kind.PERCEPT
    expect(not timed, "TIMED only in ACT and PERCEPT", header.kind.name, "8.2")
    return header


def message_of(frame: bytes, header: Header, codec: Codec) -> Message:
    """Return the message of a frame. Raises Violation."""
    if header.flags & TIMED:
        try:
            plain, _ = stamps.strip_reply(frame)
        except DecodingError as error:
            raise Violation("time stamps that do not run backwards", str(error), "8.3") from None
        frame = bytes(plain)
        header = header_of(frame)
    name = header.kind.name
    try:
        split(frame, header.head_len)
    except DecodingError as error:
        raise Violation("a head of values", f"{name}: {error}", "10.1") from None
    try:
        message = codec.decode(frame, header)
    except DecodingError as error:
        is_field = error.path or " fields, not " in str(error)
        clause = "11.8" if header.flags & COMPACT and not is_field else "4"
        raise Violation(f"the fields of {name}", str(error), clause) from None
    _check_tail(frame, header, codec)
    return message


def _check_tail(frame: bytes, header: Header, codec: Codec) -> None:
    end = HEADER_SIZE + header.head_len
    if len(frame) == end or header.flags & EXTENDED:
        return
    start = -(-end // ALIGNMENT) * ALIGNMENT
    expect(
        not any(frame[end:start]), "padding of zeros before the tail", frame[end:start].hex(), "3.7"
    )
    try:
        codec.decode(frame[:end], header)
    except DecodingError:
        return  # the head refers to the tail
    raise Violation(
        "neither padding nor tail if the head refers to nothing there",
        f"{len(frame) - end} bytes after the head of {header.kind.name}",
        "3.9",
    )
