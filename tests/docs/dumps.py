"""Frames as docs/protocol.md writes them."""

from __future__ import annotations

from itertools import pairwise

from gymwire.protocol.codec import HEADER_SIZE, TIMED, Frame, read_header


def dump(frame: Frame) -> str:
    """Return the lines of a frame; a long run of zeros is written as its length."""
    head_len = read_header(frame).head_len
    cuts = (0, 4, 8, 16, HEADER_SIZE)
    header = "  ".join(frame[i:j].hex(" ") for i, j in pairwise(cuts))
    head = frame[HEADER_SIZE : HEADER_SIZE + head_len]
    lines = [header, *(head[i : i + 32].hex(" ") for i in range(0, head_len, 32))]
    rest = frame[HEADER_SIZE + head_len :]
    if read_header(frame).flags & TIMED:
        lines += [rest[i : i + 8].hex(" ") for i in range(0, len(rest), 8)]
    elif rest:
        assert not any(rest)
        lines.append(f"00 × {len(rest)}")
    return "\n".join(lines)
