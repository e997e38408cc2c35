from __future__ import annotations

import collections
import contextlib
import enum
import struct
import threading
import tracemalloc
from collections import ChainMap, Counter, UserDict, defaultdict
from itertools import permutations
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
from gymnasium.spaces import GraphInstance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gymwire.protocol import values
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.values import LARGE, MAX_DEPTH, Opaque, Tail
from tests.hostile_values import crowding_numbers
from tests.sameness import assert_same


def through(value: Any) -> Any:
    return values.decode(values.encode(value))


def through_tail(parts: list[Any]) -> Any:
    tail = Tail()
    head = values.pack(parts, tail)
    return values.unpack(head, joined(tail))


def joined(tail: Tail) -> memoryview:
    body = bytearray(tail.size)
    for offset, part in tail.parts:
        body[offset : offset + part.nbytes] = part
    return memoryview(bytes(body))


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int


NAN_WITH_PAYLOAD = struct.unpack("<d", bytes.fromhex("efbeadde0000f87f"))[0]

PLAIN = [
    None, True, False, 0, -1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400),
    0.0, -0.0, float("inf"), float("-inf"), float("nan"), NAN_WITH_PAYLOAD, 5e-324,
    "", "text", "語😀\0", b"", b"\xff\x00",
    [], [1, [2]], (), (1, (2, [3, ()])), {}, {"a": {"b": 1}},
    collections.OrderedDict(b=1, a=collections.OrderedDict()),
    GraphInstance(np.zeros((2, 3), np.float32), None, None),
    GraphInstance(np.arange(2), np.arange(3), np.zeros((3, 2), np.int32)),
    GraphInstance((("a", np.int64(1)),), None, None),
    Opaque("a.B", "<B>"),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__}")
def test_a_plain_value_comes_back_the_same(value: Any) -> None:
    assert_same(through(value), value)
    assert_same(through_tail([value, 1]), [value, 1])


SCALARS = [
    *(np.dtype(code).type(1) for code in "?bhilqBHILQefdFD"),
    np.float32("nan"), np.float64("-inf"), np.float64(-0.0), np.uint64(2**64 - 1),
    np.str_(""), np.str_("a\0"), np.bytes_(b""), np.bytes_(b"a\0"),
    np.datetime64("2020-01-01T12", "h"), np.datetime64("NaT", "s"), np.timedelta64(3, ("s", 25)),
]  # fmt: skip


@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_a_numpy_scalar_keeps_its_dtype(scalar: Any) -> None:
    back = through(scalar)
    assert isinstance(back, np.generic)
    assert back.dtype == scalar.dtype
    if not isinstance(scalar, (np.str_, np.bytes_)):
        assert back.tobytes() == scalar.tobytes()
    else:
        assert str(back) == str(scalar)


