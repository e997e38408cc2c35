"""Encode messages as frames, and decode frames (docs/protocol.md §3).

    offset  0      1        2     3      4           8        16       24
            magic  version  kind  flags  head_len    sid      seq      head (msgpack)  pad  tail
            u8     u8       u8    u8     u32         u64      u64

All integers are little-endian. The head is a msgpack array of the message's fields, in their order.
The tail begins at the next multiple of 16. It holds large buffers, and the head refers to them by
offset, so that each end copies a big array once, or reads it where it was received.
"""

from __future__ import annotations

import dataclasses
import struct
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from gymwire.protocol import values, vector_infos
from gymwire.protocol.arrays import ALIGNMENT
from gymwire.protocol.errors import (
    ConfigurationError,
    DecodingError,
    EncodingError,
    VersionMismatch,
)
from gymwire.protocol.messages import (
    EXTENSION,
    KINDS,
    TYPES,
    VERSION,
    Act,
    Kind,
    Message,
    Percept,
    Status,
)
from gymwire.protocol.outside_exceptions import is_from_outside
from gymwire.protocol.space_codecs import NOT_COMPACT, SpaceCodec

MAGIC = 0xE7
HEADER = struct.Struct("<BBBBIQQ")
HEADER_SIZE = HEADER.size  # 24
# Where the fields of the header are, for code that reads one of them without the others. A slice in
# a constant costs no more than one written out.
KIND_AT = 2
FLAGS_AT = 3
HEAD_LEN = slice(4, 8)
SID = slice(8, 16)
SEQ = slice(16, 24)
UP_TO_KIND = slice(0, 3)
UP_TO_FLAGS = slice(0, 4)
UP_TO_NAME = slice(0, 8)  # the same in all frames of a kind and a size
NAME = slice(8, 24)  # SID and SEQ, see `name_of`
MAX_MESSAGE = 64 * 1024 * 1024  # bytes of a frame
MAX_CONTROL = 1024 * 1024  # bytes of a message that the broker itself decodes
MAX_EXTENSIONS = 1024  # bytes of extension fields in a frame
MAX_INT = 2**63  # that an integer in a field of its own must not reach

COMPACT = 1  # flag: the observation or action is in the compact form, not the self-describing one
TIMED = 2  # flag: the frame ends with time stamps, see protocol/stamps.py
EXTENDED = 4  # flag: the frame ends with extension fields (docs/protocol.md §3.11)

Frame = bytes | bytearray


def check_size(message: str, size: int, limit: int, advice: str = "") -> None:
    """Raise ConfigurationError if a message exceeds its limit. Call it before sending.

    `message`: its name in the error. `size`, `limit`: bytes. `advice`: how to make it smaller.
    """
    if size > limit:
        text = f"This {message} has {size:,} bytes; the broker's limit is {limit:,}."
        raise ConfigurationError(f"{text} {advice}".rstrip())


class Pieces:
    """A frame in several buffers, some of them memory of the environment, which may change it.

    `parts`: the buffers, in their order. `bytes(pieces)` returns the frame as a copy.
    """

    __slots__ = ("parts", "size")

    def __init__(self, parts: list[Any], size: int) -> None:
        self.parts = parts
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


def name_of(sid: int, seq: int) -> bytes:
    """Return what names a request: the sid and its number, as they are in the header."""
    return sid.to_bytes(8, "little") + seq.to_bytes(8, "little")


_tuple = tuple.__new__  # makes a NamedTuple without a call of a Python function


class Header(NamedTuple):
    """The header of a frame."""

    kind: Kind
    flags: int
    head_len: int
    sid: int
    seq: int


def read_header(data: bytes | bytearray | memoryview) -> Header:
    """Read and check the header of a frame. Raises DecodingError, VersionMismatch."""
    if len(data) < HEADER_SIZE:
        raise DecodingError(
            f"Truncated frame: {len(data)} bytes are fewer than the {HEADER_SIZE} of a header."
        )
    magic, version, kind, flags, head_len, sid, seq = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DecodingError(f"Not a gymwire frame: its first byte is 0x{magic:02X}, not 0xE7.")
    if version != VERSION:
        raise VersionMismatch(
            f"The other side speaks protocol version {version}, this side version {VERSION}. "
            f"Upgrade gymwire on {'the other' if version < VERSION else 'this'} side."
        )
    if HEADER_SIZE + head_len > len(data):
        raise DecodingError(
            f"Truncated frame: the header declares a head of {head_len} bytes, only "
            f"{len(data) - HEADER_SIZE} follow."
        )
    try:
        return _tuple(Header, (_KIND_OF[kind], flags, head_len, sid, seq))
    except KeyError as error:
        if is_from_outside(error):
            raise
        raise DecodingError(f"Unknown message kind {kind}.") from None


_KIND_OF = {int(kind): kind for kind in Kind}


