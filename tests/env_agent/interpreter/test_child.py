"""The program for other interpreters: its syntax, its imports, and its values."""

from __future__ import annotations

import ast
import dataclasses
import enum
import math
import os
import sys
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gymwire.env_agent.interpreter import child, child_errors, child_values
from gymwire.env_agent.interpreter.child import failures, frames, libraries, packing, program
from gymwire.env_agent.interpreter.child.channel import Channel
from gymwire.env_agent.interpreter.child.hosted import Hosted
from gymwire.env_agent.interpreter.child.program import Child
from gymwire.protocol import arrays, codec, named_tuples, values
from gymwire.protocol import value_limits as limits
from gymwire.protocol.errors import DecodingError
from gymwire.protocol.named_tuples import rebuild
from tests import rich_envs
from tests.hostile_values import PRIME, crowding_numbers
from tests.plain_envs import Asked, Plain, Values, box
from tests.rich_envs import Tensor
from tests.sameness import assert_same

SOURCES = {
    path.stem: path.read_text(encoding="utf-8") for path in Path(child.__file__).parent.glob("*.py")
}
# Modules of the standard library that Python 3.7 and PyPy have.
OF_PYTHON_3_7 = {
    "__future__", "collections", "dataclasses", "enum", "faulthandler", "importlib", "inspect",
    "os", "pathlib", "signal", "struct", "sys", "threading", "time", "traceback", "typing",
    "warnings",
}  # fmt: skip
# Names that later versions added to these modules and to Python's own types.
LATER = {
    "removeprefix", "removesuffix", "cached_property", "cache", "get_annotations", "bit_count",
    "add_note", "readlink", "is_relative_to", "pidfd_open", "waitstatus_to_exitcode", "excepthook",
    "KW_ONLY", "StrEnum", "get_origin", "orig_argv", "native_id", "prod",
}  # fmt: skip


def test_its_syntax_is_that_of_python_3_7() -> None:
    for source in SOURCES.values():
        tree = ast.parse(source, feature_version=(3, 7))
        assert len(tree.body) == 1 or "from __future__ import annotations" in source
        for node in ast.walk(tree):
            # What `feature_version` lets pass: positional-only parameters, := and `match`.
            assert not isinstance(node, ast.NamedExpr | ast.Match)
            assert not isinstance(node, ast.arguments) or not node.posonlyargs
            if isinstance(node, ast.Call):
                assert not {"strict"} & {word.arg for word in node.keywords}


def test_it_imports_what_python_3_7_has_alone() -> None:
    trees = [ast.parse(source) for source in SOURCES.values()]
    imported = set()
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").partition(".")[0])
    assert imported <= OF_PYTHON_3_7
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not used & LATER


def test_no_module_hides_one_of_the_standard_library_while_it_starts() -> None:
    assert not SOURCES.keys() & sys.stdlib_module_names


