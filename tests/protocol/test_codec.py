from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text
from hypothesis import given
from hypothesis import strategies as st

from gymwire.protocol import codec, spaces
from gymwire.protocol.arrays import ALIGNMENT
from gymwire.protocol.codec import COMPACT, HEADER_SIZE, PLAIN, Codec, Header, read_header
from gymwire.protocol.errors import DecodingError, EncodingError, ProtocolError, VersionMismatch
from gymwire.protocol.messages import (
    VERSION,
    Act,
    Busy,
    Kind,
    Message,
    Percept,
    Ping,
    Progress,
    Reset,
    Result,
    Status,
)
from gymwire.protocol.values import Opaque
from tests.protocol.examples import CODEC
from tests.protocol.test_golden import golden
from tests.sameness import assert_same

SPACE = Dict({"image": Box(0, 255, (64, 64), np.uint8), "text": Text(10), "n": Discrete(5)})
OBSERVATION = {"image": np.arange(4096, dtype=np.uint8).reshape(64, 64), "n": 3, "text": "é"}


def value(n: int = 3) -> dict[str, Any]:
    return dict(OBSERVATION) | {"n": np.int64(n)}


def compiled(**options: Any) -> Codec:
    return Codec(spaces.compile(SPACE), spaces.compile(Discrete(4)), **options)


def flags(frame: bytes | bytearray) -> int:
    return read_header(frame).flags


# --- the header -----------------------------------------------------------------------------------


def test_the_header_is_24_bytes_little_endian() -> None:
    frame = PLAIN.encode(Ping(), sid=0x1122334455667788, seq=0x0102)
    assert frame[:24] == bytes.fromhex("e7 01 27 00 01000000 8877665544332211 0201000000000000")
    assert frame[24:] == b"\x90"


def test_the_header_is_read_as_it_was_written() -> None:
    frame = PLAIN.encode(Reset(1), 2**64 - 1, 2**63)
    assert read_header(frame) == Header(Kind.RESET, 0, len(frame) - 24, 2**64 - 1, 2**63)


def test_another_version_is_named_with_ours() -> None:
    frame = bytearray(PLAIN.encode(Ping()))
    frame[1] = 77
    with pytest.raises(VersionMismatch, match=f"version 77, this side version {VERSION}"):
        read_header(frame)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({0: 0x47}, "[Nn]ot a gymwire frame"),
        ({2: 99}, "kind 99"),
        ({2: 0}, "kind 0"),
        ({4: 200}, "Truncated"),
        ({7: 0xFF}, "Truncated"),
    ],
)
def test_a_damaged_header_is_refused(damage: dict[int, int], why: str) -> None:
    frame = bytearray(PLAIN.encode(Ping()))
    for place, byte in damage.items():
        frame[place] = byte
    with pytest.raises(DecodingError, match=why):
        read_header(frame)


def test_every_truncated_frame_is_refused() -> None:
    for data in golden().values():
        for length in range(0, len(data), 1 if len(data) < 1000 else 97):
            with pytest.raises(ProtocolError):
                CODEC.decode(data[:length])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_frame_may_be_any_kind_of_bytes(kind: Any) -> None:
    assert PLAIN.decode(kind(bytes(PLAIN.encode(Progress(2.5))))) == Progress(2.5)


# --- fields ---------------------------------------------------------------------------------------


def test_a_field_of_another_type_is_refused_by_name() -> None:
    frame = PLAIN.encode(Busy("rate", "soon"))  # type: ignore[arg-type]
    with pytest.raises(DecodingError, match=r"BUSY\.retry_after_s must be float or int, not str"):
        PLAIN.decode(frame)


def test_true_is_not_a_number() -> None:
    with pytest.raises(DecodingError, match=r"PROGRESS\.since_s"):
        PLAIN.decode(PLAIN.encode(Progress(True)))


def test_too_few_or_too_many_fields_are_refused() -> None:
    for head in (b"\x90", b"\x92\x01\x02", b"\xc0", b"\x80"):
        frame = codec.HEADER.pack(0xE7, VERSION, Kind.PROGRESS, 0, len(head), 0, 0) + head
        with pytest.raises(DecodingError):
            PLAIN.decode(frame)


def test_an_unserializable_value_is_named() -> None:
    with pytest.raises(EncodingError, match="action") as caught:
        PLAIN.encode(Act([1, {"a": object()}]))
    assert caught.value.path == 'action[1]["a"]'


# --- large arrays ---------------------------------------------------------------------------------