class Codec:
    """Encodes and decodes messages.

    Use it from one thread, but for messages without values of the session's spaces.

    Args:
        observation: the codec of a session's observation space, for the compact form.
        action: the codec of its action space.
        extended: whether the receiver of the session's messages has the capability `values`.
        strict_infos: raise EncodingError for an info that cannot be serialized. Otherwise the value
            is converted (docs/protocol.md §10), or `values.Opaque` replaces it.
        on_opaque: called with the path of each info value that cannot be serialized.
        on_converted: called with the type of each value that is converted, and what it becomes.
        makes_types: as in `values.decode`.
    """

    def __init__(
        self,
        observation: SpaceCodec | None = None,
        action: SpaceCodec | None = None,
        *,
        extended: bool = True,
        strict_infos: bool = False,
        on_opaque: Callable[[str], None] = lambda _: None,
        on_converted: Callable[[str, str], None] = lambda *_: None,
        makes_types: bool = True,
    ) -> None:
        self._makes_types = makes_types
        self._extended = extended
        self._strict_infos = strict_infos
        self._on_opaque = on_opaque
        self._on_converted = on_converted
        # kind → the codec of its first field
        self._spaces: dict[Kind, SpaceCodec] = {}
        if observation is not None:
            self._spaces[Kind.STATUS] = self._spaces[Kind.PERCEPT] = observation
        if action is not None:
            self._spaces[Kind.ACT] = action

    def encode(self, message: Message, sid: int = 0, seq: int = 0) -> Frame:
        """Return a message as a frame.

        Raises EncodingError naming the value that cannot be serialized.
        """
        kind = KINDS[type(message)]
        tail = values.Tail()
        match message:
            case Percept():
                fields = [
                    message.observation,
                    message.reward,
                    message.terminated,
                    message.truncated,
                    message.info,
                ]
            case Act():
                fields = [message.action]
            case Status():
                fields = [message.observation, message.info]
            case _:
                fields = [getattr(message, name) for name in _FIELDS[kind]]
        flags = 0
        space = self._spaces.get(kind)
        if space is not None:
            compact = space.encode(fields[0], tail)
            if compact is not NOT_COMPACT:
                fields[0] = compact
                flags = COMPACT
        try:
            head = values.pack(fields, tail, extended=self._extended)
        except EncodingError as error:
            head, tail, flags = self._explain(kind, message, error)
        frame = join(kind, flags, head, tail, sid, seq)
        extensions = _EXTENSIONS.get(kind)
        return frame if extensions is None else _extend(frame, message, extensions)

    def _explain(
        self, kind: Kind, message: Message, error: EncodingError
    ) -> tuple[bytes, values.Tail, int]:
        """Pack field by field: convert values, replace infos by Opaque, or name the fault."""
        fields: list[Any] = []
        for name in _FIELDS[kind]:
            value = getattr(message, name)
            if name == "info" and not self._strict_infos:
                value = vector_infos.converted(value, self._convert_info)
            elif name != "info" and kind in (Kind.STATUS, Kind.PERCEPT):
                value, faults, conversions = values.convert(
                    value, root=name, only_tensors=True, extended=self._extended
                )
                for fault in faults:
                    raise EncodingError(f"{fault.path} {fault.text}.", path=fault.path)
                self._report(conversions)
            else:
                values.check(value, root=name)
            fields.append(value)
        tail = values.Tail()
        try:
            return values.pack(fields, tail, extended=self._extended), tail, 0
        except EncodingError:
            raise error from None

    def _convert_info(self, value: Any) -> Any:
        copy, faults, conversions = values.convert(value, root="info", extended=self._extended)
        for fault in faults:
            self._on_opaque(fault.path)
        self._report(conversions)
        return copy

    def _report(self, conversions: list[tuple[str, str, str]]) -> None:
        for _, kind, became in conversions:
            self._on_converted(kind, became)

    def decode(self, data: bytes | bytearray | memoryview, header: Header | None = None) -> Message:
        """Return the message of a frame; it shares no memory with the frame.

        Raises DecodingError.
        """
        if header is None:
            header = read_header(data)
        kind, flags = header.kind, header.flags
        extensions: dict[str, Any] = {}
        if flags & EXTENDED:
            data, extensions = _split_extensions(data, header, self._makes_types)
        fields, tail = split(data, header.head_len, makes_types=self._makes_types)
        if type(fields) is not list:
            raise DecodingError(f"The head of {kind.name} is not a msgpack array.")
        checks = _CHECKS[kind]
        if len(fields) != len(checks):
            raise DecodingError(f"{kind.name} must have {len(checks)} fields, not {len(fields)}.")
        if flags & COMPACT:
            space = self._spaces.get(kind)
            if space is None:
                raise DecodingError(
                    f"{kind.name} is in the compact form, but its space is unknown."
                )
            fields[0] = space.decode(fields[0], tail)
        for value, (name, allowed) in zip(fields, checks, strict=True):
            if allowed is None:
                continue
            if type(value) not in allowed:
                raise DecodingError(
                    f"{kind.name}.{name} must be {_names(allowed)}, not {type(value).__name__}.",
                    path=name,
                )
            if allowed in _NUMBERS and not _is_in_range(value):
                raise DecodingError(f"{kind.name}.{name} is out of range.", path=name)
        return TYPES[kind](*fields, **extensions)


