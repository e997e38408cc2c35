"""Decode the messages that the broker reads, at a bounded cost."""

from __future__ import annotations

import msgpack

from gymwire.broker.refusals import Refusal
from gymwire.protocol.codec import HEADER_SIZE, KIND_AT, MAX_CONTROL, Codec, Frame, Header
from gymwire.protocol.control_limits import MAX_PARTS, has_many_parts
from gymwire.protocol.messages import CONTROL_KINDS, Code, Kind, Message

LONG_BYTES = 4 * 1024  # above this size, the broker may need more than a few ms for a message

# The broker reads no field of a named tuple: types for peers' names would cost it time.
CODEC = Codec(makes_types=False)

# The frames of a session that the broker may decode although they cost their sender nothing.
FREE_DECODED = frozenset((Kind.ERROR, Kind.OPENED, Kind.WATCHED))
TEXT_BYTES = 4 * 1024  # of an ERROR, within which its text must end for the log
_LONGEST_HEADS = 10  # bytes before the first text of a message, in the longest forms of MessagePack
_LISTINGS = frozenset((Kind.FIND, Kind.OBSERVE))


def takes_long(data: Frame | memoryview) -> bool:
    """Return whether the broker may need more than a few ms for a frame that it does not relay."""
    if len(data) < HEADER_SIZE:
        return False
    kind = data[KIND_AT]
    is_decoded = kind >= CONTROL_KINDS and len(data) <= MAX_CONTROL
    return kind in _LISTINGS or (is_decoded and len(data) > LONG_BYTES)


def begins_with(data: bytes | memoryview, text: str) -> bool:
    """Return whether the first field of a message is this text. Decodes nothing behind it."""
    fields = msgpack.Unpacker(max_buffer_size=_LONGEST_HEADS + len(text))
    fields.feed(data[HEADER_SIZE : HEADER_SIZE + _LONGEST_HEADS + len(text)])
    try:
        fields.read_array_header()
        return bool(fields.unpack() == text)
    except (msgpack.UnpackException, ValueError):  # the end, or a malformed value
        return False


def error_text(data: bytes | memoryview) -> str:
    """Return the text of an ERROR; "" if it is malformed or long. Decodes nothing behind it."""
    fields = msgpack.Unpacker(max_buffer_size=TEXT_BYTES)
    fields.feed(data[HEADER_SIZE : HEADER_SIZE + TEXT_BYTES])
    try:
        fields.read_array_header()
        fields.skip()
        text = fields.unpack()
    except (msgpack.UnpackException, ValueError):  # the learner finds out
        return ""
    return text if isinstance(text, str) else ""


def decode(header: Header, data: bytes | memoryview) -> Message:
    """Return the message of a frame to the broker.

    Raises Refusal if it is too large, and DecodingError.
    """
    if len(data) > MAX_CONTROL:
        raise Refusal(
            Code.TOO_LARGE,
            f"This {header.kind.name} has {len(data)} bytes; a broker accepts {MAX_CONTROL}.",
        )
    if has_many_parts(header, data):
        raise Refusal(
            Code.TOO_LARGE,
            f"This {header.kind.name} has more than {MAX_PARTS} parts. Use arrays instead of "
            f"lists.",
        )
    return CODEC.decode(data, header)