ARRAYS = [
    np.array(3.5), np.zeros((0, 3)), np.zeros((2, 0), ">i2"), np.arange(12).reshape(3, 4).T,
    np.arange(20)[::-2], np.asfortranarray(np.ones((2, 3))), np.array(["é", "b\0c"]),
    np.array(["x"], ">U4"), np.array([b"ab", b""]), np.array("0d"),
    np.array(["2020", "NaT"], "M8[D]"), np.array([1, 2], ">m8[25s]"), np.ones((1,) * 32, np.int8),
    np.array([np.nan, -0.0]), np.zeros((40, 60)), np.ones((60, 50), np.bool_).T,
    np.full(2000, "é"),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_an_array_comes_back_with_dtype_shape_and_bits(array: Any) -> None:
    assert_same(through(array), array)
    assert_same(through_tail([array, {"again": array}]), [array, {"again": array}])


@pytest.mark.parametrize("axes", [*permutations(range(3))])
@pytest.mark.parametrize("levels", [0, MAX_DEPTH - 1])
def test_arrays_of_objects_keep_their_order_in_memory(axes: tuple[int, ...], levels: int) -> None:
    array: Any = np.empty(8, object)
    for i in range(8):
        array[i] = nested(levels, lambda v, i=i: [v, i])
    array = array.reshape(2, 2, 2).transpose(axes)
    for back in (through(array), values.opaque(array)[0]):
        assert_same(back, array)
        assert back.strides == array.strides


NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
NAMES += "complex64 complex128"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", NAMES.split())
def test_every_numeric_dtype_is_kept_in_either_byte_order(name: str, order: Any) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(np.dtype(name).newbyteorder(order))
    assert_same(through(array), array)


def test_decoded_arrays_are_writable_and_own_their_memory() -> None:
    small, large = through_tail([np.zeros(3), np.zeros(LARGE)])
    for array in (small, large):
        assert array.flags.writeable
        assert array.flags.owndata


def test_a_large_array_shares_its_memory_with_the_tail() -> None:
    array, tail = np.zeros(LARGE, np.uint8), Tail()
    values.pack([array], tail)
    array[7] = 9
    assert tail.parts[0][1][7] == 9


def test_an_array_below_the_threshold_stays_out_of_the_tail() -> None:
    tail = Tail()
    values.pack([np.zeros(LARGE - 1, np.uint8)], tail)
    assert tail.parts == []


def test_buffers_of_the_tail_are_aligned_and_do_not_overlap() -> None:
    tail = Tail()
    assert [tail.add(np.zeros(n, np.uint8)) for n in (5, 17, 16, 1)] == [0, 16, 48, 64]
    assert tail.size == 65


KEYS = [
    1, -5, 1.5, True, None, b"k", "k", (1, ("a", None)), (), 2**80, np.int8(3), np.float64(0.5),
    np.str_("n"), np.bool_(False),
]  # fmt: skip


def test_any_hashable_key_is_serializable_and_keeps_its_place() -> None:
    original = {key: i for i, key in enumerate(KEYS[::-1])}
    assert_same(through(original), original)


def test_keys_that_python_holds_equal_are_one_key() -> None:
    assert_same(through(dict(zip((1, True), "ab", strict=True))), {1: "b"})


class Unrepresentable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


CANNOT = [
    Colour.RED, Point(1), collections.defaultdict(int), bytearray(b"a"), memoryview(b"a"),
    {1, 2}, object(), 1j, threading.Lock(), "\ud800", np.str_("\udfff"), np.longdouble(1),
    np.zeros(2, np.longdouble), np.zeros(2, "i4,f4"),
    np.ma.masked_array([1], [True]), np.zeros((1,) * 33), np.zeros(1, "i4").view(np.recarray),
    msgpack.ExtType(4, b"\x90"), msgpack.Timestamp(1), Unrepresentable(), int, len,
]  # fmt: skip


@pytest.mark.parametrize("value", CANNOT, ids=lambda value: type(value).__name__)
def test_an_unserializable_value_is_refused_by_its_path(value: Any) -> None:
    for whole, path in [
        (value, "info"),
        ({"agents": [0, (1, value)]}, 'info["agents"][1][1]'),
        ({3: collections.OrderedDict(x=value)}, 'info[3]["x"]'),
        (GraphInstance(value, None, None), "info.nodes"),
    ]:
        with pytest.raises(EncodingError) as caught:
            values.encode(whole, root="info")
        assert caught.value.path == path
        assert str(caught.value).startswith(path)


def test_an_unserializable_key_is_refused() -> None:
    with pytest.raises(EncodingError, match="key"):
        values.encode({"a": {Colour.RED: 1}})


def test_a_memoryview_as_key_is_refused_and_not_turned_into_bytes() -> None:
    with pytest.raises(EncodingError):
        values.encode({memoryview(b"a"): 1})


def test_a_failed_pack_leaves_the_tail_unchanged() -> None:
    tail = Tail()
    tail.add(np.zeros(5000, np.uint8))
    with pytest.raises(EncodingError):
        values.pack([np.zeros(5000), object()], tail)
    assert (len(tail.parts), tail.size) == (1, 5000)


def nested(levels: int, wrap: Any) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS: list[Any] = [
    lambda v: [v],
    lambda v: (v,),
    lambda v: {"k": v},
    lambda v: collections.OrderedDict(k=v),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_sixty_four_levels_are_serializable_and_one_more_is_not(wrap: Any) -> None:
    deepest = nested(MAX_DEPTH, wrap)
    assert_same(through(deepest), deepest)
    assert_same(through_tail([deepest]), [deepest])
    with pytest.raises(EncodingError, match="deeper than 64"):
        values.encode(nested(MAX_DEPTH + 1, wrap))
    with pytest.raises(EncodingError, match="deeper than 64"):
        values.pack([nested(MAX_DEPTH + 1, wrap)])


def test_nesting_through_keys_counts_too() -> None:
    with pytest.raises(EncodingError):
        values.encode({nested(MAX_DEPTH, lambda v: (v,)): 1})


@pytest.mark.parametrize("make", [list, dict, collections.OrderedDict])
def test_a_value_that_contains_itself_is_refused_by_its_path(make: Any) -> None:
    loop: Any = make()
    loop.append([loop]) if make is list else loop.update(a=[loop])
    with pytest.raises(EncodingError, match="contains itself") as caught:
        values.encode({"x": loop}, root="info")
    assert caught.value.path.startswith('info["x"]')


def test_the_same_object_twice_is_not_a_cycle() -> None:
    part = [1]
    assert_same(through([part, part]), [[1], [1]])


def test_opaque_replaces_unserializable_values_and_keeps_the_rest() -> None:
    info = {"a": 1, "agents": [np.int8(2), object(), (Unrepresentable(),)]}
    copy, paths = values.opaque(info)
    assert paths == ['info["agents"][1]', 'info["agents"][2][0]']
    assert copy["agents"][1].type == "builtins.object"
    assert "repr raised RuntimeError" in copy["agents"][2][0].repr
    assert_same(through(copy), copy)
    assert type(info["agents"][1]) is object  # type: ignore[index]


def test_opaque_leaves_a_clean_info_alone() -> None:
    info = {"a": (1, [np.zeros(2)]), 2: None}
    copy, paths = values.opaque(info)
    assert paths == []
    assert_same(copy, info)


@pytest.mark.parametrize(
    "mapping",
    [
        defaultdict(list, a=[1]),
        Counter({"a": 1, 3: 2}),
        MappingProxyType({"a": (1,)}),
        ChainMap({"a": 1}, {"b": 2}),
        UserDict({"a": {"b": np.float32(1)}}),
    ],
    ids=lambda mapping: type(mapping).__name__,
)
def test_any_mapping_in_an_info_becomes_a_dict(mapping: Any) -> None:
    copy, paths = values.opaque({"of a wrapper": [mapping]})
    assert paths == []
    assert values.decode(values.encode(copy)) == {"of a wrapper": [dict(mapping)]}
    with pytest.raises(EncodingError):  # an action is never converted
        values.encode(mapping)


def test_what_cannot_be_serialized_in_a_mapping_becomes_opaque() -> None:
    copy, paths = values.opaque(defaultdict(list, a=1, b={2}))
    assert copy == {"a": 1, "b": Opaque("builtins.set", "{2}")}
    assert paths == ['info["b"]']


def test_the_repr_of_an_opaque_is_cut_and_serializable() -> None:
    copy, _ = values.opaque({"a": {"\ud800" * 500}, "b": {"x" * 500}})
    assert len(copy["b"].repr) == 200
    assert_same(through(copy), copy)


def test_the_paths_of_many_faults_are_short_whatever_the_keys() -> None:
    value: Any = [{1}] * 3
    for _ in range(30):
        value = {"x" * 10_000: value}
    _, paths = values.opaque(value)
    assert len(paths) == 3
    assert max(map(len, paths)) < 2_000
    assert values.opaque({"a": {("b", 1): {2}}})[1] == ["info[\"a\"][('b', 1)]"]


def test_opaque_breaks_cycles_and_depth() -> None:
    loop: list[Any] = []
    loop.append(loop)
    copy, paths = values.opaque({"loop": loop, "deep": nested(100, lambda v: [v])})
    assert paths[0] == 'info["loop"][0]'
    assert len(paths) == 2
    assert_same(through(copy), copy)


def test_two_opaque_keys_that_look_alike_stay_two() -> None:
    copy, paths = values.opaque({Unrepresentable(): 1, Unrepresentable(): 2, int: 3})
    assert len(copy) == len(paths) == 3


def test_many_opaque_keys_that_look_alike_take_linear_time(monkeypatch: Any) -> None:
    hashed: Counter[str] = Counter()
    find_hash = Opaque.__hash__

    def count_and_hash(one: Opaque) -> int:
        hashed["all"] += 1
        return find_hash(one)

    monkeypatch.setattr(Opaque, "__hash__", count_and_hash)
    count = 500
    copy, _ = values.opaque({Unrepresentable(): n for n in range(count)})
    assert [*copy.values()] == [*range(count)]
    assert hashed.total() < 10 * count
    assert max(len(key.repr) for key in copy) < 100


def test_keys_that_collide_only_after_their_conversion_are_refused() -> None:
    make_enum: Any = enum.Enum
    level = make_enum("level", {f"x{n}": n for n in crowding_numbers(300)})
    copy, paths = values.opaque({"levels": dict.fromkeys(level)})
    assert type(copy["levels"]) is Opaque
    assert paths == ['info["levels"]']


def test_check_passes_serializable_values() -> None:
    values.check({"a": [1, np.zeros(2)]})


# --- hostile bytes ------------------------------------------------------------------------------


def ext(code: int, value: Any) -> bytes:
    data = value if isinstance(value, bytes) else msgpack.packb(value)
    packed: bytes = msgpack.packb(msgpack.ExtType(code, data))
    return packed


def tower(levels: int, code: int = 4) -> bytes:
    data: bytes = msgpack.packb([])
    for _ in range(levels):
        data = b"\x91" + ext(code, data)
    return data[1:]


HOSTILE = {
    "nothing": b"",
    "trailing bytes": b"\x01\x01",
    "a reserved byte": b"\xc1",
    "a list that claims gigabytes": b"\xdd\xff\xff\xff\xff",
    "a map that claims gigabytes": b"\xdf\xff\xff\xff\xff",
    "text that claims gigabytes": b"\xdb\xff\xff\xff\xff",
    "bytes that claim gigabytes": b"\xc6\xff\xff\xff\xff",
    "an extension that claims gigabytes": b"\xc9\xff\xff\xff\xff\x01",
    "lists that claim all there is, in one another": b"\xdd\x00\x00\x80\x00" * 900
    + b"\x01" * 40000,
    "invalid UTF-8": b"\xa2\xff\xff",
    "a surrogate in UTF-8": b"\xa3\xed\xa0\x80",
    "an unhashable key": b"\x81\x90\x01",
    "an array as key": b"\x81" + ext(1, ["<f8", [], bytes(8)]) + b"\x01",
    "a timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "a timestamp as key": b"\x81" + msgpack.packb(msgpack.Timestamp(1)) + b"\x01",
    "a timestamp in a tuple": ext(4, [msgpack.Timestamp(1)]),
    "an unknown extension": ext(99, b""),
    "65 lists": b"\x91" * 65 + b"\x01",
    "600 lists": b"\x91" * 600 + b"\x01",
    "5000 lists": b"\x91" * 5000 + b"\x01",
    "65 tuples": tower(65),
    "300 tuples": tower(300),
    "an array of objects": ext(1, ["|O", [1], bytes(8)]),
    "a structured array": ext(1, ["<i4,<f4", [1], bytes(8)]),
    "a void array": ext(1, ["|V8", [1], bytes(8)]),
    "a longdouble array": ext(1, ["<f16", [1], bytes(16)]),
    "a dtype that is no text": ext(1, [3, [1], bytes(8)]),
    "a dtype of gigabytes": ext(1, ["<U999999999", [0], b""]),
    "a datetime of a made-up unit": ext(1, ["<M8[xx]", [1], bytes(8)]),
    "a datetime of zero units": ext(1, ["<M8[0s]", [1], bytes(8)]),
    "a negative size": ext(1, ["<f8", [-1, -1], bytes(8)]),
    "a size that is no int": ext(1, ["<f8", [1.0], bytes(8)]),
    "a size that is a bool": ext(1, ["<f8", [True], bytes(8)]),
    "a shape that is no list": ext(1, ["<f8", 1, bytes(8)]),
    "a shape of gigabytes": ext(1, ["<f8", [2**40], bytes(8)]),
    "a shape beyond all integers": ext(1, ["<f8", [2**63, 2**63, 0], b""]),
    "33 dimensions": ext(1, ["|i1", [1] * 33, b"\0"]),
    "too few bytes": ext(1, ["<f8", [2], bytes(15)]),
    "too many bytes": ext(1, ["<f8", [2], bytes(17)]),
    "an array without bytes": ext(1, ["<f8", [2], None]),
    "an array in a tail that is not there": ext(1, ["<f8", [2], 0]),
    "an array of two parts": ext(1, ["<f8", [2]]),
    "an array that is no list": ext(1, 7),
    "bools of two": ext(1, ["|b1", [2], b"\1\2"]),
    "characters that are none": ext(1, ["<U1", [1], b"\xff\xff\xff\x7f"]),
    "characters that are none, big-endian": ext(1, [">U1", [1], b"\x7f\xff\xff\xff"]),
    "a scalar of no dtype": ext(2, b""),
    "a scalar of object": ext(2, b"|O\0" + bytes(8)),
    "a scalar with too few bytes": ext(2, b"<f8\0" + bytes(7)),
    "a scalar bool of two": ext(2, b"|b1\0\2"),
    "a scalar text that is no UTF-8": ext(2, b"U\0\xff"),
    "a scalar dtype that is no ASCII": ext(2, b"\xff\0"),
    "a tuple of a map": ext(4, {}),
    "a graph of two": ext(5, [1, 2]),
    "an opaque of numbers": ext(6, [1, 2]),
    "an opaque of one": ext(6, ["a"]),
    "an ordered dict of a list": ext(7, []),
    "an array of objects with an axis twice": ext(9, [[1, 1], [None], [0, 0]]),
    "an array of many rows without bytes": ext(1, ["|u1", [2**60, 0], b""]),
    "an array of many columns without bytes": ext(1, ["<f8", [0, 2**9, 2**9, 2], b""]),
    "many arrays of rows without bytes": b"\x92" + 2 * ext(1, ["<f8", [2**17 + 1, 0], b""]),
    "an array of many rows without objects": ext(9, [[2**40, 0], []]),
    "many arrays of rows without objects": b"\x92" + 2 * ext(9, [[2**17 + 1, 0], []]),
    "an array of objects with axes and more": ext(9, [[1], [None], [0], None]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name: str) -> None:
    with pytest.raises(DecodingError):
        values.decode(HOSTILE[name])


@pytest.mark.parametrize("place", [-16, 1, 8, 16, 2**64 - 1, 2**63, True, 1.0, None, "0"])
def test_a_wrong_place_in_the_tail_is_refused(place: Any) -> None:
    head = b"\x91" + ext(1, ["|u1", [5000], place])
    with pytest.raises(DecodingError):
        values.unpack(head, memoryview(bytes(5015)))


def test_lists_with_a_huge_declared_length_allocate_little() -> None:
    data = HOSTILE["lists that claim all there is, in one another"]
    tracemalloc.start()
    try:
        with pytest.raises(DecodingError):
            values.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 30 * len(data)
    finally:
        tracemalloc.stop()


def test_arrays_that_claim_the_same_bytes_are_refused() -> None:
    head: bytes = b"\x92" + 2 * ext(1, ["|u1", [5000], 0])
    with pytest.raises(DecodingError, match="same bytes"):
        values.unpack(head, memoryview(bytes(9999)))


def test_rows_without_bytes_in_the_tail_are_bounded_too() -> None:
    head: bytes = b"\x92" + 2 * ext(1, ["|u1", [2**17 + 1, 0], 0])
    with pytest.raises(DecodingError, match="without items"):
        values.unpack(head, memoryview(bytes(16)))


@pytest.mark.parametrize("dtype", [np.float32, object])
def test_arrays_without_items_are_sent_up_to_a_bound(dtype: Any) -> None:
    most: list[Any] = [np.empty((2**17, 0), dtype), np.empty((0, 2**8, 2**9), dtype)]
    tail = Tail()
    with pytest.raises(EncodingError, match="without items"):
        values.pack([*most, np.empty(0, dtype)], tail)
    read = values.unpack(values.pack(most, tail))
    assert [(one.shape, one.dtype) for one in read] == [(one.shape, dtype) for one in most]
    with pytest.raises(EncodingError, match=r"x\[0\] is an array without items") as caught:
        values.encode([np.empty((2**18 + 1, 0), dtype)], root="x")
    assert caught.value.path == "x[0]"
    copy, paths = values.opaque({"a": np.empty((2**18 + 1, 0), dtype)})
    assert (type(copy["a"]), paths) == (Opaque, ['info["a"]'])


@settings(max_examples=3 * settings().max_examples)
@given(st.binary(max_size=200), st.binary(max_size=64))
def test_any_bytes_give_a_value_or_a_decoding_error(data: bytes, tail: bytes) -> None:
    with contextlib.suppress(DecodingError):
        values.unpack(data, memoryview(tail))


# --- any value ----------------------------------------------------------------------------------

dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=4),
    hnp.byte_string_dtypes(min_len=1, max_len=4),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4))