def join(kind: int, flags: int, head: bytes, tail: values.Tail, sid: int, seq: int) -> Frame:
    """Return a frame made of these parts."""
    header = HEADER.pack(MAGIC, VERSION, kind, flags, len(head), sid, seq)
    if not tail.size:
        return header + head
    end = HEADER_SIZE + len(head)
    start = _align(end)
    frame = bytearray(start + tail.size)
    frame[:end] = header + head
    view = memoryview(frame)
    for offset, part in tail.parts:
        at = start + offset
        view[at : at + part.nbytes] = part
    return frame


def encode_packed(message: Message, head: bytes, sid: int = 0, seq: int = 0) -> Frame:
    """Return a message as a frame, like `Codec.encode`, but for fields that are packed already."""
    kind = KINDS[type(message)]
    frame = join(kind, 0, head, values.Tail(), sid, seq)
    return _extend(frame, message, _EXTENSIONS.get(kind, ()))


def renumber(frame: Frame, sid: int, seq: int) -> Frame:
    """Return a frame with other numbers in its header."""
    numbers = sid.to_bytes(8, "little"), seq.to_bytes(8, "little")
    return b"".join((frame[: SID.start], *numbers, frame[HEADER_SIZE:]))


def split(
    data: Frame | memoryview, head_len: int, *, makes_types: bool = True
) -> tuple[Any, memoryview | None]:
    """Return the value in the head of a frame, and its tail. Raises DecodingError.

    `makes_types`: as in `values.decode`.
    """
    end = HEADER_SIZE + head_len
    start = _align(end)
    tail = memoryview(data)[start:] if len(data) > start else None
    return values.unpack(bytes(data[HEADER_SIZE:end]), tail, makes_types=makes_types), tail


def _extend(frame: Frame, message: Message, names: Iterable[str]) -> Frame:
    """Append the extension fields of a message that are not empty, if there are any."""
    fields = {name: value for name in names if (value := getattr(message, name))}
    if not fields:
        return frame
    packed = values.encode(fields, root="extensions")
    extended = bytearray().join((frame, packed, len(packed).to_bytes(4, "little")))
    extended[FLAGS_AT] |= EXTENDED
    return extended


def _split_extensions(
    data: Frame | memoryview, header: Header, makes_types: bool
) -> tuple[Frame | memoryview, dict[str, Any]]:
    """Return a frame without its extension fields, and those that this release knows."""
    end = len(data) - 4
    size = int.from_bytes(data[-4:], "little")
    if size > min(end - HEADER_SIZE - header.head_len, MAX_EXTENSIONS):
        raise DecodingError(f"The frame declares {size} bytes of extension fields: too many.")
    fields = values.decode(bytes(data[end - size : end]), makes_types=makes_types)
    if type(fields) is not dict:
        raise DecodingError("The extension fields of a frame are not a map.")
    known = {name: fields[name] for name in _EXTENSIONS.get(header.kind, ()) if name in fields}
    for name, value in known.items():
        allowed = _EXTENSIONS[header.kind][name]
        if allowed is not None and type(value) not in allowed:
            raise DecodingError(
                f"{header.kind.name}.{name} must be {_names(allowed)}, not {type(value).__name__}.",
                path=name,
            )
    return data[: end - size], known


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _is_in_range(number: float | None) -> bool:
    """Return whether a field for a count or a time in seconds may have this number.

    So it is neither negative nor NaN, and as an integer it has at most 63 bits.
    """
    return number is None or (number >= 0 and (type(number) is float or number < MAX_INT))


def _names(allowed: Sequence[type]) -> str:
    return " or ".join("None" if t is types.NoneType else t.__name__ for t in allowed)


def _allowed(annotation: Any) -> tuple[type, ...] | None:
    """Return the exact types that a field may have on the wire; None: any type."""
    if annotation is Any:
        return None
    if typing.get_origin(annotation) is types.UnionType:
        parts = [_allowed(part) for part in typing.get_args(annotation)]
        return tuple(t for part in parts if part is not None for t in part)
    if annotation is float:
        return (float, int)
    return (typing.get_origin(annotation) or annotation,)


_NUMBERS = (_allowed(int), _allowed(float), _allowed(float | None))
_FIELDS: dict[Kind, tuple[str, ...]] = {}
_EXTENSIONS: dict[Kind, dict[str, tuple[type, ...] | None]] = {}
_CHECKS: dict[Kind, list[tuple[str, tuple[type, ...] | None]]] = {}
for _kind, _type in TYPES.items():
    _hints = typing.get_type_hints(_type)
    _extended = {
        one.name: _allowed(_hints[one.name])
        for one in dataclasses.fields(_type)
        if one.metadata == EXTENSION
    }
    if _extended:
        _EXTENSIONS[_kind] = _extended
    _FIELDS[_kind] = tuple(name for name in _hints if name not in _extended)
    _CHECKS[_kind] = [(name, _allowed(_hints[name])) for name in _FIELDS[_kind]]

PLAIN = Codec()
"""The codec for everything but the observations and actions of a session."""
