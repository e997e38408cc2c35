"""Changes that break formats: flipped bits, absurd lengths, cuts, splices."""

from __future__ import annotations

import random

# Lengths and type bytes of msgpack that claim much.
_TOKENS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xc1",
    b"\xc0",
    b"\x90",
    b"\x80",
)


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return another input, made from one or two."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.randrange(256)
            case 2:
                del out[at : at + rng.choice((1, 2, 4, 16))]
            case 3:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
            case 4:
                token = rng.choice(_TOKENS)
                out[at : at + rng.choice((0, 1, len(token)))] = token
            case 5:
                out[at:] = other[min(at, len(other)) :]
            case 6 if out:
                start = rng.randrange(len(out))
                out[at:at] = out[start : start + rng.randrange(32)]
            case _:
                del out[at:]
    return bytes(out[:65536])
