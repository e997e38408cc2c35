"""The codecs of spaces by their description, so that many sessions share one."""

from __future__ import annotations

from typing import Any

from gymwire.protocol import spaces, values
from gymwire.protocol.space_codecs import SpaceCodec

__all__ = ["codec_of"]

MAX_CODECS = 64
MAX_KEY = 64 * 1024  # bytes of a description; a larger one is compiled each time

_CODECS: dict[bytes, SpaceCodec] = {}
# By the id of a description, which sessions that are opened together share: it and its codec. At
# most one of them is large.
_SHARED: dict[int, tuple[list[list[Any]], SpaceCodec]] = {}


def codec_of(description: list[list[Any]], root: str) -> SpaceCodec:
    """Return the codec of the space with this description, as OPENED carries it.

    Raises what `spaces.build` and `spaces.compile` raise, naming the space by `root`.
    """
    shared = _SHARED.get(id(description))
    if shared is not None and shared[0] is description:
        return shared[1]
    key = values.encode(description, root=root)
    found = _CODECS.get(key)
    if found is None:
        found = spaces.compile(spaces.build(description, root=root))
        if len(key) <= MAX_KEY:
            if len(_CODECS) >= MAX_CODECS:
                _CODECS.clear()
            _CODECS[key] = found
    if len(_SHARED) >= MAX_CODECS or len(key) > MAX_KEY:
        _SHARED.clear()
    _SHARED[id(description)] = description, found
    return found
