"""Limits on a message that a broker decodes. Both sides check them."""

from __future__ import annotations

from typing import Final

from gymwire.protocol.codec import HEADER_SIZE, MAX_CONTROL, Frame, Header, check_size, read_header
from gymwire.protocol.errors import ConfigurationError, DecodingError
from gymwire.protocol.value_costs import EXTENSION_PARTS, parts_exceed

MAX_PARTS: Final = 16_384
"""Numbers, texts, lists and so on in a message that the broker decodes, see `parts_exceed`."""


def check_control(message: str, frame: Frame, advice: str = "") -> None:
    """Raise ConfigurationError if no broker accepts a frame for itself. Call it before sending.

    `message`: its name in the error. `advice`: how to make it smaller.
    """
    check_size(message, len(frame), MAX_CONTROL, advice)
    if has_many_parts(read_header(frame), frame):
        text = f"This {message} has more than {MAX_PARTS:,} parts, which is the broker's limit."
        raise ConfigurationError(f"{text} Use arrays instead of lists. {advice}".rstrip())


def has_many_parts(header: Header, data: bytes | bytearray | memoryview) -> bool:
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
