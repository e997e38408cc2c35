"""Values of types that cannot be serialized as they are: what they become, and how often we say."""

from __future__ import annotations

import collections
import contextlib
import copy
import enum
import pickle
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgpack
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from gymwire.broker.decoding import decode
from gymwire.env_agent.interpreter import child_values
from gymwire.env_agent.interpreter.child import frames
from gymwire.learner_agent.adapters import single_infos
from gymwire.protocol import named_tuples, values, vector_infos
from gymwire.protocol.codec import PLAIN, Codec, read_header
from gymwire.protocol.errors import DecodingError, EncodingError
from gymwire.protocol.messages import Act, Open, Percept, Result, Status
from gymwire.protocol.space_codecs import compile as compile_space
from gymwire.protocol.step_codec import compile_steps
from tests.hostile_values import crowding_numbers
from tests.rich_envs import Tensor
from tests.sameness import assert_same


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 3


class Modes(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: float
    y: Any


class Odd(enum.Enum):
    NAME = "name"
    MASK = "_name"
    ONE = 1


@dataclass
class Inner:
    colour: Colour
    where: Point


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: list[Any] = field(default_factory=list)


class BrokenTensor(Tensor):
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        raise RuntimeError("on another device")


def objects(*items: Any) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def point(x: Any, y: Any) -> Any:
    return named_tuples.rebuild("Point", ("x", "y"), [x, y])


GRID = np.arange(6, dtype=np.float32).reshape(2, 3)
CONVERTED = [
    (Colour.RED, "red"),
    (Colour.PAIR, (1, 2)),
    (Level.LOW, 3),
    (Modes.A | Modes.B, 3),
    (Point(1.0, Colour.RED), point(1.0, "red")),
    (Inner(Colour.RED, Point(1, 2)), {"colour": "red", "where": point(1, 2)}),
    (Outer(Inner(Colour.RED, Point(1, None))),
     {"inner": {"colour": "red", "where": point(1, None)}, "many": []}),
    (MappingProxyType({"a": Level.LOW}), {"a": 3}),
    (Counter("aab"), {"a": 2, "b": 1}),
    (OrderedDict(a=Colour.RED), OrderedDict(a="red")),
    (objects(1, "text", None, GRID, Colour.RED), objects(1, "text", None, GRID, "red")),
    (objects([Level.LOW], objects(1)), objects([3], objects(1))),
    (np.array([[None, 1], [2, "x"]], object), np.array([[None, 1], [2, "x"]], object)),
    (np.array(None, object), np.array(None, object)),
    (np.empty((0, 3), object), np.empty((0, 3), object)),
    (Tensor(GRID), GRID),
    (Tensor(np.array(2.5)), np.array(2.5)),
    ({Colour.RED: 1, Level.LOW: 2}, {"red": 1, 3: 2}),
    ((Colour.RED, [Tensor(GRID)]), ("red", [GRID])),
]  # fmt: skip
IDS = [f"{i}-{type(value).__name__}" for i, (value, _) in enumerate(CONVERTED)]


def sent(info: Any, **options: Any) -> Any:
    codec = Codec(**options)
    percept = codec.decode(codec.encode(Percept(0, 0.0, False, False, info)))
    assert type(percept) is Percept
    return percept.info


@pytest.mark.parametrize(("value", "became"), CONVERTED, ids=IDS)
def test_an_info_arrives_as_the_table_says(value: Any, became: Any) -> None:
    found = sent({"it": value, "beside": np.float64(1.0)})
    assert_same_names(found, {"it": became, "beside": np.float64(1.0)})


@pytest.mark.parametrize(("value", "became"), CONVERTED, ids=IDS)
def test_what_arrived_can_be_serialized_again(value: Any, became: Any) -> None:
    once = sent({"it": value})
    assert_same_names(values.decode(values.encode(once)), once)


def assert_same_names(found: Any, expected: Any) -> None:
    """Compare values whose named tuples may have types made at different times."""
    assert repr(found) == repr(expected)
    assert_same(_plain(found), _plain(expected))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("named", type(value).__name__, value._fields, *map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def test_a_named_tuple_is_one_with_the_same_names() -> None:
    found = sent({"it": Point(1.0, "a")})["it"]
    assert (type(found).__name__, found._fields, found.x, found.y) == (
        "Point",
        ("x", "y"),
        1.0,
        "a",
    )
    assert found == Point(1.0, "a")
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert type(again) is type(found)
        assert again == found


def test_each_conversion_is_reported_with_its_type() -> None:
    seen: list[tuple[str, str]] = []
    sent({"a": Colour.RED, "b": [Point(1, 2)]}, on_converted=lambda *one: seen.append(one))
    assert seen == [
        (f"{__name__}.Colour", "value"),
        (f"{__name__}.Point", "named tuple"),
    ]


@pytest.mark.parametrize(
    "info",
    [
        {"name": "t", Odd.NAME: "u"},
        {Odd.NAME: "u", "name": "t"},
        {"name": Odd.NAME, Odd.NAME: Odd.MASK},
        {"name": 1, Odd.NAME: 2},
        {"name": 1, Odd.NAME: "u"},
        {"name": [1], Odd.NAME: [2]},
        {1: "a", Odd.ONE: "b"},
        {"in": {1: "a", Odd.ONE: 5, Odd.NAME: {"x": None, Odd.ONE: None}}},
        {Odd.NAME: {Odd.ONE: 2, 1: 3}, "\ud800": object()},
        {frozenset("a"): "a", frozenset("b"): 0.5},
    ],
)
def test_keys_of_a_vectors_infos_are_converted_as_those_of_each_info(info: Any) -> None:
    infos = in_vectors(info), in_vectors(sent(info))
    found = [vector_infos.from_wire(sent(vector_infos.to_wire(one)))[0] for one in infos]
    assert_same(*found)
    assert single_infos.split(found[0], [1], 2) == {1: sent(info)}


@pytest.mark.parametrize("info", [{"_name": 1, Odd.NAME: "u"}, {"name": "t", Odd.MASK: 2}])
def test_a_converted_key_of_a_vectors_infos_does_not_take_anothers_mask(info: Any) -> None:
    found, casts = vector_infos.from_wire(sent(vector_infos.to_wire(in_vectors(info))))
    assert not casts
    one = single_infos.split(found, [1], 2)[1]
    assert [*one.values()] == [*info.values()]
    assert type([*one][1]) is values.Opaque


def test_the_casts_of_a_vectors_infos_keep_their_array_and_what_has_no_key_loses_them() -> None:
    infos: dict[Any, Any] = {"name": objects("t"), Odd.NAME: np.array([1])}
    infos["crowd"] = {key: np.array([1]) for key in [*crowding_numbers(300), Odd.ONE]}
    odd: Any = {id(infos[Odd.NAME]): [[0, Odd.ONE]], id(infos["crowd"][Odd.ONE]): [[0, 0.5]]}
    found, casts = vector_infos.from_wire(sent(vector_infos.to_wire(infos, odd)))
    assert type(found["crowd"]) is values.Opaque
    assert casts == {([*found][1],): [(0, 1)]}


def test_what_is_nested_too_deep_in_a_vectors_infos_is_opaque() -> None:
    deep: Any = Odd.ONE
    for _ in range(values.MAX_DEPTH):
        deep = {"in": deep}
    found, _ = vector_infos.from_wire(sent(vector_infos.to_wire({"deep": objects(deep)})))
    assert values.Opaque.__name__ in repr(found["deep"][0])


def in_vectors(info: Any) -> dict[Any, Any]:
    """Return the infos of a vector of two environments that both return this info."""
    vector: Any = VectorEnv()
    vector.num_envs = 2
    return cast("dict[Any, Any]", vector._add_info(vector._add_info({}, info, 0), info, 1))


@pytest.mark.parametrize("bad", [BrokenTensor(GRID), object(), np.ma.masked_array([1]), {1, 2}])
def test_what_has_no_conversion_is_still_opaque(bad: Any) -> None:
    paths: list[str] = []
    found = sent({"it": [bad, Colour.RED]}, on_opaque=paths.append)
    assert type(found["it"][0]) is values.Opaque
    assert found["it"][1] == "red"
    assert paths == ['info["it"][0]']


class Unruly(dict[str, int]):
    """A mapping whose own code raises."""

    error: BaseException = ValueError("it broke")

    def __iter__(self) -> Any:
        raise self.error

    items = keys = __len__ = __iter__


@pytest.mark.parametrize("error", [ValueError("it broke"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("place", ["the info", "a value of it"])
def test_a_mapping_whose_own_code_raises_is_opaque(
    error: BaseException, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unruly, "error", error)
    found = sent(Unruly() if place == "the info" else {"it": Unruly()})
    assert type(found if place == "the info" else found["it"]) is values.Opaque


@pytest.mark.parametrize("kind", [OrderedDict, Counter, MappingProxyType])
def test_the_keys_of_every_mapping_are_checked(kind: Any) -> None:
    assert type(sent({"it": kind(dict.fromkeys(crowding_numbers(300), 0))})["it"]) is values.Opaque


def test_a_key_that_a_conversion_makes_unhashable_is_opaque() -> None:
    @dataclass(frozen=True)
    class Key:
        x: int

    (key,) = sent({Key(1): 1})
    assert type(key) is values.Opaque


def test_a_dataclass_that_contains_itself_ends() -> None:
    one = Outer(Inner(Colour.RED, Point(1, 2)))
    one.many.append(one)
    assert type(sent({"it": one})["it"]["many"][0]) is values.Opaque


@pytest.mark.parametrize("value", [Colour.RED, Tensor(GRID)])
def test_strict_infos_refuse_conversions(value: Any) -> None:
    with pytest.raises(EncodingError, match=f"it.*{type(value).__name__}"):
        sent({"it": value}, strict_infos=True)


# --- observations and rewards ---------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_tensors_in_observations_and_rewards_become_arrays(strict: bool) -> None:
    space = compile_space(spaces.Box(0, 9, (2, 3), np.float32))
    codec = Codec(space, strict_infos=strict)
    percept = Percept(Tensor(GRID), Tensor(np.array(1.5)), Tensor(np.array(True)), False, {})
    steps = compile_steps(space, space)
    assert (
        steps.encode_percept(
            (percept.observation, percept.reward, percept.terminated, False, {}), bytes(16)
        )
        is None
    )
    found = codec.decode(codec.encode(percept))
    assert type(found) is Percept
    assert_same(found.observation, GRID)
    assert_same(found.reward, np.array(1.5))
    assert_same(found.terminated, np.array(True))
    status = codec.decode(codec.encode(Status({"a": (Tensor(GRID), 1)}, {})))
    assert type(status) is Status
    assert_same(status.observation, {"a": (GRID, 1)})


def test_an_observation_is_not_converted_otherwise() -> None:
    with pytest.raises(EncodingError, match="observation is a"):
        Codec().encode(Status(Colour.RED, {}))


@pytest.mark.parametrize("message", [Act(Colour.RED), Result(Point(1, 2)), Act(Tensor(GRID))])
def test_other_messages_convert_nothing(message: Any) -> None:
    with pytest.raises(EncodingError):
        Codec().encode(message)


# --- peers of an earlier release ------------------------------------------------------------------


def test_an_earlier_release_gets_only_types_that_it_knows() -> None:
    info = {"named": Point(1, Colour.RED), "objects": objects(1, None), "enum": Level.LOW}
    found = sent(info, extended=False)
    assert_same(found["named"], (1, "red"))
    assert found["enum"] == 3
    assert type(found["objects"]) is values.Opaque
    frame = Codec(extended=False).encode(Percept(0, 0.0, False, False, info))
    assert b"Point" not in frame


def test_an_array_of_objects_is_refused_for_an_earlier_release() -> None:
    with pytest.raises(EncodingError):
        Codec(extended=False).encode(Act(objects(1)))
    assert_same(Codec().decode(Codec().encode(Act(objects(1)))).action, objects(1))  # type: ignore[union-attr]


# --- hostile frames -------------------------------------------------------------------------------


def frame(code: int, content: Any) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, msgpack.packb(content)))
    return packed


@pytest.mark.parametrize(
    "content",
    [
        ["class", [], []], ["a b", ["x"], [1]], ["A", ["x", "x"], [1, 2]], ["A", ["_x"], [1]],
        ["A", ["x"], []], ["A", ["x"], [1, 2]], ["A", ["x"]], [1, ["x"], [1]], ["A", [1], [1]],
        ["A", "xy", [1, 2]], {}, 3, ["A" * 300, ["x"], [1]],
        ["A", [f"x{i}" for i in range(300)], [0] * 300],
        ["A", None, []], ["__import__('os')", ["x"], [1]],
    ],
)  # fmt: skip
def test_a_malformed_named_tuple_is_refused(content: Any) -> None:
    with pytest.raises(DecodingError):
        values.decode(frame(8, content))


@pytest.mark.parametrize(
    "content",
    [
        [[2], [1]], [[-1], []], [[1.0], [1]], [["1"], [1]], [1, [1]], [[1], 1], [[1]], [],
        [[1] * 33, [1]], [[2**70, 0], []], {}, 3,
    ],
)  # fmt: skip
def test_a_malformed_array_of_objects_is_refused(content: Any) -> None:
    if content == [[2**70, 0], []]:
        content = [[2**63, 2], []]
    with pytest.raises(DecodingError):
        values.decode(frame(9, content))


def test_a_message_cannot_make_many_types() -> None:
    many = [named_tuples.rebuild(f"A{i}", ("x",), [i]) for i in range(named_tuples.MAX_TYPES + 1)]
    assert len(values.decode(values.encode(many[:-1]))) == named_tuples.MAX_TYPES
    with pytest.raises(EncodingError, match=r"a\[64\] is a A64, and there are more than 64 types"):
        values.encode(many, root="a")
    with pytest.raises(EncodingError) as caught:
        values.pack([1, {"b": many}], root="a")
    assert caught.value.path == 'a[1]["b"][64]'
    packed = [frame(8, [type(one).__name__, ["x"], [0]]) for one in many]
    with pytest.raises(DecodingError, match="more than 64 types of named tuples"):
        values.decode(bytes((0xDC, 0, len(many))) + b"".join(packed))


def test_named_tuples_of_too_many_types_in_an_info_are_opaque() -> None:
    make: Any = collections.namedtuple
    made = [make(f"A{i}", ["x"])(i) for i in range(named_tuples.MAX_TYPES + 1)]
    rebuilt = [named_tuples.rebuild(f"A{one.x}", ("x",), [one.x]) for one in made]
    for many in (made, rebuilt):
        paths: list[str] = []
        found = sent({"it": [*many, many[0]]}, on_opaque=paths.append)["it"]
        assert paths == [f'info["it"][{named_tuples.MAX_TYPES}]']
        assert [type(one) is values.Opaque for one in found] == [False] * 64 + [True, False]


# Python's parser takes the two names of each pair for one.
ONE_NAME = [("s", "ſ"), ("fi", "ﬁ"), ("ª", "a"), ("K", "\N{KELVIN SIGN}")]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *(("Point", pair) for pair in ONE_NAME),
        ("Point", ("x", "_1", "y")), ("Point", ("_0",)), ("Point", ("_1",)), ("Point", ("x", "x")),
        ("Point", ("class",)), ("Point", ("ｃｌａｓｓ",)), ("Point", ("ſ",)), ("Point", ("",)),
        ("Point", ("a b",)), ("Point", ("x\0",)), ("Point", ("count", "index")), ("Point", ()),
        ("ſ", ("x",)), ("class", ("x",)), ("", ("x",)), ("x\0", ("x",)), ("__class__", ("x",)),
    ],
)  # fmt: skip
def test_a_named_tuple_has_the_names_that_python_allows(name: str, fields: tuple[str, ...]) -> None:
    data = frame(8, [name, list(fields), [*range(len(fields))]])
    make: Any = collections.namedtuple
    local = None
    with contextlib.suppress(ValueError, SyntaxError):
        local = make(name, fields, rename=True)
    if local is None or local._fields != fields:
        with pytest.raises(DecodingError, match=r"is not a name of a type|are not names of fields"):
            values.decode(data)
        with pytest.raises(ValueError, match="name"):
            named_tuples.base_type(name, fields)
        marked = (frames.MARK, "named", name, fields, [*range(len(fields))])
        with pytest.raises(DecodingError):
            child_values.decode(values.encode(marked))
    else:
        assert repr(values.decode(data)) == repr(local(*range(len(fields))))
        assert named_tuples.base_type(name, fields)._fields == fields


@pytest.mark.parametrize(("name", "field"), [("x", b"y"), (b"x", "y"), ("x", 1), ("x", (1,))])
def test_the_names_of_a_named_tuple_are_text(name: Any, field: Any) -> None:
    with pytest.raises(DecodingError):
        values.decode(frame(8, [name, [field], [0]]))
    with pytest.raises(DecodingError):
        child_values.decode(values.encode((frames.MARK, "named", name, [field], [0])))


def test_a_rebuilt_named_tuple_does_what_a_local_one_does() -> None:
    remote, local = point(1, "y"), Point(1, "y")
    kind = type(remote)
    assert (remote, repr(remote), hash(remote)) == (local, repr(local), hash(local))
    assert (remote.x, remote.y, remote._asdict()) == (local.x, local.y, local._asdict())
    assert remote._replace(y=2) == kind(1, y=2) == kind(x=1, y=2) == kind._make([1, 2]) == (1, 2)
    assert (kind._fields, kind._field_defaults) == (Point._fields, Point._field_defaults)
    match remote:
        case kind(x, y):
            assert (x, y) == local
    with pytest.raises(AttributeError):
        remote.x = 2
    with pytest.raises(AttributeError):
        remote.z = 2
    for items, named in (((1,), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1, 2), {"z": 3})):
        with pytest.raises(TypeError, match="each of its fields"):
            kind(*items, **named)
    for one in (copy.copy(remote), copy.deepcopy(remote), pickle.loads(pickle.dumps(remote))):
        assert (type(one), one) == (kind, remote)


