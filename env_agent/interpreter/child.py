"""The program that runs environments in another interpreter, for an env agent on the same host.

It is one file, for Python 3.7 and later, CPython and PyPy, and needs only the standard library.
The environment's numpy, gymnasium or gym are used if they are there. It runs the environments in
the main thread, one request after another, and answers each.

Both directions carry frames: the header below, then `length` bytes. The body of a STEP is the raw
action, with `AS_INT` behind it if it is an int of Python's. That of a COMPACT answer is a
`COMPACT_HEAD` and the raw observation. All other bodies are values as `protocol/values.py`
describes them. A tuple that begins with MARK stands for a value that has no form there (see
`child_values.py`).
"""

from __future__ import annotations

import dataclasses
import enum
import faulthandler
import importlib
import importlib.util
import inspect
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<IBII")  # length of the body, kind, request number, environment's index
HEADER_SIZE = HEADER.size
STEP, CALL = 1, 2  # the kinds of requests
AS_INT = b"i"
COMPACT, VALUE, RAISED = 3, 4, 5  # the kinds of answers
COMPACT_HEAD = struct.Struct("<BBBd")  # type of the reward, terminated, truncated, reward
SPACES = ("observation_space", "action_space")
GENERATOR = "np_random"
SPEC = ("id", "reward_threshold", "nondeterministic", "max_episode_steps", "order_enforce")
MARK = b"gymwire:marked"
MAX_DEPTH = 64
MAX_TEXT = 20_000  # characters of a traceback
PARENT_CHECK_S = 1.0
MAX_READ = 1 << 16  # bytes: all that a pipe holds

np: Any = None  # numpy, once an environment was loaded, if this interpreter has it
REWARDS: dict[type, int] = {float: 0}  # types of compact rewards → their numbers

# --- values: a subset of msgpack ------------------------------------------------------------------

# With lengths of four bytes:
_TEXT, _BYTES, _LIST, _MAP, _EXTENSION = b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\xc9"
_KEPT_KEYS = {str, bytes, int, float, bool, type(None)}
# Limits of `protocol/values.py` and `protocol/named_tuples.py`.
# MAX_NAME: characters of a name, and the number of fields of a named tuple.
MAX_INT_BYTES = MAX_OTHER_KEYS = MAX_NAME = 256
MAX_DIMS, MAX_EMPTY = 32, 1 << 18
_IN_KEY = 0  # stands in `above` while a key is packed; no object has this id


def _head(first: bytes, size: int) -> bytes:
    """Return the start of a text, bytes, a list, a map or an extension."""
    if size >= 2**32:
        raise ValueError("a value has 4 GiB or more")
    return first + size.to_bytes(4, "big")


def _extension(code: int, data: bytes) -> bytes:
    return _head(_EXTENSION, len(data)) + bytes([code]) + data


def _pack_int(value: int) -> bytes:
    if -(2**63) <= value < 2**63:
        return b"\xd3" + value.to_bytes(8, "big", signed=True)
    if 0 < value < 2**64:
        return b"\xcf" + value.to_bytes(8, "big")
    size = value.bit_length() // 8 + 1
    if size > MAX_INT_BYTES:
        return _pack_opaque(value)
    return _extension(3, value.to_bytes(size, "little", signed=True))


def _pack_text(value: str) -> bytes:
    try:
        data: bytes = value.encode()
    except UnicodeEncodeError:  # lone surrogates
        return _pack_opaque(value)
    return _head(_TEXT, len(data)) + data


def pack(value: Any, above: tuple[int, ...] = ()) -> bytes:
    """Return the bytes of a value. What has no form becomes its type and repr.

    `above`: the ids of the containers around the value.
    """
    kind = type(value)
    if value is None:
        return b"\xc0"
    if kind is bool:
        return b"\xc3" if value else b"\xc2"
    if kind is int:
        return _pack_int(value)
    if kind is float:
        return b"\xcb" + struct.pack(">d", value)
    if kind is str:
        return _pack_text(value)
    if kind is bytes:
        return _head(_BYTES, len(value)) + bytes(value)
    if len(above) >= MAX_DEPTH - 1 or id(value) in above:
        return _pack_opaque(value)
    return _pack_container(value, kind, (*above, id(value)))


def _pack_items(items: Any, above: tuple[int, ...]) -> bytes:
    return _head(_LIST, len(items)) + b"".join([pack(item, above) for item in items])


def _pack_container(value: Any, kind: type, above: tuple[int, ...]) -> bytes:
    if kind is list:
        return _pack_items(value, above)
    if kind is tuple:
        return _extension(4, _pack_items(value, above))
    if kind is dict or kind is OrderedDict:
        return _pack_dict(value, kind, above)
    if np is not None and (kind is np.ndarray or isinstance(value, np.generic)):
        return _pack_numpy(value, kind, above) or _pack_opaque(value)
    return _pack_other(value, kind, above)


def _pack_dict(value: Any, kind: type, above: tuple[int, ...]) -> bytes:
    types = list(map(type, value))
    if set(types) <= {str} and "".join(value).isascii():
        keys = [_head(_TEXT, len(key)) + key.encode() for key in value]
    else:
        keys = [pack(key) for key in value] if set(types) <= _KEPT_KEYS else []
        others = len(types) - types.count(str) - types.count(bytes)
        if not keys or others > MAX_OTHER_KEYS or _EXTENSION in [key[:1] for key in keys]:
            return _pack_pairs(value, kind, above)
    parts = [_head(_MAP, len(value))]
    for key, item in zip(keys, value.values()):
        parts += (key, pack(item, above))
    packed = b"".join(parts)
    return _extension(7, packed) if kind is OrderedDict else packed


def _pack_pairs(value: Any, kind: type, above: tuple[int, ...]) -> bytes:
    """Return the bytes of a dict as two lists: a map has limits, and its keys are not marked."""
    if len(above) > MAX_DEPTH - 2:
        return _pack_opaque(value)
    keys = _pack_items(list(value), (*above, _IN_KEY))
    items = _pack_items(list(value.values()), (*above, above[-1]))
    parts = pack(MARK), pack("pairs"), keys, items, pack(kind is OrderedDict)
    return _extension(4, _head(_LIST, len(parts)) + b"".join(parts))


_LARGEST = {"f": 8, "c": 8 + 8}  # bytes of a number of a kind: no long double