@pytest.fixture(autouse=True, params=[True, False])
def numpy_or_none(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the interpreter has numpy."""
    monkeypatch.setattr(libraries, "np", np if request.param else None)
    return bool(request.param)


CUBE = np.arange(24).reshape(2, 3, 4)
NUMBERS = [0, 1, -1, 127, 128, -32, -33, 255, 256, 65535, 65536, 2**31, 2**32, 2**63 - 1, 2**63]
NUMBERS += [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**2000, -(2**2000)]
PLAIN: list[Any] = [
    None, True, False, *NUMBERS, 0.0, -0.0, 1.5, math.inf, math.nan, "", "é😀", "x" * 31, "x" * 32,
    "x" * 256, "x" * 70_000, b"", b"x" * 300, b"x" * 70_000, [], [1], list(range(15)),
    list(range(16)), list(range(70_000)), (), (1, ("a",)), {}, {"a": 1, 2: b"b", (1, "x"): None},
    {str(i): i for i in range(70_000)}, {str(i): i for i in range(16)},
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{value!r:.20}")
def test_plain_values_pass_in_both_directions(value: Any) -> None:
    assert_same(child_values.decode(packing.pack(value)), value)
    assert_same(packing.unpack(values.encode(value)), value)


@pytest.mark.parametrize("name", ["?", "i1", "<i2", ">i4", "u8", "f2", "f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_arrays_and_their_items_pass_in_both_directions(name: str, shape: tuple[int, ...]) -> None:
    libraries.np = np
    array = np.random.default_rng(1).integers(0, 2, shape).astype(name)
    for value in (array, array.ravel()[0] if array.size else array):
        assert_same(values.decode(packing.pack(value)), value)
        assert_same(packing.unpack(values.encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [np.array(["a", "éé"]), np.array([b"ab", b"c"]), np.str_("é"), np.bytes_(b"x"),
     np.array(["2020-01-01"], "M8[D]"), np.timedelta64(3, "s")],
    ids=repr,
)  # fmt: skip
def test_texts_and_times_of_numpy_pass_in_both_directions(value: Any) -> None:
    libraries.np = np
    assert_same(values.decode(packing.pack(value)), value)
    assert_same(packing.unpack(values.encode(value)), value)


def test_what_is_nested_too_deep_is_shown_by_its_repr() -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    found, depth = child_values.decode(packing.pack((None, {"it": deep}))), 0
    found = found[1]["it"]
    while type(found) is list:
        found, depth = found[0], depth + 1
    assert depth == packing.MAX_DEPTH - 3
    assert values.opaque(found)[0].type == "builtins.list"


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_an_exception_without_a_text_is_reported(raised: type[BaseException]) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise raised

    module, name, text, trace = failures.describe_exception(Silent())
    assert (module, name.rpartition(".")[2]) == (__name__, "Silent")
    assert text == f"<no text: its __str__ raised {raised.__name__}>"
    assert "Silent" in trace


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 3


class Modes(enum.Flag):
    A = 1
    B = 2


class Shout(enum.StrEnum):
    LOUD = "loud"


class Odd(int, enum.Enum):
    """Its values are no numbers."""

    ONE = 1

    def __init__(self, _: int) -> None:
        self._value_: Any = "one"


@dataclasses.dataclass(frozen=True)
class Place:
    x: Any


@dataclasses.dataclass
class Both(UserDict[str, Any]):
    """A dataclass that is a mapping."""

    x: Any

    def __post_init__(self) -> None:
        self.data = {"y": self.x}


class Broken(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise RuntimeError

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class Same:
    def __repr__(self) -> str:
        return "Same()"


Pair = namedtuple("Pair", ["left", "right"])
Renamed = namedtuple("Renamed", ["class", "x"], rename=True)
Wide: Any = namedtuple("Wide", [f"x{i}" for i in range(257)])  # type: ignore[misc]
WIDE_KEYS: list[Any] = [rich_envs.Wide(*range(20)), rich_envs.Wider(*range(59))]
Long = type("Long", (Pair,), {"_fields": ("x" * 257, "y")})
CIRCLE: list[Any] = []
CIRCLE += [CIRCLE, CIRCLE]
CIRCLE_OF_OBJECTS = np.empty(2, object)
CIRCLE_OF_OBJECTS[0] = CIRCLE_OF_OBJECTS
UNUSUAL: list[Any] = [
    {Pair(1, (2,)): 1}, {Place(1): 1}, {(Place(1), 2): 1}, Renamed(1, 2), {Color.RED: 1, 1: 2},
    {"b": 1, Color.BLUE: 2}, {(Color.RED,): 1, None: 2, True: 3, 1.5: 4}, CIRCLE, {"a": CIRCLE},
    {i: i for i in range(256)}, {i: i for i in range(257)}, {(i, "x" * 60): 0 for i in range(3)},
    {("x" * 600,): 1}, {("😀" * 100,): 1}, 2**2046, 2**2048, -(2**9000), "\ud800",
    ["a", "\ud800"], Broken(), type("A[int]", (Pair,), {})(1, 2), [Pair([Place(Color.RED)], 2)],
    Wide(*range(257)), Long(1, 2), Level.LOW, Odd.ONE, Modes.A | Modes.B, Shout.LOUD,
    defaultdict(list, a=[Level.LOW]), UserDict(a=Place(1)), (Place(Color.BLUE), [Level.LOW]),
    OrderedDict(a=Both(Level.LOW)), Counter("aab"),
    *({(one,) * n: 1} for one in (0, "x", b"xy", None, 2**70) for n in (7, 10, 23, 38, 41, 42)),
    OrderedDict({(0,) * 42: 1}), {("x" * 600,): 1, (0,) * 42: 2}, {"x" * 600: 1, Shout.LOUD: 2},
    {Odd.ONE: 1, Same(): 2, Same(): 3}, {Same(): 1, Same(): 2, Same(): 3},
    {Shout.LOUD: 1}, {Place(1): 1, Pair(Place(1), 1): 2}, {Path("/x"): 1},
    {i: i for i in range(1000)}, dict.fromkeys(crowding_numbers(1000)), {Level.LOW: 1, "3": 2},
    *({key: 1, key._make([Color.RED] * len(key)): 2} for key in WIDE_KEYS),
    {Pair((0,) * 30, 1): 1}, {Pair(0, "x" * 480): 1},
    {(Same(),) * 8: 1},
    {2**3000: 1, 2**3000 + 1: 2, 3: 4},
]  # fmt: skip
UNUSUAL_ARRAYS: list[Any] = [
    np.array(Color.RED, object), np.array({"a": Place(1)}, object), CIRCLE_OF_OBJECTS,
    np.array([[Pair(1, np.arange(3)), None]], object), {np.int64(1): 1, np.str_("a"): 2},
    Tensor(CUBE.T), [Tensor(np.array(1.5))], Place(Tensor(np.arange(2))),
]  # fmt: skip


def _as_info(value: Any) -> Any:
    """Return what the learner gets for a value in an info of an environment here."""
    return values.decode(values.encode(values.opaque({"it": value})[0]))


def _from_there(value: Any) -> Any:
    """Return a value in an info of an environment there."""
    return child_values.decode(packing.pack((0, {"it": value})), set())[1]["it"]


def _report(value: Any, *, strict: bool) -> list[Any]:
    """Return what the env agent logs or refuses of a value in an info."""
    _, faults, conversions = values.convert({"it": value}, root="info", only_tensors=strict)
    return [*conversions, *((fault.path,) for fault in faults)]


def _check_unusual(value: Any) -> None:
    found = _from_there(value)
    assert_same(_as_info(found), _as_info(value))
    for strict in (False, True):
        assert _report(found, strict=strict) == _report(value, strict=strict)


@pytest.mark.parametrize("index", range(len(UNUSUAL)))
def test_an_unusual_value_arrives_as_from_an_environment_here(index: int) -> None:
    _check_unusual(UNUSUAL[index])


def test_keys_with_lone_surrogates_arrive_as_from_an_environment_here() -> None:
    for keys in (["\udfff"], ["😀" * 199 + "\ud800"], ["a" * 300 + "\ud800", "a" * 300 + "\ud801"]):
        value = dict.fromkeys(keys, 1)
        assert_same(_as_info(_from_there(value)), _as_info(value))


@pytest.mark.parametrize("index", range(len(UNUSUAL_ARRAYS)))
def test_an_unusual_array_arrives_as_from_an_environment_here(index: int) -> None:
    libraries.np = np
    _check_unusual(UNUSUAL_ARRAYS[index])


@pytest.mark.parametrize(
    "array",
    [CUBE.transpose(axes) for axes in permutations(range(3))]
    + [CUBE.astype(object).transpose(axes) for axes in permutations(range(3))]
    + [CUBE.transpose(2, 0, 1)[::-1, ::2], np.broadcast_to(np.arange(3), (2, 3)), CUBE[:, ::-1]],
)
def test_the_memory_order_of_an_array_is_kept(array: Any) -> None:
    libraries.np = np
    found = child_values.decode(packing.pack({"a": [array]}))["a"][0]
    assert_same(found, array)
    assert found.strides == array.copy("K").strides


def test_arguments_keep_their_type_and_their_memory_order() -> None:
    libraries.np = np
    objects = np.array([{"a": 1}, None, np.arange(2)], object)
    for value in (
        CUBE.transpose(2, 0, 1),
        np.asfortranarray(CUBE),
        objects.reshape(3, 1),
        CUBE.astype(object).transpose(2, 0, 1),
    ):
        found = packing.unpack(values.encode([value]))[0]
        assert_same(found, value)
        assert found.strides == value.strides
    pair = rebuild("Pair", ("left", "_1"), [1, (2,)])
    found = packing.unpack(values.encode(pair))
    assert (type(found).__name__, found._fields, tuple(found)) == (
        "Pair",
        ("left", "_1"),
        (1, (2,)),
    )


def test_an_action_in_another_memory_order_is_not_sent_as_raw_bytes() -> None:
    compact = child_values.compile_action(("<f8", [2, 3]))
    assert compact(np.ones((2, 3))) is not None
    assert compact(np.asfortranarray(np.ones((2, 3)))) is None


def test_the_limits_of_values_are_those_of_the_protocol() -> None:
    for name in ("MAX_DEPTH", "MAX_INT_BYTES", "MAX_OTHER_KEYS"):
        assert getattr(packing, name) == getattr(values if name == "MAX_DEPTH" else limits, name)
    assert packing.MAX_DIMS == arrays.MAX_DIMS
    assert packing.MAX_EMPTY == arrays.MAX_EMPTY
    assert packing.MAX_NAME == named_tuples.MAX_NAME == named_tuples.MAX_FIELDS
    assert packing.MAX_TYPES == named_tuples.MAX_TYPES
    assert frames.MAX_ANSWER == codec.MAX_MESSAGE


def equal_hashes(n: int) -> list[tuple[int, int]]:
    """Return pairs whose hashes are equal: those of tuples are xxHash, which can be inverted."""
    prime_1, prime_2, prime_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
    bits, first = 2**64, 0
    found: list[tuple[int, int]] = []
    while len(found) < n:
        first += 1
        state = (prime_5 + first * prime_2) % bits
        state = (state << 31 | state >> 33) * prime_1 % bits
        second = (12345 - state) * pow(prime_2, -1, bits) % bits
        if second < PRIME:
            found.append((first, second))
    return found


def test_what_stands_for_a_converted_value_has_its_repr() -> None:
    for value in (Color.RED, Place(1), Level.LOW, UserDict(a=1)):
        assert repr(_from_there([value])[0]) == repr(packing._convert(value, type(value))[1])


def test_keys_that_are_marked_may_not_collide_either() -> None:
    pairs = equal_hashes(300)
    assert len(set(map(hash, pairs))) == 1
    named = [(frames.MARK, "named", f"x{i % 60}", ("a", "b"), pairs[i], "") for i in range(300)]
    sent = (frames.MARK, "pairs", named, [None] * 300, False)
    found = child_values.decode(values.encode(sent))
    assert (type(found).__qualname__, repr(found)[:9]) == ("dict", "{x0(a=17,")
    large = [(*pair, "x" * 10_000) for pair in pairs[:200]]
    found = child_values.decode(packing.pack((frames.MARK, "pairs", large, large, False)))
    assert (type(found).__qualname__, len(repr(found))) == ("dict", 202)
    usual = {Pair(x, y): None for x in range(20) for y in range(20)}
    assert child_values.decode(packing.pack(usual)) == usual


@pytest.mark.parametrize("count", [2, 256, 300])
def test_keys_that_look_alike_take_linear_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: Counter[str] = Counter()
    is_equal = child_values._Equal.__eq__

    def count_and_compare(one: child_values._Equal, other: object) -> bool:
        compared["all"] += 1
        return is_equal(one, other)

    monkeypatch.setattr(child_values._Equal, "__eq__", count_and_compare)
    for value in ({Same(): n for n in range(count)}, {(Same(),): n for n in range(count)}):
        found = _from_there(value)
        assert_same(_as_info(found), _as_info(value))
    assert compared.total() < 20 * count


def named(*types: tuple[Any, Any]) -> bytes:
    return packing.pack([(frames.MARK, "named", *names, (0,), "m.x") for names in types])


def test_named_tuples_have_the_limits_of_the_protocol() -> None:
    types = [(f"x{i}", ("a",)) for i in range(named_tuples.MAX_TYPES + 1)]
    assert child_values.decode(named(*types[:-1])) == [(0,)] * named_tuples.MAX_TYPES
    wide = ("x", tuple(f"x{i}" for i in range(named_tuples.MAX_FIELDS + 1)))
    long = "x" * (named_tuples.MAX_NAME + 1)
    for wrong in (types, [wide], [(long, ("a",))], [("x", (long,))], [("x", (1,))], [(1, ("a",))]):
        with pytest.raises(DecodingError):
            child_values.decode(named(*wrong))


@pytest.mark.parametrize("in_keys", [True, False])
def test_named_tuples_of_too_many_types_are_opaque_as_in_an_environment_here(
    in_keys: bool,
) -> None:
    count = named_tuples.MAX_TYPES + 2
    make: Any = namedtuple
    many = [make(f"T{i}", ["x"])(i) for i in range(count)]
    value: Any = dict.fromkeys(many) if in_keys else {str(one.x): [one] for one in many}
    value = [value, many[0], many[-1]]
    found = _from_there(value)
    assert_same(_as_info(found), _as_info(value))
    assert _report(found, strict=False) == _report(value, strict=False)
    opaque = [one for one in _flat(_as_info(found)["it"]) if type(one) is values.Opaque]
    assert [one.repr for one in opaque] == ["T64(x=64)", "T65(x=65)", "T65(x=65)"]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


OBJECTS = np.array([Color.RED, None], object)


@pytest.mark.parametrize(
    "inner",
    [Color.RED, Place(1), Pair(1, 2), Counter("a"), UserDict(a=1), Level.LOW, [1], OBJECTS,
     Tensor(CUBE.T), Counter(crowding_numbers(300))],
)  # fmt: skip
@pytest.mark.parametrize("depth", range(55, 66))
def test_only_the_last_levels_differ_from_those_of_an_environment_here(
    depth: int, inner: Any
) -> None:
    libraries.np = np
    value = inner
    for _ in range(depth):
        value = [value]
    found = _from_there(value)
    if depth < 58:
        assert _report(found, strict=False) == _report(value, strict=False)
        assert_same(_as_info(found), _as_info(value))
        return
    there, here = _as_info(found)["it"], _as_info(value)["it"]
    for _ in range(54):
        assert type(there) is type(here) is list
        (there,), (here,) = there, here


@pytest.mark.parametrize("form", ["array", "dict", "mapping", "fields", "list", "value", "number"])
@pytest.mark.parametrize("value", [None, 1, [[1, 2]], {"a": 1}, "x"])
def test_any_value_may_be_marked_as_converted(form: str, value: Any) -> None:
    found = _from_there((frames.MARK, "converted", "m.x", form, value))
    assert _as_info(found) == {"it": value}
    assert _report(found, strict=False)[0][1] == "m.x"


Five = namedtuple("Five", ["observation", "reward", "terminated", "truncated", "info"])


@pytest.mark.parametrize("kind", [tuple, list, Five._make])
def test_values_are_converted_at_once_except_in_infos(kind: Any) -> None:
    libraries.np = np
    pair = [Color.RED, Tensor(CUBE)]
    plain = [1, CUBE]
    result = packing.pack(kind([pair, Color.RED, False, False, {"it": Color.BLUE}]))
    tensors = {f"{Tensor.__module__}.Tensor"}
    seen, reward, _, _, info = child_values.decode(result, tensors)
    assert_same([seen, reward], [plain, 1])
    assert type(info["it"]).__qualname__ == "Color"
    assert_same(child_values.decode(packing.pack(["value", pair])), ["value", plain])
    tensors.clear()
    (_, first), (_, second), _ = child_values.decode(
        packing.pack(([0, pair[1]], pair, {})), tensors
    )
    assert_same(np.asarray(first), CUBE)
    assert (type(first).__name__, type(second)) == ("Tensor", np.ndarray)
    ended = packing.pack((0, 0.0, Tensor(np.array(False)), False, {}))
    found = child_values.decode(ended, set())[2]
    assert (bool(found), int(found), float(found)) == (False, 0, 0.0)


def test_an_unknown_form_is_malformed() -> None:
    with pytest.raises(DecodingError):
        _from_there((frames.MARK, "converted", "m.x", "nothing", 1))


@pytest.mark.parametrize("pairs", [([1], []), ([[]], [1]), (1, 1), ([1],), ([([],)], [1])])
def test_pairs_that_are_no_dict_are_malformed(pairs: tuple[Any, ...]) -> None:
    for value in ((frames.MARK, "pairs", *pairs, False), [(frames.MARK, "pairs", *pairs, False)]):
        with pytest.raises(DecodingError):
            _from_there(value)
        with pytest.raises(DecodingError):
            child_values.decode(packing.pack(value))


def test_long_names_of_types_are_cut_because_they_are_kept() -> None:
    long = "m" * 1000
    other = type(
        child_values.decode(packing.pack((frames.MARK, "other", f"{long}.{long}", "text")))
    )
    error = type(child_errors.build([long, long, "text", "trace"]))
    for kind in (other, error):
        assert len(kind.__module__) + len(kind.__qualname__) <= 2 * named_tuples.MAX_NAME


@pytest.mark.parametrize("texts", [(), ("a", "b")])
@pytest.mark.parametrize(
    ("form", "value"), [("other", "text"), ("value", None), ("mapping", {}), ("number", 1)]
)
def test_the_types_of_one_message_are_few(form: str, value: Any, texts: Any) -> None:
    made = [
        (frames.MARK, "other", f"m.x{i}", value, *texts[:1])
        if form == "other"
        else (frames.MARK, "converted", f"m.x{i}", form, value, *texts)
        for i in range(3 * named_tuples.MAX_TYPES)
    ]
    found = _from_there(made)
    assert [type(one).__qualname__ for one in found[: named_tuples.MAX_TYPES]] == [
        f"x{i}" for i in range(named_tuples.MAX_TYPES)
    ]
    assert len(set(map(type, found))) == named_tuples.MAX_TYPES + 1
    assert type(found[-1]).__qualname__ == "object"


def test_a_name_that_no_type_can_have_is_malformed() -> None:
    with pytest.raises(DecodingError):
        child_errors.build(["m", "a\0b", "text", "trace"])
    with pytest.raises(DecodingError):
        child_values.decode(packing.pack((frames.MARK, "other", "m.a\0b", "text")))


def test_a_wrapper_is_not_asked_whether_its_environment_is_one_of_dm_env() -> None:
    Asked.names.clear()
    args = ["tests.plain_envs:Asked", None, packing.pack({}), "", [], [1, None, False]]
    made: Any = ("make", args)
    kind, _ = Child().execute(frames.VALUE, 0, packing.pack(list(made)))
    assert kind == frames.VALUE
    assert "observation_spec" not in Asked.names


def test_a_large_request_is_read_without_copying_all_that_has_arrived_with_each_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = []

    class Piece(bytes):
        def __radd__(self, other: Any) -> Any:
            if type(other) is bytes:
                copied.append(len(other))
            return NotImplemented

    body = bytes(1 << 12)
    data = frames.HEADER.pack(len(body), frames.CALL, 7, 3) + body + b"next"
    pieces = iter([*(Piece(data[at : at + 64]) for at in range(0, len(data), 64)), b""])
    monkeypatch.setattr("os.read", lambda fd, size: next(pieces))
    written: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    monkeypatch.setattr("os.write", write)
    asked: list[Any] = []

    def execute(*request: Any) -> tuple[int, bytes]:
        asked.append(request)
        return frames.VALUE, b"answer"

    Channel(-1, -1).serve(execute)
    assert asked == [(frames.CALL, 3, body)]
    assert written == [frames.HEADER.pack(6, frames.VALUE, 7, 3) + b"answer"]
    assert sum(copied) < 2 * len(data)


def test_requests_that_arrive_together_are_answered_together_wherever_they_are_cut() -> None:
    bodies = [b"", b"a", b"bc" * 10]
    data = b"".join(
        frames.HEADER.pack(len(body), frames.CALL, number, 0) + body
        for number, body in enumerate(bodies)
    )
    expected = b"".join(
        frames.HEADER.pack(len(body), frames.VALUE, number, 0) + body
        for number, body in enumerate(bodies)
    )
    for cut in range(1, len(data)):
        reading, writing = os.pipe()
        out_reading, out_writing = os.pipe()
        os.write(writing, data[:cut])

        def execute(kind: int, index: int, body: bytes) -> tuple[int, bytes]:
            return frames.VALUE, body

        thread = threading.Thread(target=Channel(reading, out_writing).serve, args=(execute,))
        thread.start()
        os.write(writing, data[cut:])
        os.close(writing)
        thread.join()
        os.close(out_writing)
        assert os.read(out_reading, 1 << 16) == expected
        for descriptor in (reading, out_reading):
            os.close(descriptor)


def test_an_answer_above_the_limit_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Plain):
        def render(self) -> Any:
            if self.text:
                raise RuntimeError(self.text)
            return b"x" * self.steps

    child, env = Child(), Large()
    child._envs[3] = Hosted(env, None)

    def render() -> tuple[int, bytes]:
        return child.execute(frames.CALL, 3, values.encode(["render", []]))

    monkeypatch.setattr(program, "MAX_ANSWER", 500)
    env.steps = 500 - 5  # with the head of bytes
    assert render() == (frames.VALUE, packing.pack(b"x" * 495))
    text = "has 501 bytes; the maximum is 500. The request has been executed."
    env.steps += 1
    kind, answer = render()
    assert kind == frames.RAISED
    module, name, why, _ = values.decode(answer)
    assert (module, name) == ("builtins", "ValueError")
    assert text in why
    env.text = "y" * 1000
    kind, answer = render()
    assert (kind, values.decode(answer)[1]) == (frames.RAISED, "ValueError")


class Shrinking(Plain):
    """Replaces its space in each step."""

    spaces: Any = None
    seen: Any = None

    def step(self, action: Any) -> Any:
        self.observation_space = self.spaces
        return self.seen, 0.0, False, False, {}


def test_an_observation_that_does_not_fit_after_its_space_was_replaced_is_an_error() -> None:
    libraries.np = np
    env = Shrinking()
    hosted = Hosted(env, None)
    hosted.facts()
    hosted.compile(("<i8", None), ("<f4", [3]))
    raw = np.int64(1).tobytes()
    other = Hosted(env, None)  # its actions have no compact form
    other.facts()
    other.compile(None, ("<f4", [3]))
    steps: list[Any] = [lambda: hosted.step_compact(raw), lambda: other.step(1)]
    for env.spaces, seen in (
        (box(-1, 1, 2), np.zeros(2, "f4")),
        (box(-1, 1, 3, dtype="float64"), np.zeros(3)),
        (Values(n=5), 3),
    ):
        env.seen = seen
        for step in steps:
            with pytest.raises(RuntimeError, match="observation_space has changed to"):
                step()
    env.spaces = box(-1, 1, 3)  # an equal one
    for step in steps:
        step()
    env.seen, env.spaces = np.zeros(3, "f4"), box(-1, 1, 2)
    assert steps[0]()[0] == frames.COMPACT  # it fits: the next reset notices the change


def test_a_reset_that_returns_nothing_is_not_an_observation() -> None:
    class Forgetful(Plain):
        def reset(self, **kwargs: Any) -> Any:
            super().reset(**kwargs)

    hosted = Hosted(Forgetful(), None)
    hosted.facts()
    assert hosted.reset(1, None) is None
