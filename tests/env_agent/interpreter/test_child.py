"""The program for other interpreters: its syntax, its imports, and its values."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gymwire.env_agent.interpreter import child
from gymwire.protocol import values
from tests.sameness import assert_same

SOURCE = Path(child.__file__).read_text(encoding="utf-8")
# Modules of the standard library that Python 3.7 and PyPy have.
OF_PYTHON_3_7 = {
    "__future__", "collections", "dataclasses", "enum", "faulthandler", "importlib", "inspect",
    "os", "pathlib", "signal", "struct", "sys", "threading", "time", "traceback", "typing",
}  # fmt: skip
# Names that later versions added to these modules and to Python's own types.
LATER = {
    "removeprefix", "removesuffix", "cached_property", "cache", "get_annotations", "bit_count",
    "add_note", "readlink", "is_relative_to", "pidfd_open", "waitstatus_to_exitcode", "excepthook",
    "KW_ONLY", "StrEnum", "get_origin", "orig_argv", "native_id", "prod",
}  # fmt: skip


def test_its_syntax_is_that_of_python_3_7() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 7))
    assert "from __future__ import annotations" in SOURCE
    for node in ast.walk(tree):
        # What `feature_version` lets pass: positional-only parameters, := and `match`.
        assert not isinstance(node, ast.NamedExpr | ast.Match)
        assert not isinstance(node, ast.arguments) or not node.posonlyargs
        if isinstance(node, ast.Call):
            assert not {"strict"} & {word.arg for word in node.keywords}


def test_it_imports_what_python_3_7_has_alone() -> None:
    tree = ast.parse(SOURCE)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= OF_PYTHON_3_7
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & LATER


@pytest.fixture(autouse=True, params=[True, False])
def numpy_or_none(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the interpreter has numpy."""
    monkeypatch.setattr(child, "np", np if request.param else None)
    return bool(request.param)


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
    assert_same(values.decode(child.pack(value)), value)
    assert_same(child.unpack(values.encode(value)), value)


@pytest.mark.parametrize("name", ["?", "i1", "<i2", ">i4", "u8", "f2", "f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_arrays_and_their_items_pass_in_both_directions(name: str, shape: tuple[int, ...]) -> None:
    child.np = np
    array = np.random.default_rng(1).integers(0, 2, shape).astype(name)
    for value in (array, array.ravel()[0] if array.size else array):
        assert_same(values.decode(child.pack(value)), value)
        assert_same(child.unpack(values.encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [np.array(["a", "éé"]), np.array([b"ab", b"c"]), np.str_("é"), np.bytes_(b"x"),
     np.array(["2020-01-01"], "M8[D]"), np.timedelta64(3, "s")],
    ids=repr,
)  # fmt: skip
def test_texts_and_times_of_numpy_pass_in_both_directions(value: Any) -> None:
    child.np = np
    assert_same(values.decode(child.pack(value)), value)
    assert_same(child.unpack(values.encode(value)), value)


def test_what_cannot_be_packed_is_an_error_of_the_request() -> None:
    deep: list[Any] = []
    for _ in range(child.MAX_DEPTH + 2):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)
    for value in (deep, circle):
        with pytest.raises(ValueError, match="nested deeper than 64 levels"):
            child.pack(value)


def test_an_exception_without_a_text_is_told() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    module, name, text, trace = child._told(Silent())
    assert (module, name.rpartition(".")[2]) == (__name__, "Silent")
    assert text == "<no text: its __str__ raised RuntimeError>"
    assert "Silent" in trace
