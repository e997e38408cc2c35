from __future__ import annotations

import collections
import contextlib
import copy
import enum
from typing import Any

import gymnasium
import msgpack
import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.spaces.utils import flatten_space
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from gymwire.protocol.errors import DecodingError, UnsupportedSpaceError
from gymwire.protocol.space_codecs import NOT_COMPACT
from gymwire.protocol.spaces import (
    _NODE_BYTES,
    _charge_batched,
    _describe_at,
    _NodeContext,
    build,
    check_batched,
    compile,
    describe,
    foreign,
)
from gymwire.protocol.values import MAX_DEPTH, Tail
from tests.protocol.test_values import joined
from tests.sameness import assert_same
from tests.sampling import sampled
from tests.space_zoo import ZOO, ZooEnv, canonical

BATCHED = {f"{name}-batched": batch_space(ZOO[name], 3) for name in ZOO if name != "deep"}
SPACES = {**ZOO, **BATCHED}
NAMES = [*ZOO, *sampled(BATCHED, 4)]
SELF_DESCRIBING = (spaces.Sequence, spaces.Graph, spaces.OneOf)


def over_the_wire(description: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(description, strict_types=True), strict_map_key=False)


def samples(space: Space[Any], count: int = 4) -> list[Any]:
    space = copy.deepcopy(space)
    space.seed(5)
    return [space.sample() for _ in range(count)]


# --- describe and build -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_space_is_built_equal_to_the_one_described(name: str) -> None:
    built = build(over_the_wire(describe(SPACES[name])))
    assert built == SPACES[name]
    assert type(built) is type(SPACES[name])
    assert describe(built) == describe(SPACES[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_built_space_draws_the_same_samples(name: str) -> None:
    built = build(over_the_wire(describe(SPACES[name])))
    assert_same(samples(built), samples(SPACES[name]))


def test_a_dict_keeps_the_order_of_its_keys() -> None:
    built = build(describe(ZOO["dict-order"]))
    assert isinstance(built, spaces.Dict)
    assert list(built.spaces) == ["z", "a"]


def test_uniform_bounds_are_described_by_one_number() -> None:
    assert len(msgpack.packb(describe(spaces.Box(0, 255, (84, 84, 4), np.uint8)))) < 40


def test_a_box_keeps_which_of_its_integer_bounds_were_infinite() -> None:
    built = build(describe(ZOO["box-half-bounded-int"]))
    assert isinstance(built, spaces.Box)
    assert built.is_bounded("below")
    assert not built.is_bounded("above")


def test_negative_zero_stays_apart_from_zero() -> None:
    built = build(describe(spaces.Box(np.array([0.0, -0.0]), np.ones(2), dtype=np.float64)))
    assert isinstance(built, spaces.Box)
    assert np.signbit(built.low).tolist() == [False, True]


class MyBox(spaces.Box):
    pass


class MySpace(Space[Any]):
    pass


class Key(enum.StrEnum):
    A = "a"


class Strict(spaces.Discrete):
    def contains(self, x: Any) -> bool:
        return bool(x == 1)


class NotASpace:
    pass


@pytest.mark.parametrize(
    ("odd", "sent_as"),
    [(MyBox(0, 1), "Box"), (MySpace(), "RemoteSpace"), (Strict(2), "RemoteSpace")],
    ids=["subclass", "unknown", "overriding"],
)
def test_a_foreign_space_is_found_by_name_and_place(odd: Space[Any], sent_as: str) -> None:
    space = spaces.Dict({"camera": spaces.Tuple([spaces.Discrete(2), spaces.Sequence(odd)])})
    (found,) = foreign(space, "observation_space")
    assert found.path == 'observation_space["camera"][1].feature_space'
    assert found.kind == f"{__name__}.{type(odd).__name__}"
    assert (found.sent_as, found.space) == (sent_as, odd)
    assert type(build(describe(odd))).__name__ == sent_as
    assert build(describe(space)) == build(describe(space))


def test_a_space_that_cannot_be_flattened_points_to_the_env_agent() -> None:
    space = build(describe(spaces.Dict({"mission": MySpace()})), root="observation_space")
    with pytest.raises(NotImplementedError, match=r'\["mission"\] is a .*MySpace.*--wrap'):
        flatten_space(space)


def test_what_is_not_a_space_is_refused() -> None:
    odd: Any = NotASpace()
    with pytest.raises(UnsupportedSpaceError, match=r"NotASpace, which is not a gymnasium\.Space"):
        describe(odd)


@pytest.mark.parametrize(
    "node",
    [
        ["Remote"],
        ["Remote", 3, None, None],
        ["Remote", "x.Y", None, 3],
        ["Remote", "x.Y", "no shape", None],
        ["Remote", "x.Y", [1] * 100, None],
        ["Remote", "x.Y", [True], None],
        ["Remote", "x.Y", [2**70], None, None],
        ["Remote", "x.Y", None, "no dtype"],
    ],
)
def test_a_malformed_foreign_space_is_refused(node: Any) -> None:
    with pytest.raises(DecodingError):
        build([node])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (2,), np.longdouble),
        spaces.Dict({("a", 1): spaces.Discrete(2)}),  # type: ignore[dict-item]
        spaces.Dict({Key.A: spaces.Discrete(2)}),
        spaces.Text(3, charset="\ud800"),
        spaces.Dict([(str(i), spaces.MultiBinary(2**26)) for i in range(3)]),
    ],
    ids=["longdouble", "tuple key", "enum key", "surrogate", "too large"],
)
def test_a_space_that_has_no_portable_form_is_refused(space: Space[Any]) -> None:
    with pytest.raises(UnsupportedSpaceError):
        describe(space)