@pytest.mark.parametrize("field", ["cls", "self", "items", "named", "count"])
def test_a_field_may_have_the_name_of_a_parameter_or_a_method(field: str) -> None:
    one = named_tuples.rebuild("Other", (field, "x"), [1, 2])
    kind: Any = type(one)
    assert one._replace(**{field: 3}) == kind(x=2, **{field: 3}) == (3, 2)
    assert getattr(one, field) == 1


def test_a_broker_makes_no_types_of_named_tuples() -> None:
    keywords = {"a": point(1, point(2, 3)), "b": named_tuples.rebuild("Other", ("z",), [4])}
    open_frame = bytes(PLAIN.encode(Open("lake", bytes(16), env_kwargs=keywords)))
    named_tuples.named_type.cache_clear()
    message = decode(read_header(open_frame), open_frame)
    assert isinstance(message, Open)
    assert_same(message.env_kwargs, {"a": (1, (2, 3)), "b": (4,)})
    assert named_tuples.named_type.cache_info().misses == 0
    with pytest.raises(DecodingError):
        values.decode(frame(8, ["Point", ["x"], []]), makes_types=False)


def test_a_deep_array_of_objects_is_refused() -> None:
    deep: Any = 1
    for _ in range(values.MAX_DEPTH + 2):
        deep = objects(deep)
    with pytest.raises(EncodingError):
        values.encode(deep)