def _is_portable(dtype: Any) -> bool:
    most = _LARGEST.get(dtype.kind, 10**8)
    return dtype.kind in "biufcmMSU" and 0 < dtype.itemsize <= most


def _pack_numpy(value: Any, kind: type, above: tuple[int, ...]) -> bytes:
    """Return the bytes of an array or a NumPy scalar, b"" if its dtype has no portable form."""
    dtype, shape = value.dtype, value.shape
    if kind is np.ndarray:
        sizes = [n or 1 for n in shape]
        if len(shape) > MAX_DIMS or (0 in shape and np.multiply.reduce(sizes) > MAX_EMPTY):
            return b""
        axes = axes_order(value)
        if dtype.kind == "O" and len(above) < MAX_DEPTH - 1:
            array = value if axes is None else value.transpose(axes)
            items = [value[()]] if value.ndim == 0 else list(array.ravel())
            return _mark("objects", list(array.shape), items, axes, above=above)
        if not _is_portable(dtype):
            return b""
        if axes is not None:
            # A copy in C order: that of a transposed array may still have another.
            return _mark("reordered", axes, value.transpose(axes).copy("C"), above=())
        return _extension(1, _pack_items([dtype.str, list(shape), value.tobytes()], above))
    if dtype.kind == "U":
        return _extension(2, b"U\0" + str(value).encode("utf-8", "backslashreplace"))
    if dtype.kind == "S":
        return _extension(2, b"S\0" + bytes(value))
    if not _is_portable(dtype):
        return b""
    return _extension(2, dtype.str.encode() + b"\0" + value.tobytes())


def axes_order(array: Any) -> list[int] | None:
    """Return the axes by decreasing stride; None for C order."""
    if array.ndim < 2 or array.flags.c_contiguous:
        return None
    strides = np.empty_like(array).strides
    axes = sorted(range(array.ndim), key=lambda axis: -strides[axis])
    return axes if axes != list(range(array.ndim)) else None


def _mark(code: str, *parts: Any, above: tuple[int, ...]) -> bytes:
    return _extension(4, _pack_items((MARK, code, *parts), above))


def _pack_other(value: Any, kind: type, above: tuple[int, ...]) -> bytes:
    if isinstance(value, tuple) and hasattr(kind, "_fields") and not isinstance(value, enum.Enum):
        if kind.__name__ == "GraphInstance":
            return _extension(5, _pack_items(value, above))
        names = (kind.__name__, *kind._fields)
        is_deep, most = len(above) > MAX_DEPTH - 2, max(map(len, (names[1:], *names)))
        if is_deep or most > MAX_NAME or not names[0].isidentifier():
            return _pack_opaque(value)
        return _mark("named", names[0], names[1:], tuple(value), _name_of(kind), above=above)
    # A vector of environments has the mask f"_{key}".
    texts = [_shown(value, show) for show in (repr, format) if _IN_KEY in above]
    try:
        form, converted = _convert(value, kind)
    except Exception:  # noqa: BLE001 - the value's own code, which may raise anything
        form = ""
    if form:
        return _mark("converted", _name_of(kind), form, converted, *texts, above=above)
    return _pack_opaque(value, *texts[1:])


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _convert(value: Any, kind: type) -> tuple[str, Any]:
    """Return what stands for a value, as in `protocol/conversions.py`, and in which form.

    The forms are those of `child_values.py`; "": the value cannot be converted.
    """
    if isinstance(value, Mapping):
        return "dict" if isinstance(value, dict) else "mapping", dict(value.items())
    if isinstance(value, enum.Enum):
        form = "number" if isinstance(value, (int, float)) else "value"
        return "text" if isinstance(value, str) else form, value.value
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(value)
        return "fields", {one.name: getattr(value, one.name) for one in fields}
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        for name in ("resolve_conj", "resolve_neg"):  # since torch 1.10
            value = getattr(value, name, lambda same=value: same)()
        return "array", value.numpy()
    if np is not None and hasattr(kind, "__dlpack__") and not isinstance(value, np.ndarray):
        array = np.asarray(value)
        return "" if array.dtype.kind == "O" else "array", array
    if isinstance(value, memoryview) or (kind.__module__, kind.__name__) == ("array", "array"):
        return "list", value.tolist()
    return "", value


def _pack_opaque(value: Any, *label: str) -> bytes:
    """Return the bytes of a value that only shows its type, its repr and, in a key, its text."""
    return _mark("other", _name_of(type(value)), _shown(value, repr)[:200], *label, above=())


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    try:
        return _printable(show(value))
    except Exception as error:  # noqa: BLE001 - a foreign repr may raise anything
        return f"<repr raised {type(error).__name__}>"