@pytest.mark.parametrize("name", sampled(sorted(ZOO.keys() - {"box-widest"}), 8))
@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_batched_space_costs_what_is_computed_before_it_is_made(name: str, count: int) -> None:
    try:
        batched = batch_space(ZOO[name], count)
    except Exception:  # noqa: BLE001 - such spaces cannot be batched
        return
    computed, described = _NodeContext("space"), _NodeContext("space")
    _charge_batched(ZOO[name], count, computed)
    for _ in _describe_at(batched, described):
        pass
    # Only the tuples of copies are not counted themselves.
    missing = computed.budget.left - described.budget.left
    assert missing % _NODE_BYTES == 0
    assert 0 <= missing <= _NODE_BYTES * sum(node[0] == "Tuple" for node in describe(batched))


@pytest.mark.parametrize(
    ("space", "count"),
    [
        (spaces.Box(0, 255, (210, 160, 3), np.uint8), 1500),
        (spaces.Dict(a=spaces.Tuple([spaces.Box(0, 1, (256,))])), 1 << 20),
        (spaces.MultiBinary(1 << 10), 1 << 20),
        (spaces.Text(5), 1 << 15),
        (spaces.Sequence(spaces.Box(0, 1, (1 << 20,))), 40),
        (spaces.Discrete(3), 1 << 30),
        (MyBox(0, 1, (256,)), 1 << 20),
        (MySpace(), 1 << 15),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batched_space_that_would_be_too_large_is_refused(space: Space[Any], count: int) -> None:
    check_batched(space, 2)
    with pytest.raises(UnsupportedSpaceError, match=r"MiB\. There are .* open fewer of them"):
        check_batched(space, count)


def tower(levels: int) -> Space[Any]:
    space: Space[Any] = spaces.Discrete(2)
    for _ in range(levels - 1):
        space = spaces.Tuple([space])
    return space


def test_sixty_four_levels_can_be_described_and_one_more_cannot() -> None:
    assert build(describe(tower(MAX_DEPTH))) == tower(MAX_DEPTH)
    with pytest.raises(UnsupportedSpaceError, match="deeper"):
        describe(tower(MAX_DEPTH + 1))


BAD = {
    "no list": 3,
    "nothing": [],
    "no node": [3],
    "an empty node": [[]],
    "an unknown kind": [["Cube", 1]],
    "a kind that is no text": [[["Box"], 1]],
    "a node too many": [["MultiBinary", 1], ["MultiBinary", 1]],
    "a child too few": [["Tuple", 2], ["MultiBinary", 1]],
    "a negative count": [["Tuple", -1]],
    "a count of gigabytes": [["Tuple", 2**62]],
    "no spaces to choose from": [["OneOf", 0]],
    "too few fields": [["Box", "<f4"]],
    "too many fields": [["MultiBinary", 1, 2]],
    "a Box of objects": [["Box", "|O", [1], 0, 1]],
    "a Box of complex numbers": [["Box", "<c8", [1], 0, 1]],
    "a Box of gigabytes": [["Box", "<f4", [2**40], 0.0, 1.0]],
    "many Boxes of gigabytes together": [["Tuple", 9]] + [["Box", "|i1", [2**25], 0, 1]] * 9,
    "a Box of a negative size": [["Box", "<f4", [-1], 0.0, 1.0]],
    "a Box of 33 dimensions": [["Box", "<f4", [1] * 33, 0.0, 1.0]],
    "bounds in the wrong order": [["Box", "<f4", [1], 1.0, 0.0]],
    "a bound that is no number": [["Box", "<f4", [1], float("nan"), 1.0]],
    "a bound beyond its dtype": [["Box", "<f4", [1], 0.0, 1e300]],
    "a bound beyond its int dtype": [["Box", "|i1", [1], 0, 128]],
    "a bound of another type": [["Box", "<f4", [1], 0, 1]],
    "a bound of text": [["Box", "<f4", [1], "0", "1"]],
    "bounds of too few bytes": [["Box", "<f4", [2], bytes(7), 1.0]],
    "a bool bound of two": [["Box", "|b1", [2], b"\0\2", True]],
    "one flag of boundedness": [["Box", "<f4", [1], 0.0, 1.0, True]],
    "a Discrete without elements": [["Discrete", "<i8", 0, 0]],
    "a Discrete of floats": [["Discrete", "<f8", 1, 0]],
    "a Discrete beyond its dtype": [["Discrete", "|i1", 1000, 0]],
    "a Discrete of a bool": [["Discrete", "<i8", True, 0]],
    "a MultiDiscrete without elements": [["MultiDiscrete", "<i8", [2], 0, 0]],
    "a MultiBinary of zero": [["MultiBinary", 0]],
    "a MultiBinary of gigabytes": [["MultiBinary", 2**40]],
    "a Box of many rows without numbers": [["Box", "|u1", [2**40, 0], b"", b""]],
    "a MultiBinary of text": [["MultiBinary", "1"]],
    "a Text of negative length": [["Text", -1, 3, "a"]],
    "a Text of the wrong order": [["Text", 3, 1, "a"]],
    "a Text without a charset": [["Text", 1, 3, None]],
    "a Dict with the same key twice": [["Dict", ["a", "a"], True]] + [["MultiBinary", 1]] * 2,
    "a Dict with an unhashable key": [["Dict", [[]], True], ["MultiBinary", 1]],
    "a Sequence of a number": [["Sequence", 1], ["MultiBinary", 1]],
    "Graphs whose copies double": [["Graph", False]] * 40 + [["Discrete", "<i8", 2, 0]],
    "Sequences whose copies double": [["Sequence", True]] * 40 + [["Discrete", "<i8", 2, 0]],
    "a Text that no memory holds": [["Text", 2**40, 2**41, "a"]],
    "a Sequence of long texts": [["Sequence", False], ["Text", 2**20, 2**20, "a"]],
    "a Text whose length is negative": [["Text", -1, 3, "a"]],
    "Sequences whose samples multiply": [["Sequence", False]] * 40 + [["Discrete", "<i8", 2, 0]],
    "Graphs whose samples multiply": [["Graph", False]] * 8 + [["Discrete", "<i8", 2, 0]],
    "65 levels": [["Tuple", 1]] * 64 + [["Discrete", "<i8", 2, 0]],
    "5000 levels": [["Tuple", 1]] * 5000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_description_is_refused(name: str) -> None:
    with pytest.raises(DecodingError):
        build(BAD[name])


junk: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=3 * settings().max_examples)
@given(st.sampled_from(sorted(SPACES)), st.data())
def test_a_mutated_description_gives_a_space_or_a_decoding_error(name: str, data: Any) -> None:
    description = copy.deepcopy(describe(SPACES[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        node = description[data.draw(st.integers(0, len(description) - 1))]
        node[data.draw(st.integers(0, len(node) - 1))] = data.draw(junk)
    with contextlib.suppress(DecodingError):
        build(description)


# --- compile ------------------------------------------------------------------------------------


def holds_self_describing(space: Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return any(map(holds_self_describing, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return any(map(holds_self_describing, space.spaces))
    return isinstance(space, SELF_DESCRIBING)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_comes_back_the_same_through_its_compiled_codec(name: str) -> None:
    space = SPACES[name]
    near, far = compile(space), compile(build(over_the_wire(describe(space))))
    for value in samples(space):
        tail = Tail()
        form = near.encode(value, tail)
        assert (form is NOT_COMPACT) == holds_self_describing(space)
        if form is not NOT_COMPACT:
            assert_same(far.decode(over_the_wire(form), joined(tail)), value)


BOX, DICT = spaces.Box(-1, 1, (3,)), spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Text(3)})
FITTING = {"a": np.int64(1), "b": "x"}
MISFITS: dict[str, tuple[Space[Any], Any]] = {
    "another dtype": (BOX, np.zeros(3)),
    "another byte order": (BOX, np.zeros(3, ">f4")),
    "another shape": (BOX, np.zeros((1, 3), np.float32)),
    "a list": (BOX, [0.0, 0.0, 0.0]),
    "a masked array": (BOX, np.ma.zeros(3, np.float32)),
    "a numpy scalar for a Box": (spaces.Box(0, 1, ()), np.float32(1)),
    "another dtype for a large Box": (ZOO["box-image"], np.zeros((84, 84, 4), np.int8)),
    "a Python int for a Discrete": (spaces.Discrete(3), 1),
    "another int for a Discrete": (spaces.Discrete(3), np.int32(1)),
    "a 0-d array for a Discrete": (spaces.Discrete(3), np.array(1)),
    "a numpy text for a Text": (spaces.Text(3), np.str_("a")),
    "a Python list for a MultiDiscrete": (spaces.MultiDiscrete([3]), [1]),
    "bools for a MultiBinary": (spaces.MultiBinary(2), np.zeros(2, np.bool_)),
    "an extra key": (DICT, {**FITTING, "c": 1}),
    "a missing key": (DICT, {"a": np.int64(1)}),
    "another order of keys": (DICT, dict(reversed(FITTING.items()))),
    "an ordered dict": (DICT, collections.OrderedDict(FITTING)),
    "an equal key of another type": (DICT, {Key.A: np.int64(1), "b": "x"}),
    "a misfit inside": (DICT, {"a": 1, "b": "x"}),
    "a list for a Tuple": (spaces.Tuple([BOX]), [np.zeros(3, np.float32)]),
    "a longer tuple": (spaces.Tuple([BOX]), (np.zeros(3, np.float32), 1)),
    "None": (DICT, None),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_value_that_does_not_fit_exactly_is_not_compact(name: str) -> None:
    space, value = MISFITS[name]
    assert compile(space).encode(value, Tail()) is NOT_COMPACT


def test_a_value_out_of_bounds_is_neither_clipped_nor_refused() -> None:
    codec, value = compile(BOX), np.array([9, np.nan, -9], np.float32)
    assert_same(codec.decode(codec.encode(value, Tail()), None), value)
    codec = compile(spaces.Discrete(3))
    assert_same(codec.decode(codec.encode(np.int64(99), Tail()), None), np.int64(99))


@pytest.mark.parametrize("shape", [(3, 4), (60, 70)], ids=["small", "large"])
def test_an_array_that_is_not_contiguous_keeps_its_values(shape: tuple[int, int]) -> None:
    codec, tail = compile(spaces.Box(0, 1, shape)), Tail()
    value = np.random.default_rng(0).random((2 * shape[0], shape[1]), np.float32)[::2]
    assert_same(codec.decode(codec.encode(value, tail), joined(tail)), value)


def test_a_value_that_is_not_compact_leaves_the_tail_unchanged() -> None:
    tail = Tail()
    tail.add(np.zeros(5000, np.uint8))
    value = {"i": np.zeros((64, 64, 3), np.uint8), "n": 1}
    assert compile(ZOO["dict-image"]).encode(value, tail) is NOT_COMPACT
    assert (len(tail.parts), tail.size) == (1, 5000)


@pytest.mark.parametrize("name", ["box-float32", "box-scalar", "box-image", "box-unbounded"])
def test_decoded_arrays_are_fresh_and_writable(name: str) -> None:
    codec, tail = compile(ZOO[name]), Tail()
    form = codec.encode(samples(ZOO[name])[0], tail)
    one, two = (codec.decode(form, joined(tail)) for _ in range(2))
    assert one.flags.writeable
    assert one.flags.owndata
    assert not np.shares_memory(one, two)


WRONG_FORMS: dict[str, tuple[str, Any]] = {
    "too few bytes": ("box-float32", bytes(23)),
    "too many bytes": ("box-float32", bytes(25)),
    "a list for bytes": ("box-float32", [0] * 24),
    "bools of two": ("box-bool", b"\0\1\2"),
    "bytes for a place": ("box-image", bytes(84 * 84 * 4)),
    "a place outside": ("box-image", 16),
    "a negative place": ("box-image", -16),
    "a place off the grid": ("box-image", 1),
    "a bool for a place": ("box-image", False),
    "a bool for an int": ("discrete", True),
    "a float for an int": ("discrete", 1.0),
    "an int beyond its dtype": ("discrete-int8", 128),
    "an int beyond 64 bits": ("discrete", 2**64 - 1),
    "bytes for text": ("text", b"a"),
    "a part too few": ("dict", [0]),
    "a dict for parts": ("dict", {"a": 0}),
    "text for parts": ("tuple", "abc"),
    "a form for what has none": ("sequence", []),
}


@pytest.mark.parametrize("name", WRONG_FORMS)
def test_a_wrong_form_is_refused(name: str) -> None:
    space, form = WRONG_FORMS[name]
    with pytest.raises(DecodingError):
        compile(ZOO[space]).decode(form, memoryview(bytes(84 * 84 * 4 + 15)))


def test_a_large_array_without_a_tail_is_refused() -> None:
    with pytest.raises(DecodingError):
        compile(ZOO["box-image"]).decode(0, None)


def test_parts_that_share_their_bytes_are_refused() -> None:
    box = spaces.Box(0, 255, (5000,), np.uint8)
    with pytest.raises(DecodingError, match="tail is shorter"):
        compile(spaces.Tuple([box, box])).decode([0, 0], memoryview(bytes(5000)))


@settings(max_examples=2 * settings().max_examples)
@given(st.sampled_from(sorted(SPACES)), junk)
def test_any_form_gives_a_value_or_a_decoding_error(name: str, form: Any) -> None:
    with contextlib.suppress(DecodingError):
        compile(SPACES[name]).decode(form, memoryview(b""))


# --- the zoo itself -----------------------------------------------------------------------------


def trajectory(env: gymnasium.Env[Any, Any]) -> str:
    env.action_space.seed(3)
    steps = [env.reset(seed=1), *(env.step(env.action_space.sample()) for _ in range(7))]
    assert steps[-1][2] is True
    return canonical(steps)


@pytest.mark.parametrize("name", ZOO)
def test_a_zoo_environment_repeats_itself_from_its_seed(name: str) -> None:
    assert trajectory(ZooEnv(name, name)) == trajectory(ZooEnv(name, name))