text = st.text(max_size=5)
keys: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
scalars = arrays.filter(lambda a: a.size > 0).map(lambda a: a.reshape(-1)[0])
anything: Any = st.recursive(
    keys | arrays | scalars | st.builds(Opaque, text, text),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
        | st.builds(GraphInstance, inner, inner, inner)
    ),
    max_leaves=12,
)


@settings(max_examples=3 * settings().max_examples)
@given(anything)
def test_any_value_comes_back_to_the_bit(value: Any) -> None:
    assert_same(through(value), value)
    assert_same(through_tail([value, 0]), [value, 0])


@settings(max_examples=3 * settings().max_examples)
@given(anything, st.data())
def test_a_mutated_message_gives_a_value_or_a_decoding_error(value: Any, data: Any) -> None:
    tail = Tail()
    head = bytearray(values.pack([value, np.zeros(700)], tail))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(head) - 1))
        head[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodingError):
        values.unpack(bytes(head[: data.draw(st.integers(0, len(head)))]), joined(tail))


def test_every_bit_of_a_float64_is_kept() -> None:
    bits = np.array([0x7FF0000000000001, 0xFFF8DEADBEEF0001, 1 << 63], np.uint64).view(np.float64)
    for value in bits:
        assert through(value).tobytes() == value.tobytes()


def test_small_arrays_that_begin_alike_keep_their_shapes_and_dtypes() -> None:
    alike = [np.arange(12, dtype=np.float32).reshape(2, 1, *shape) for shape in ((2, 3), (3, 2))]
    starts = {(len(packed := values.encode(one)), packed[:10]) for one in alike}
    assert len(starts) == 1
    for array in alike * 2:
        assert_same(values.decode(values.encode(array)), array)


def test_the_remembered_starts_of_arrays_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_starts", {})
    for size in range(1, values.MAX_STARTS + 5):
        array = np.arange(size, dtype=np.uint8)
        assert_same(values.decode(values.encode(array)), array)
        assert size in {len(shape) and shape[0] for _, _, shape in values._starts.values()}
        assert len(values._starts) <= values.MAX_STARTS