@pytest.mark.parametrize("depth", range(60, 66))
@pytest.mark.parametrize("inner", [Point(1, 2), Inner(Colour.RED, Point(1, 2)), Colour.PAIR])
@pytest.mark.parametrize("extended", [True, False])
def test_a_value_that_is_nested_too_deep_to_be_converted_is_shown(
    depth: int, inner: Any, extended: bool
) -> None:
    value = inner
    for _ in range(depth):
        value = [value]
    found, faults, _ = values.convert({"it": value}, root="info", extended=extended)
    assert all("nested deeper" in fault.text for fault in faults)
    assert faults or depth < 62
    values.encode(found)


@pytest.mark.parametrize(("name", "make"), [("torch", "tensor"), ("jax.numpy", "asarray")])
def test_tensors_of_the_real_libraries_become_arrays(name: str, make: str) -> None:
    library = pytest.importorskip(name, reason=f"{name} is not installed")
    tensor = getattr(library, make)(GRID)
    if hasattr(tensor, "requires_grad_"):
        tensor = tensor.requires_grad_()
    assert_same(sent({"it": tensor})["it"], GRID)


def test_an_impossible_item_of_an_array_of_objects_is_named() -> None:
    with pytest.raises(EncodingError) as caught:
        Codec().encode(Act([objects(1, object())]))
    assert caught.value.path == "action[0].flat[1]"