def _printable(text: str) -> str:
    """Return a text without lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


_SIZES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_SIZES.update({0xC7: 1, 0xC8: 2, 0xC9: 4})
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: "b", 0xD1: ">h",
    0xD2: ">i", 0xD3: ">q",
}  # fmt: skip


def unpack(data: bytes) -> Any:
    """Return the value in these bytes, which the env agent sent."""
    return _unpack(data, 0)[0]


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    first, at = data[at], at + 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 256, at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        form = struct.Struct(_NUMBERS[first])
        return form.unpack_from(data, at)[0], at + form.size
    if 0xD4 <= first <= 0xD8:
        return _unpack_extension(data, at, 1 << (first - 0xD4))
    width = _SIZES.get(first, 0)
    size = int.from_bytes(data[at : at + width], "big")
    at += width
    if first <= 0xBF:
        size = first & (0x0F if first <= 0x9F else 0x1F)
    if first <= 0x8F or first in (0xDE, 0xDF):
        items, at = _unpack_items(data, at, 2 * size)
        return dict(zip(items[::2], items[1::2])), at
    if first <= 0x9F or first in (0xDC, 0xDD):
        return _unpack_items(data, at, size)
    if 0xC7 <= first <= 0xC9:
        return _unpack_extension(data, at, size)
    raw = data[at : at + size]
    return (raw if first in (0xC4, 0xC5, 0xC6) else raw.decode()), at + size


def _unpack_items(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(count):
        item, at = _unpack(data, at)
        items.append(item)
    return items, at


def _unpack_extension(data: bytes, at: int, size: int) -> tuple[Any, int]:
    code, at = data[at], at + 1
    body, end = data[at : at + size], at + size
    if code == 1:
        text, shape, raw = unpack(body)
        return np.ndarray(shape, text, raw).copy(), end
    if code == 2:
        name, _, raw = body.partition(b"\0")
        if name in (b"U", b"S"):
            return (np.str_(raw.decode()) if name == b"U" else np.bytes_(raw)), end
        return np.frombuffer(raw, name.decode())[0], end
    if code == 3:
        return int.from_bytes(body, "little", signed=True), end
    items = unpack(body)
    if code == 5 and "gymnasium.spaces" in sys.modules:
        return sys.modules["gymnasium.spaces"].GraphInstance(*items), end
    if code == 8:
        name, fields, parts = items
        return namedtuple(name, fields, rename=True)(*parts), end
    if code == 9:
        array = np.empty(len(items[1]), object)
        for index, item in enumerate(items[1]):  # NumPy would make one array of a list of arrays
            array[index] = item
        items = items[2] if len(items) > 2 else range(len(items[0])), array.reshape(items[0])
    if code in (9, 10):
        axes, array = items
        return array.transpose([axes.index(axis) for axis in range(array.ndim)]), end
    return (OrderedDict(items) if code == 7 else tuple(items)), end


# --- spaces ---------------------------------------------------------------------------------------

_ATTRIBUTES = (
    "n", "nvec", "low", "high", "shape", "start", "bounded_below", "bounded_above", "min_length",
    "max_length", "characters", "character_list", "stack", "sort_keys",
)  # fmt: skip
_BOUNDS = ("low", "high", "bounded_below", "bounded_above")
_INSIDE = ("feature_space", "node_space", "edge_space")


def read_space(space: Any) -> list[dict[str, Any]]:
    """Return the attributes of a space that determine its kind, then those inside it."""
    kind = type(space)
    found = {name: getattr(space, name) for name in _ATTRIBUTES if hasattr(space, name)}
    if found.get("shape"):
        found.update((name, _one_if_equal(found[name])) for name in _BOUNDS if name in found)
    found["class"] = f"{kind.__module__}.{kind.__name__}"
    dtype = getattr(space, "dtype", None)
    if dtype is not None:
        found["dtype"] = getattr(dtype, "str", None) or getattr(dtype, "__name__", str(dtype))
    inside: Any = getattr(space, "spaces", None)
    if hasattr(inside, "items"):
        found["keys"], inside = list(inside), list(inside.values())
    elif inside is None:
        names = [name for name in _INSIDE if getattr(space, name, None) is not None]
        inside = [getattr(space, name) for name in names]
        found.update((name, True) for name in names)
    found["inside"] = len(inside)
    return [found, *(one for child in inside for one in read_space(child))]


def _one_if_equal(bounds: Any) -> Any:
    """Return one number for bounds that are all the same, as a vector's of large images are."""
    if np is None or type(bounds) is not np.ndarray or bounds.dtype.kind not in "biuf":
        return bounds
    return bounds.flat[0] if bounds.size and (bounds == bounds.flat[0]).all() else bounds


# --- environments ---------------------------------------------------------------------------------


# Set by other options, or not an argument.
_NOT_KEYWORDS = {"autoreset_mode", "num_envs", "render_mode", "self"}


def _parameters(target: Any) -> tuple[list[str], bool]:
    """Return the names of the parameters, and whether it takes others as well."""
    if inspect.isclass(target) and inspect.isfunction(target.__init__):
        target = target.__init__  # before Python 3.9, that of a Generic is the one of __new__
    try:
        found = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return [], True
    return list(found), any(one.kind is one.VAR_KEYWORD for one in found.values())


def keywords(target: Any) -> list[str]:
    """Return the keyword arguments of a class, a function or an id; [] if they are unknown."""
    if isinstance(target, str):
        registration: Any = sys.modules.get("gymnasium.envs.registration")
        spec = getattr(registration, "registry", {}).get(target.rpartition(":")[2])
        target = getattr(spec, "entry_point", None)
        if isinstance(target, str):
            target = registration.load_env_creator(target)
    names, others = _parameters(target)
    return [] if others else [name for name in names if name not in _NOT_KEYWORDS]


def _render_takes_mode(env: Any) -> bool:
    """Return whether `render` takes a mode, as in gym before 0.26."""
    return "mode" in _parameters(getattr(env, "render", None))[0]


class WrongTarget(Exception):
    """What the operator named is missing, or makes nothing that can be served.

    The text says what to do, so it needs no traceback.
    """


