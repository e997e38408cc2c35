"""Decode the messages that the broker reads, at a bounded cost."""

from __future__ import annotations

from gymwire.broker.refusals import Refusal
from gymwire.protocol.codec import HEADER_SIZE, KIND_AT, MAX_CONTROL, PLAIN, Frame, Header
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.messages import CONTROL_KINDS, Code, Kind, Message
from gymwire.protocol.value_costs import EXTENSION_PARTS, parts_exceed

LONG_BYTES = 4 * 1024  # above this size, the broker may need more than a few ms for a message
# Numbers, texts, lists and so on in a message that the broker decodes, see `parts_exceed`.
MAX_PARTS = 16_384

_DECODED = frozenset(kind for kind in Kind if kind >= CONTROL_KINDS or kind is Kind.ERROR)
_LISTINGS = frozenset((Kind.FIND, Kind.OBSERVE))


def takes_long(data: Frame | memoryview) -> bool:
    """Return whether the broker may need more than a few ms for a frame that it does not relay."""
    if len(data) < HEADER_SIZE:
        return False
    kind = data[KIND_AT]
    return kind in _LISTINGS or (len(data) > LONG_BYTES and kind in _DECODED)


def has_many_parts(header: Header, data: bytes | memoryview) -> bool:
    """Return whether a frame has so many parts that decoding it would hold up the other peers.

    Raises DecodingError if its head is malformed.
    """
    if header.head_len <= MAX_PARTS // EXTENSION_PARTS:
        return False
    try:
        return parts_exceed(
            memoryview(data)[HEADER_SIZE : HEADER_SIZE + header.head_len], MAX_PARTS
        )
    except IndexError:
        raise DecodingError("A value ends before the length that it declares.") from None


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
    return PLAIN.decode(data, header)
