"""The spaces of an environment, read by their attributes: they may be of any library."""

from __future__ import annotations

from typing import Any

from . import libraries

SPACES = ("observation_space", "action_space")
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
    np = libraries.np
    if np is None or type(bounds) is not np.ndarray or bounds.dtype.kind not in "biuf":
        return bounds
    return bounds.flat[0] if bounds.size and (bounds == bounds.flat[0]).all() else bounds