def load(name: str) -> Any:
    """Return a class, a function, a module, or the text if it may be a registered id.

    Raises WrongTarget.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        return name
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        if not path.is_file():
            raise WrongTarget(f"there is no file {path}")
        sys.path.append(str(path.parent))
        spec: Any = importlib.util.spec_from_file_location(path.stem, str(path))
        found = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        _imported(module_name, lambda: spec.loader.exec_module(found))
    else:
        found = _imported(module_name, lambda: importlib.import_module(module_name))
    target = _imported(module_name, lambda: _attribute(found, attribute))
    if target is None:
        return name
    if not callable(target) and not inspect.ismodule(target):
        raise WrongTarget(f"{attribute} is neither a class nor a factory. Name one that is")
    return target


def _attribute(target: Any, names: str) -> Any:
    for name in names.split("."):
        target = getattr(target, name, None)  # some modules import it only now
    return target


def _imported(module_name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if (module_name + ".").startswith(missing + "."):
            hint = (
                "Install its package there, start the env agent in the folder that contains it, or "
                "name its file: ./path/to/file.py:MyEnv"
            )
        else:
            hint = f"{module_name} needs it: install its package there, or correct the import"
        raise WrongTarget(f"{sys.executable} has no module {missing!r}. {hint}") from None


def make(target: Any, render_mode: str | None, kwargs: dict[str, Any], kind: str = "env") -> Any:
    """Make an environment with a class, a function, a module of PettingZoo, or a registered id.

    `kind`: that of an environment with several agents, if a module offers both. Raises WrongTarget.
    """
    if inspect.ismodule(target):
        target = constructor(target, kind)
    if not isinstance(target, str):
        if render_mode is None:
            return target(**kwargs)
        try:
            return target(render_mode=render_mode, **kwargs)
        except TypeError as error:
            # Python says "takes no arguments" of a class without a constructor.
            if "render_mode" not in str(error) and "takes no arguments" not in str(error):
                raise
            made = target(**kwargs)
            if not _render_takes_mode(getattr(made, "unwrapped", made)):
                raise
            return made
    return _make_registered(target, render_mode, kwargs)


def _make_registered(target: str, render_mode: str | None, kwargs: dict[str, Any]) -> Any:
    failure: BaseException | None = None
    module_name, _, target = target.rpartition(":")
    for name in ("gymnasium", "gym"):
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        given = dict(kwargs)
        if render_mode is not None and "disable_env_checker" in _parameters(library.make)[0]:
            given["render_mode"] = render_mode
        try:
            return library.make(target, **given)
        except library.error.Error as error:
            is_malformed = "alformed environment ID" in str(error)
            if not is_malformed and not isinstance(error, library.error.UnregisteredEnv):
                raise
            failure = failure or error
    names = (target.rpartition("-v")[0] or target).split("/")
    # Another name is that of one that this environment makes itself.
    if failure is not None and not any(name in str(failure) for name in names):
        raise failure
    if module_name:
        raise WrongTarget(
            f"{module_name} has no {target!r}, and does not register an environment with that id. "
            f"Check the spelling"
        )
    if failure is None:
        raise WrongTarget(
            f"{sys.executable} has neither gymnasium nor gym, which make environments by an id "
            f"such as {target}. Name a class or a function: module:MyEnv or ./file.py:MyEnv"
        )
    raise WrongTarget(
        f"{sys.executable} knows no environment {target!r}: {str(failure).rstrip('.?')}. Check the "
        f"spelling, or write module:{target} with the module that registers it"
    )


# --- vectors that a class, factory or id makes ----------------------------------------------------


def _is_not(made: Any, what: str, missing: str) -> str:
    made_what = f"{type(made).__name__}, which is not {what}: it has no {missing!r}"
    if inspect.isclass(made):
        made_what = f"class, {made.__name__}, and not an instance of it"
    return (
        f"the class or factory made a {made_what}. Check the class or factory that the env agent "
        f"was started with"
    )


def check_gym_vector(made: Any) -> None:
    """Raise WrongTarget if this is a vector of gym before 0.26."""
    if isinstance(made, getattr(sys.modules.get("gym.vector"), "VectorEnv", ())):
        bare: Any = getattr(made, "unwrapped", made)
        names, others = _parameters(bare.reset)
        if "return_info" in names or not ("seed" in names or others):
            raise WrongTarget(
                f"the class or factory made a {type(made).__name__} of gym before 0.26, whose "
                f"vectors cannot be served. Install gym 0.26, or let the factory make a single "
                f"environment: gymwire makes the vector"
            )


def _vector_classes() -> tuple[Any, ...]:
    return _classes("VectorEnv", ".vector")


def makes_vectors(target: Any) -> bool:
    """Return whether this is a class of vectors, or a function with a parameter `num_envs`.

    An environment of Gymnasium or gym may have such a parameter, too.
    """
    if inspect.isclass(target):
        if issubclass(target, _vector_classes()):
            return True
        if issubclass(target, _classes("Env")):
            return False
    return callable(target) and "num_envs" in _parameters(target)[0]


def make_vector(
    target: Any, render_mode: str | None, kwargs: dict[str, Any], num_envs: int, mode: str | None
) -> tuple[Any, dict[str, Any] | None]:
    """Make a vector, in this autoreset mode if there is a choice.

    Also return what the env agent must know: whether this is the class that is registered with an
    id, whether the maker takes `num_envs`, and why it refused the mode, if it did. None: there is
    no vector class for an id.
    """
    if isinstance(target, str):
        return _make_registered_vector(target, render_mode, kwargs, num_envs, mode)
    names, others = _parameters(target)
    if mode is not None and "autoreset_mode" in names:
        kwargs["autoreset_mode"] = _autoreset_mode(mode)
    takes_num_envs = "num_envs" in names or others
    if takes_num_envs:
        kwargs["num_envs"] = num_envs
    facts = {"is_registered": False, "takes_num_envs": takes_num_envs, "refused": None}
    return make(target, render_mode, kwargs), facts


def _autoreset_mode(text: str | None) -> Any:
    modes: Any = getattr(sys.modules.get("gymnasium.vector"), "AutoresetMode", None)
    return text if modes is None else modes(text)


def _make_registered_vector(
    name: str, render_mode: str | None, kwargs: dict[str, Any], num_envs: int, mode: str | None
) -> tuple[Any, dict[str, Any] | None]:
    """Make a vector of the class that is registered with an id, as `factory.py` does."""
    try:
        registration: Any = importlib.import_module("gymnasium.envs.registration")
    except ImportError:
        return None, None
    name = name.rpartition(":")[2]
    entry = getattr(registration.registry.get(name), "vector_entry_point", None)
    if entry is None or not hasattr(registration, "VectorizeMode"):  # before gymnasium 1.0
        return None, None
    if isinstance(entry, str):
        entry = registration.load_env_creator(entry)
    names, others = _parameters(entry)
    kwargs.update(num_envs=num_envs, vectorization_mode="vector_entry_point")
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    facts: dict[str, Any] = {"is_registered": True, "takes_num_envs": True, "refused": None}
    if "autoreset_mode" in names or others:
        pid = os.getpid()
        try:
            more = dict(kwargs, autoreset_mode=_autoreset_mode(mode))
            return registration.make_vec(name, **more), facts
        except Exception as error:  # it may take the mode in another form, or have only one
            if os.getpid() != pid or not ("autoreset_mode" in names or type(error) is TypeError):
                raise
            if "autoreset_mode" in names:
                facts["refused"] = describe_exception(error)
    return registration.make_vec(name, **kwargs), facts


# --- environments with several agents (PettingZoo) ------------------------------------------------

ENV, PARALLEL, AEC = "env", "parallel", "aec"  # one agent; all act at once, or one after another
VECTOR = "vector"  # a vector that the environment's own library makes


def kind_of(made: Any) -> str:
    """Return the kind of an environment."""
    pettingzoo: Any = sys.modules.get("pettingzoo")  # its own package has imported it
    if pettingzoo is None:
        return ENV
    if isinstance(made, pettingzoo.ParallelEnv):
        return PARALLEL
    return AEC if isinstance(made, pettingzoo.AECEnv) else ENV


def constructor(module: Any, kind: str) -> Any:
    """Return the function of a PettingZoo module that makes environments of a kind, or another."""
    for name in ("env", "parallel_env") if kind == AEC else ("parallel_env", "env"):
        if callable(getattr(module, name, None)):
            return getattr(module, name)
    raise TypeError(f"The module {module.__name__} has neither parallel_env nor env.")


def converted(made: Any, kind: str) -> Any:
    """Return an environment as one of a kind with several agents, if PettingZoo can convert it."""
    has = kind_of(made)
    if has == PARALLEL and kind == AEC:
        return importlib.import_module("pettingzoo.utils").parallel_to_aec(made)
    if has == AEC and kind == PARALLEL and made.metadata.get("is_parallelizable"):
        return importlib.import_module("pettingzoo.utils").aec_to_parallel(made)
    return made


class Agents:
    """An environment of PettingZoo as one whose spaces and values are dicts by agent.

    `make_dict` makes a space of pairs of names and spaces.
    """

    kind = ""

    def __init__(self, made: Any, make_dict: Any) -> None:
        self._made = made
        agents = made.possible_agents
        if not all(type(agent) is str for agent in agents):
            raise TypeError(f"The names of agents must be strings, not {agents!r:.200}.")
        for name in SPACES:
            setattr(self, name, make_dict([(one, getattr(made, name)(one)) for one in agents]))
        self.metadata = made.metadata
        self.render_mode = getattr(made, "render_mode", None)  # PettingZoo requires none

    def __getattr__(self, name: str) -> Any:
        made = object.__getattribute__(self, "_made")  # AttributeError before `__init__`
        # PettingZoo's conversions do not pass on what they do not know.
        return getattr(made if hasattr(made, name) else made.unwrapped, name)

    def set_wrapper_attr(self, name: str, value: Any, force: bool = True) -> Any:
        """Set an attribute of the environment itself, not of its wrappers."""
        setattr(self._made.unwrapped, name, value)

    @property
    def unwrapped(self) -> Any:
        """This environment."""
        return self

    np_random: Any = property(  # if the environment has one under this name
        lambda self: self._made.unwrapped.np_random,
        lambda self, value: setattr(self._made.unwrapped, "np_random", value),
    )

    def _reset(self, seed: Any, options: Any) -> Any:
        # PettingZoo before 1.23:
        more = {"return_info": True} if "return_info" in _parameters(self._made.reset)[0] else {}
        return self._made.reset(seed=seed, options=options, **more)

    def render(self) -> Any:
        """Return what the environment renders."""
        return self._made.render()


class ParallelByAgent(Agents):
    """A ParallelEnv: each value of a step is a dict by agent; see docs/protocol.md §4.2.3."""

    kind = PARALLEL

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Return the observations; the info has the agents and their infos."""
        observations, infos = self._reset(seed, options)
        return dict(observations), self._info(infos)

    def step(self, actions: Any) -> Any:
        """Let all agents act; return the five values by agent."""
        values = self._made.step(actions)
        if len(values) != 5:
            raise ValueError(f"step() of a ParallelEnv must return 5 values, not {len(values)}.")
        # Some environments return a defaultdict.
        observations, rewards, terminated, truncated = map(dict, values[:4])
        return observations, rewards, terminated, truncated, self._info(values[4])

    def _info(self, infos: Any) -> Any:
        return {"agents": list(self._made.agents), "infos": dict(infos)}