def test_large_arrays_follow_the_head_aligned() -> None:
    arrays = [np.arange(n, dtype=np.float64) for n in (600, 513, 700)]
    frame = PLAIN.encode(Result([arrays[0], "between", arrays[1], {"deep": arrays[2]}]))
    head_end = HEADER_SIZE + read_header(frame).head_len
    assert head_end < 500
    for array in arrays:
        assert bytes(frame).index(array.tobytes(), head_end) % ALIGNMENT == 0
    back = PLAIN.decode(frame)
    assert isinstance(back, Result)
    assert_same(back.value, [arrays[0], "between", arrays[1], {"deep": arrays[2]}])


def test_arrays_that_come_back_are_fresh_and_writable() -> None:
    frame = compiled().encode(Status(value(), {}))
    first, second = compiled().decode(frame), compiled().decode(frame)
    assert isinstance(first, Status)
    assert isinstance(second, Status)
    first.observation["image"][:] = 0
    assert_same(second.observation, value())


# --- spaces ---------------------------------------------------------------------------------------


def test_a_value_of_its_space_goes_compact_and_comes_back() -> None:
    percept = Percept(value(), 1.5, False, True, {"a": np.zeros(2000)})
    frame = compiled().encode(percept)
    assert flags(frame) == COMPACT
    back = compiled().decode(frame)
    assert isinstance(back, Percept)
    for name in Percept.__slots__:
        assert_same(getattr(back, name), getattr(percept, name), name)


@pytest.mark.parametrize(
    "misfit",
    [
        value() | {"n": 3},
        value() | {"more": 1},
        {"n": np.int64(1)},
        value() | {"image": OBSERVATION["image"].astype(np.int16)},  # type: ignore[attr-defined]
        dict(reversed(value().items())),
        np.zeros(5000),
        None,
    ],
    ids=["int for int64", "extra key", "missing keys", "dtype", "key order", "array", "None"],
)
def test_a_value_outside_its_space_is_sent_in_the_self_describing_form(misfit: Any) -> None:
    frame = compiled().encode(Status(misfit, {}))
    assert flags(frame) == 0
    back = compiled().decode(frame)
    assert isinstance(back, Status)
    assert_same(back.observation, misfit)


def test_the_compact_form_without_the_space_is_refused() -> None:
    with pytest.raises(DecodingError, match="its space is unknown"):
        PLAIN.decode(compiled().encode(Act(np.int64(1))))


# --- infos ----------------------------------------------------------------------------------------


def test_an_unserializable_info_arrives_as_opaque_and_is_reported() -> None:
    paths: list[str] = []
    percept = Percept(value(), 1.0, False, False, {"ok": 1, "bad": {3}})
    back = compiled().decode(compiled(on_opaque=paths.append).encode(percept))
    assert isinstance(back, Percept)
    assert paths == ['info["bad"]']
    assert back.info == {"ok": 1, "bad": Opaque("builtins.set", "{3}")}
    assert_same(back.observation, value())


def test_with_strict_infos_it_is_an_error() -> None:
    with pytest.raises(EncodingError, match=r'info\["bad"\]'):
        compiled(strict_infos=True).encode(Status(value(), {"bad": {3}}))


def test_an_unserializable_observation_is_always_an_error() -> None:
    with pytest.raises(EncodingError, match="observation"):
        compiled().encode(Status({3}, {"bad": {3}}))


# --- hostile bytes --------------------------------------------------------------------------------


def decode_or_refuse(used: Codec, data: bytes) -> Message | None:
    try:
        return used.decode(data)
    except ProtocolError:
        return None


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    decode_or_refuse(PLAIN, data)
    for kind in (Kind.PERCEPT, Kind.ACT, Kind.OPENED, Kind.HELLO):
        for flag in (0, COMPACT):
            header = codec.HEADER.pack(0xE7, VERSION, kind, flag, len(data), 1, 1)
            decode_or_refuse(compiled(), header + data)


@given(
    st.sampled_from(sorted(golden())),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 40),
)
def test_damaged_frames_never_raise_anything_else(
    name: str, damage: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(golden()[name])
    for place, byte in damage:
        data[place % len(data)] = byte
    for used in (CODEC, PLAIN, compiled()):
        decode_or_refuse(used, bytes(data))
        decode_or_refuse(used, bytes(data[: max(0, len(data) - cut)]))


def test_a_missing_tail_is_refused() -> None:
    frame = compiled().encode(Status(value(), {}))
    with pytest.raises(DecodingError):
        compiled().decode(frame[:-1])