class AECByAgent(Agents):
    """An AECEnv: a step returns the observation of the agent that is next, the rest by agent."""

    kind = AEC

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Return the observation of the first agent; the info has everything else."""
        self._reset(seed, options)
        observation, rewards, terminated, truncated, info = self._state()
        info.update(rewards=rewards, terminations=terminated, truncations=truncated)
        return observation, info

    def step(self, action: Any) -> Any:
        """Let the selected agent act; return the observation of the next one, the rest by agent."""
        self._made.step(action)
        return self._state()

    def _state(self) -> Any:
        made = self._made
        selected = made.agent_selection if made.agents else None
        info = {
            "agents": list(made.agents),
            "selected": made.agent_selection,
            "cumulative": dict(made._cumulative_rewards),  # noqa: SLF001 - PettingZoo's own wrappers read it, too
            "infos": dict(made.infos),
        }
        observation = None if selected is None else made.observe(selected)
        rest = map(dict, (made.rewards, made.terminations, made.truncations))
        return (observation, *rest, info)


class DictSpace:
    """A space of spaces by name, with the attributes of Gymnasium's Dict."""

    sort_keys = False

    def __init__(self, pairs: Any) -> None:
        self.spaces = OrderedDict(pairs)


# --- environments of dm_env -----------------------------------------------------------------------


class SpecSpace:
    """A spec of dm_env, or a dict or a list of specs, with the attributes of Gymnasium's spaces."""

    sort_keys = False

    def __init__(self, spec: Any) -> None:
        if isinstance(spec, Mapping):
            self.spaces: Any = OrderedDict((key, SpecSpace(one)) for key, one in spec.items())
        elif isinstance(spec, (list, tuple)):
            self.spaces = [SpecSpace(one) for one in spec]
        else:
            self._read(spec)

    def _read(self, spec: Any) -> None:
        self.dtype = dtype = np.dtype(spec.dtype)
        if hasattr(spec, "num_values"):
            self.n = int(spec.num_values)
            return
        if hasattr(spec, "minimum"):
            bounds = spec.minimum, spec.maximum
        elif dtype.kind == "f":
            bounds = -np.inf, np.inf
        elif dtype.kind == "b":
            bounds = False, True
        else:
            bounds = np.iinfo(dtype).min, np.iinfo(dtype).max
        self.shape = tuple(spec.shape)
        self.low, self.high = (np.full(self.shape, one, dtype) for one in bounds)

    def arrays(self, value: Any) -> Any:
        """Return an observation as this space has it: numbers become arrays."""
        inside = getattr(self, "spaces", None)
        if inside is None:
            return np.asarray(value, self.dtype) if hasattr(self, "low") else value
        if isinstance(inside, list):
            return tuple(space.arrays(item) for space, item in zip(inside, value))
        return {key: space.arrays(value[key]) for key, space in inside.items()}


class DmEnv:
    """An environment of dm_env, as in `adapters/foreign.py`, but without rendering."""

    def __init__(self, made: Any) -> None:
        self.env = made
        self.close = getattr(made, "close", None)
        self.observation_space = SpecSpace(made.observation_spec())
        self.action_space = SpecSpace(made.action_spec())
        if hasattr(getattr(made, "task", None), "_random"):
            self.seed: Any = self._seed_task
        elif hasattr(made, "seed"):
            self.seed = made.seed

    def _seed_task(self, seed: Any) -> None:
        self.env.task._random = np.random.RandomState(seed)  # noqa: SLF001 - dm_control has no other way

    def reset(self, *, options: Any = None) -> Any:
        """Start an episode, and return its first observation."""
        if options:
            raise TypeError(f"The reset of {type(self.env).__name__} takes no options.")
        return self.observation_space.arrays(self.env.reset().observation)

    def step(self, action: Any) -> Any:
        """Run one step; the info has the discount."""
        made = self.env.step(action)
        is_last = bool(made.last())
        terminated = is_last and bool(made.discount == 0)
        observation = self.observation_space.arrays(made.observation)
        info = {"discount": made.discount}
        return observation, made.reward, terminated, is_last and not terminated, info


# --- asynchronous environments --------------------------------------------------------------------

_loop: Any = None  # the event loop, once it was needed


def settled(value: Any) -> Any:
    """Return a value, or the result of a coroutine, which runs in the event loop."""
    global _loop
    if not inspect.isawaitable(value):
        return value
    asyncio: Any = importlib.import_module("asyncio")
    if _loop is None:
        # Before Python 3.10, locks and queues belong to the event loop of the thread.
        is_old = sys.version_info < (3, 10)
        _loop = asyncio.get_event_loop() if is_old else asyncio.new_event_loop()

    async def wait() -> tuple[Any, BaseException | None]:
        try:
            return await value, None
        except BaseException as error:  # noqa: BLE001 - asyncio would leave its task unfinished
            return None, error

    result, error = _loop.run_until_complete(wait())
    if error is not None:
        raise error
    return result


# --- one environment ------------------------------------------------------------------------------


def five_results(result: Any) -> Any:
    """Return the results of a step; four of old gym become five, as Gymnasium converts them."""
    if not isinstance(result, (tuple, list)) or len(result) != 4 or not isinstance(result[3], dict):
        return result
    observation, reward, done, info = result
    info = dict(info)  # the environment may use its own again
    is_cut = bool(info.pop("TimeLimit.truncated", False))
    return observation, reward, bool(done) and not is_cut, bool(done) and is_cut, info


def _classes(name: str, module: str = "") -> tuple[Any, ...]:
    """Return the classes of this name of Gymnasium and old gym, as far as they are used."""
    found = [getattr(sys.modules.get(one + module), name, None) for one in ("gymnasium", "gym")]
    return tuple(one for one in found if isinstance(one, type))


def continued(old: Any, state: Any) -> Any:
    """Return a generator in a state: the old one if there is one of the same kind."""
    bits = getattr(old, "bit_generator", None)
    if bits is None or bits.state["bit_generator"] != state["bit_generator"]:
        bits = getattr(np.random, state["bit_generator"])()
        old = np.random.Generator(bits)
    bits.state = state
    return old


class Hosted:
    """One environment, with the dialogue of Gymnasium whatever its library is."""

    def __init__(self, env: Any, render_mode: str | None, given: Any = ()) -> None:
        self.env = env
        bare = getattr(env, "unwrapped", env)
        (names, others), (bare_names, bare_others) = map(_parameters, (env.reset, bare.reset))
        self._reset_takes = {
            name: (name in names or others) and (name in bare_names or bare_others)
            for name in ("seed", "options")
        }
        self._asks_for_info = "return_info" in bare_names  # gym 0.22 to 0.25
        self._render_takes_mode = _render_takes_mode(bare)
        self._mode = render_mode
        self._spaces = {name: getattr(env, name, None) for name in SPACES}
        self._used = [name for name in SPACES if name not in given]  # the operator gives others
        self._facts: dict[str, Any] = {}
        self._has_warned = False
        self._action: tuple[Any, Any] = (None, None)
        self._observation: tuple[Any, Any] = (None, None)

    def facts(self) -> dict[str, Any]:
        """Return what the env agent must know, as attributes."""
        env, facts = self.env, self._facts
        facts.update((name, read_space(space)) for name, space in self._spaces.items())
        spec = getattr(env, "spec", None)
        names = (*SPEC, "kwargs" if hasattr(spec, "kwargs") else "_kwargs")
        facts["spec"] = {name: getattr(spec, name) for name in names if hasattr(spec, name)}
        facts["metadata"] = dict(getattr(env, "metadata", None) or {})
        takes_mode = self._render_takes_mode
        facts["render_mode"] = self._mode if takes_mode else getattr(env, "render_mode", None)
        facts["has_numpy"] = np is not None
        facts["kind"] = env.kind if isinstance(env, Agents) else ENV
        return facts

    def compile(self, action: Any, observation: Any) -> None:
        """Use compact steps: dtype and shape of the action (None: a scalar) and observation."""
        self._action = np.dtype(action[0]), action[1]
        if observation is not None:
            self._observation = np.dtype(observation[0]), tuple(observation[1])

    def step_compact(self, raw: bytes) -> tuple[int, bytes]:
        """Step with a raw action; return the kind and the body of the answer."""
        dtype, shape = self._action
        action = np.ndarray(shape or (), dtype, raw)
        if shape is not None:
            action = action.copy()
        else:
            action = action[()] if len(raw) == dtype.itemsize else action.item()
        result = self.step(action)
        if type(result) is tuple and len(result) == 5:
            seen, reward, terminated, truncated, info = result
            code = REWARDS.get(type(reward), 2)
            dtype, shape = self._observation
            if (
                type(seen) is np.ndarray
                and seen.dtype == dtype
                and seen.shape == shape
                and seen.flags.c_contiguous
                and code < 2
                and type(terminated) is type(truncated) is bool
                and type(info) is dict
                and not info
            ):
                head = COMPACT_HEAD.pack(code, terminated, truncated, reward)
                return COMPACT, head + seen.tobytes()
        return VALUE, pack(result)

    def step(self, action: Any) -> Any:
        """Step; four results of old gym become five."""
        result = self.env.step(action)
        if type(result) is not tuple:
            result = settled(result)
        return result if type(result) is tuple and len(result) == 5 else five_results(result)

    def reset(self, seed: Any, options: Any) -> Any:
        """Reset; return observation and info, also if old gym returns only the first."""
        given: dict[str, Any] = {}
        if self._reset_takes["seed"]:
            given["seed"] = seed
        elif seed is not None and hasattr(self.env, "seed"):
            self.env.seed(seed)
        elif seed is not None and not self._has_warned:
            self._has_warned = True
            sys.stderr.write("The environment takes no seed.\n")
        if self._reset_takes["options"]:
            given["options"] = options
        elif options:
            raise TypeError(f"The reset of {type(self.env).__name__} takes no options.")
        if self._asks_for_info:
            given["return_info"] = True
        result = settled(self.env.reset(**given))
        self._check_spaces()
        is_pair = type(result) is tuple and len(result) == 2 and isinstance(result[1], Mapping)
        may_be_seen = hasattr(self._spaces["observation_space"], "spaces")
        if is_pair and (self._reset_takes["seed"] or not may_be_seen):
            return result
        return result, {}

    def _check_spaces(self) -> None:
        for name in self._used:
            space, known = getattr(self.env, name, None), self._spaces[name]
            if space is not known and pack(read_space(space)) != pack(self._facts[name]):
                raise RuntimeError(
                    f"The {name} has changed to {space!r:.200}, but this session was opened with "
                    f"{known!r:.200}. The environment must set its spaces in the constructor."
                )

    def render(self) -> Any:
        """Return what the environment renders."""
        if not self._render_takes_mode:
            return settled(self.env.render())
        return None if self._mode is None else self.env.render(mode=self._mode)

    def _holder(self, name: str) -> Any:
        """Return the outermost wrapper that has an attribute. Raises AttributeError."""
        env = self.env
        while not hasattr(env, name):
            if not hasattr(env, "env"):
                raise AttributeError(f"{type(env).__name__!r} object has no attribute {name!r}")
            env = env.env
        return env

    def _find(self, name: str) -> Any:
        if hasattr(self.env, "get_wrapper_attr"):
            return self.env.get_wrapper_attr(name)
        return getattr(self._holder(name), name)

    def get(self, name: str) -> list[Any]:
        """Describe an attribute.

        ["value", itself], ["generator", its state], ["space", its description] or ["method"].
        """
        return self._described(name, self._find(name))

    @staticmethod
    def _described(name: str, found: Any) -> list[Any]:
        if callable(found):
            return ["method"]
        if name == GENERATOR and hasattr(type(found), "bit_generator"):
            return ["generator", dict(found.bit_generator.state)]
        if isinstance(found, _classes("Space")):
            return ["space", read_space(found)]
        return ["value", found]

    def has(self, name: str) -> bool:
        """Return whether there is such an attribute."""
        try:
            self._find(name)
        except AttributeError:
            return False
        return True

    def set(self, name: str, value: Any, in_place: bool = False) -> None:
        """Set an attribute; a generator is its state.

        `in_place`: the environment keeps its generator, which continues from the state.
        """
        if name == GENERATOR:
            old = self._find(name) if in_place and self.has(name) else None
            value = continued(old, value)
            if value is old and self._find(name) is old:  # not a copy
                return
        if hasattr(self.env, "set_wrapper_attr"):
            self.env.set_wrapper_attr(name, value)
            return
        try:
            setattr(self._holder(name), name, value)
        except AttributeError:
            setattr(getattr(self.env, "unwrapped", self.env), name, value)

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a method."""
        return settled(self._find(name)(*args, **kwargs))

    def close(self) -> None:
        """Close the environment."""
        close = getattr(self.env, "close", None)
        if close is not None:
            settled(close())


class HostedOwnVector(Hosted):
    """A vector that a library or the user's own code makes."""

    def __init__(self, env: Any, render_mode: str | None, given: Any) -> None:
        config = getattr(env, "config", None)
        self._config: Any = config if isinstance(config, Mapping) else {}
        for name in (*SPACES, "num_envs", "reset", "step", "close"):
            if not hasattr(env, name) and not (name == "num_envs" and name in self._config):
                raise WrongTarget(_is_not(env, "a vector", name))
        check_gym_vector(env)
        super().__init__(env, render_mode, given)

    def facts(self) -> dict[str, Any]:
        """Return what the env agent must know, as attributes."""
        env, facts = self.env, super().facts()
        for name in SPACES:
            space = getattr(env, "single_" + name, self._spaces[name])
            facts["single_" + name] = read_space(space)
        if any(getattr(env, "metadata", None) is one.metadata for one in _vector_classes()):
            facts["metadata"].pop("autoreset_mode", None)  # another vector's, as in `vectors.py`
        # EnvPool 0.8 has the number only in its `config`.
        num_envs = env.num_envs if hasattr(env, "num_envs") else self._config["num_envs"]
        mode = getattr(env, "autoreset_mode", None)
        facts.update(kind=VECTOR, num_envs=int(num_envs), autoreset_mode=mode)
        facts["batch_size"] = self._config.get("batch_size")
        return facts

    def step(self, action: Any) -> Any:
        """Step all environments."""
        return settled(self.env.step(action))

    def reset(self, seed: Any, options: Any) -> Any:
        """Reset all environments, with the arguments that the env agent's own vectors get."""
        is_usual = isinstance(self.env, _vector_classes())
        given = {
            name: value
            for name, value in (("seed", seed), ("options", options))
            if value is not None or (is_usual and self._reset_takes[name])
        }
        result = settled(self.env.reset(**given))
        self._check_spaces()
        return result

    def has_each(self, name: str) -> bool:
        """Return whether `get_attr` reaches an attribute, as in `runners/holders.py`."""
        env, wrappers = self.env, _classes("VectorWrapper", ".vector")
        while isinstance(env, wrappers) and (name == GENERATOR or not hasattr(env, name)):
            env = env.env
        return hasattr(env, "get_attr")

    def get_attr(self, name: str) -> list[Any]:
        """Return an attribute of each environment, as `get` does."""
        return [self._described(name, one) for one in self._holder("get_attr").get_attr(name)]

    def set_attr(self, name: str, values: Any, kept: list[bool]) -> None:
        """Set an attribute of each environment, as `set` does; `kept`: who keeps its generator."""
        env = self._holder("get_attr")
        if kept:
            old = [one if keeps else None for one, keeps in zip(env.get_attr(name), kept)]
            values = list(map(continued, old, values))
            if all(a is b for a, b in zip(env.get_attr(name), values)):
                return
        env.set_attr(name, values)


# --- the process ----------------------------------------------------------------------------------


class Channel:
    """Frames from and to the env agent; answers are written when no request is left to read."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._written_to = answers
        self._arrived = bytearray()
        self._answers: list[bytes] = []

    def read(self) -> tuple[int, int, int, bytes] | None:
        """Return kind, number, index and body of the next request; None: the env agent is gone."""
        data = self._arrived
        while True:
            if len(data) >= HEADER.size:
                length, kind, number, index = HEADER.unpack_from(data)
                end = HEADER.size + length
                if len(data) >= end:
                    body = bytes(data[HEADER.size : end])
                    del data[:end]
                    return kind, number, index, body
            self.flush()
            more = os.read(self._requests, MAX_READ)
            if not more:
                return None
            data += more

    def answer(self, kind: int, number: int, index: int, body: bytes) -> None:
        """Answer a request."""
        self._answers += (HEADER.pack(len(body), kind, number, index), body)

    def flush(self) -> None:
        """Write the answers."""
        data = b"".join(self._answers)
        self._answers = []
        while data:
            data = data[os.write(self._written_to, data) :]


class Child:
    """The environments of this process."""

    def __init__(self) -> None:
        self._envs: dict[int, Hosted] = {}
        self._targets: dict[str, Any] = {}
        self._uses_numpy = False
        self._pid = os.getpid()

    def execute(self, kind: int, index: int, body: bytes) -> tuple[int, bytes]:
        """Execute a request; return the kind and the body of its answer."""
        try:
            if kind == STEP:
                return self._envs[index].step_compact(body)
            name, args = unpack(body)
            if name == "make":
                return VALUE, pack(self._make(index, *args))
            if name in ("load", "keywords"):
                target = self._target(*args)
                return VALUE, pack(keywords(target) if name == "keywords" else None)
            env = self._envs[index]
            if name == "close":
                del self._envs[index]
            return VALUE, pack(getattr(env, name)(*args))
        except BaseException as error:
            if os.getpid() != self._pid:  # the environment has forked, and its copy ends
                raise
            return RAISED, pack(describe_exception(error))

    def _target(self, name: str) -> Any:
        """Return what `load` does, and know whether it uses numpy."""
        global np
        if name not in self._targets:
            target = self._targets[name] = load(name)
            # Makers by id need numpy. An environment that does not use it returns lists.
            self._uses_numpy = isinstance(target, str) or "numpy" in sys.modules
            try:
                np = importlib.import_module("numpy")
                REWARDS[np.float64] = 1
            except ImportError:
                np = None
        return self._targets[name]

    def _make(
        self, index: int, name: str, mode: Any, kwargs: bytes, kind: str, given: Any, vector: Any
    ) -> Any:
        """Make an environment, or a vector if that is what the class or factory makes.

        `vector`: the number of environments, the autoreset mode (None: any), and whether the
        class or factory is known to make vectors.
        """
        made, facts, target = None, None, self._target(name)
        num_envs, autoreset, is_known = vector
        if is_known or makes_vectors(target) or (isinstance(target, str) and autoreset):
            made, facts = make_vector(target, mode, unpack(kwargs), num_envs, autoreset)
        if facts is None:
            made = make(target, mode, unpack(kwargs), kind)
        if facts is not None or isinstance(made, _vector_classes()):
            env: Any = HostedOwnVector(made, mode, given)
        else:
            env = self._hosted(made, mode, kind, given)
        self._envs[index] = env
        return dict(env.facts(), uses_numpy=self._uses_numpy, **(facts or {}))

    @staticmethod
    def _hosted(made: Any, mode: Any, kind: str, given: Any) -> Hosted:
        for name in ("reset", "step"):
            if inspect.isclass(made) or not callable(getattr(made, name, None)):
                raise WrongTarget(_is_not(made, "an environment", name))
        inner = getattr(made, "unwrapped", made)  # wrappers of gymnasium 0.29 warn when asked
        is_of_dm_env = hasattr(inner, "observation_spec") and hasattr(inner, "action_spec")
        made = converted(DmEnv(made) if is_of_dm_env else made, kind)
        has = kind_of(made)
        if has != ENV:
            made = (ParallelByAgent if has == PARALLEL else AECByAgent)(made, DictSpace)
        return Hosted(made, mode, given)


def describe_exception(error: BaseException) -> list[str]:
    """Return the module, the name, the text and the traceback of an exception."""
    kind = type(error)
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - its own __str__
        text = f"<no text: its __str__ raised {type(failure).__name__}>"
    last = error.__traceback__
    lines = traceback.format_exception(kind, error, last.tb_next if last else None)
    texts = [kind.__module__, kind.__qualname__, text, "".join(lines)[-MAX_TEXT:]]
    return list(map(_printable, texts))


def _end_with(parent: int) -> None:
    """Make this process end when its env agent does, also in a call that never returns."""
    try:
        ctypes: Any = importlib.import_module("ctypes")
        dies_with_parent = ctypes.CDLL(None).prctl(1, 9, 0, 0, 0) == 0  # PR_SET_PDEATHSIG, SIGKILL
    except (ImportError, OSError, AttributeError):
        dies_with_parent = False

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    if not dies_with_parent:
        threading.Thread(target=watch, daemon=True).start()
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def main(requests: int, answers: int, parent: int) -> None:
    """Execute the requests read from one descriptor until it closes; write replies to the other."""
    _end_with(parent)
    # SLURM and systemd send their signals to all processes of a job, but the env agent decides when
    # this one ends. Programs that it starts would inherit SIG_IGN.
    for ending in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ending, lambda number, frame: None)
    os.set_inheritable(requests, False)
    os.set_inheritable(answers, False)
    faulthandler.enable()
    folder = str(Path(__file__).resolve().parent)
    sys.path[:] = ["", *(path for path in sys.path if path not in ("", folder))]
    channel, child = Channel(requests, answers), Child()
    channel.answer(VALUE, 0, 0, pack([sys.version, sys.implementation.name]))
    for kind, number, index, body in iter(channel.read, None):
        answer, value = child.execute(kind, index, body)
        channel.answer(answer, number, index, value)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
