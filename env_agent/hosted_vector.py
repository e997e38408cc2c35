"""Gymnasium's SyncVectorEnv as an env agent serves it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import Env, Space
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from gymwire.env_agent import known_spaces
from gymwire.env_agent.bounded_cache import BoundedCache
from gymwire.env_agent.closing import close_all, closed_on_error
from gymwire.env_agent.results import check_observation, check_reset, check_step
from gymwire.env_agent.space_watch import SpaceWatch
from gymwire.protocol import spaces, vector_infos

MAX_PATTERNS = 16  # vectors that differ
MAX_ENVS = 16  # of one: a pattern has buffers for them all
_ARRAYS = (Box, MultiBinary, MultiDiscrete)  # the spaces of arrays, and of batches of scalars
# Before Python 3.12, looking an enum member up takes 0.1 µs and more.
_SAME_STEP, _DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
# The usual types of rewards and flags. NumPy takes more, such as None and text.
_NUMBERS = frozenset(
    {bool, int, float, np.bool_}
    | {np.dtype(code).type for code in np.typecodes["AllInteger"] + np.typecodes["Float"]}
)

# What the constructor sets that follows from the spaces and the number of environments. To batch
# the spaces takes much longer than to make most environments.
_PATTERNS = BoundedCache[dict[str, Any]](MAX_PATTERNS)
_OF_EACH = {  # and what it sets that each vector has of its own
    "cast",
    "env_fns",
    "envs",
    "metadata",
    "render_mode",
    "single_action_space",
    "single_observation_space",
}

if TYPE_CHECKING:
    _Vector = SyncVectorEnv[Any, Any]
else:
    _Vector = SyncVectorEnv  # has no type parameters in gymnasium 1.2


class HostedVector(_Vector):
    """A SyncVectorEnv that remembers the info values that it casts, and watches the spaces.

    If its constructor raises, the environments made so far are closed.

    The array of an info has the dtype of the first value under its key, and later values are cast
    to it. If this vector is only a part of the learner's, another value may come first there, with
    another dtype: the learner then needs the original values. Values that SyncVectorEnv cannot put
    into one array, such as arrays of several shapes, come in an array of objects.

    Args:
        makers: make the environments.
        mode: the autoreset mode.

    Attributes:
        cast: the values cast since it was last cleared, by the id of the array:
            [[index of the environment, value], ...].
    """

    cast: dict[int, list[list[Any]]]

    def __init__(self, makers: Sequence[Callable[[], Env[Any, Any]]], mode: AutoresetMode) -> None:
        self.cast = {}
        envs: list[Env[Any, Any]] = []
        with closed_on_error(envs):
            for make in makers:
                envs.append(make())  # if one fails, those before it are closed
                if len(envs) == 1:  # the others would take memory, too
                    for name in ("observation_space", "action_space"):
                        spaces.check_batched(getattr(envs[0], name), len(makers), root=name)
            key = _key(envs, mode)
            pattern = _PATTERNS.get(key)
            if pattern is None:
                makers = [lambda env=env: env for env in envs]  # type: ignore[misc]
                # No copy is needed, since observations are sent before the next step.
                super().__init__(makers, copy=False, autoreset_mode=mode)
                _keep(key, vars(self))
            else:
                vars(self).update(_copied(pattern))
                first = envs[0]
                self.env_fns, self.envs = makers, envs
                self.metadata = {**first.metadata, "autoreset_mode": mode}
                self.render_mode = first.render_mode
                self.single_action_space = first.action_space
                self.single_observation_space = first.observation_space
            for env in self.envs:
                # A step resets environments, too, and must not take longer for this check.
                object.__setattr__(env, "reset", _CheckedResets(env).reset)

    def close_extras(self, **_: Any) -> None:
        """Close the environments as `close_all` does."""
        close_all(getattr(self, "envs", ()))  # none if the constructor raised

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step as SyncVectorEnv does, with less work around the steps of the environments."""
        mode, waiting = self.autoreset_mode, self._autoreset_envs.tolist()
        each: Iterable[Any]
        if (
            type(self.action_space) not in _ARRAYS
            or type(actions) is not np.ndarray
            or not actions.ndim
            or len(actions) != self.num_envs
        ):
            found_actions = iterate(self.action_space, actions)
            each = (action for action, _ in zip(found_actions, self.envs, strict=True))
        else:
            # Thousands of sessions have one environment each: an array iterator takes long for one.
            each = (actions[0],) if self.num_envs == 1 else actions
        is_same_step, envs = mode is _SAME_STEP, self.envs
        rewards, terminations, truncations = self._rewards, self._terminations, self._truncations
        found: list[Any] = self._env_obs
        infos: dict[str, Any] = {}
        # `i`, as in SyncVectorEnv: `failure_reports` reads it.
        for i, action in enumerate(each):
            env = envs[i]
            if waiting[i] and not is_same_step:
                if mode is _DISABLED:
                    raise AssertionError(f"{self._autoreset_envs=}")  # as SyncVectorEnv does
                found[i], info = env.reset()
                rewards[i], terminations[i], truncations[i] = 0.0, False, False
            else:
                result = env.step(action)
                try:
                    found[i], reward, terminated, truncated, info = result
                    rewards[i], terminations[i], truncations[i] = reward, terminated, truncated
                except Exception:
                    check_step(result)
                    raise
                is_usual = terminated is False and truncated is False
                if not (
                    (is_usual or (type(terminated) in _NUMBERS and type(truncated) in _NUMBERS))
                    and type(reward) in _NUMBERS
                    and type(info) is dict
                ):
                    check_step(result)
                if is_same_step and not is_usual and (terminations[i] or truncations[i]):
                    final = {"final_obs": found[i], "final_info": info}
                    infos = self._add_info(infos, final, i)
                    found[i], info = env.reset()
            if info:
                infos = self._add_info(infos, info, i)
        try:
            self._observations = self._batched(found)
        except Exception:
            was_reset = (terminations | truncations).tolist() if is_same_step else waiting
            self._check_observations(was_reset)
            raise
        self._autoreset_envs = terminations | truncations
        return self._observations, rewards.copy(), terminations.copy(), truncations.copy(), infos

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset as SyncVectorEnv does. Raises WrongResult for what cannot be batched."""
        try:
            return super().reset(seed=seed, options=options)
        except Exception:
            self._check_observations([True] * self.num_envs)
            raise

    def _check_observations(self, was_reset: Sequence[bool]) -> None:
        for i, one in enumerate(self._env_obs):  # `i`: see `step`
            if one is None and was_reset[i]:
                continue  # as before the first reset; `_CheckedResets` checks later ones
            method = "reset" if was_reset[i] else "step"
            check_observation(one, self.single_observation_space, method)

    def _batched(self, found: list[Any]) -> Any:
        """Return these observations in the vector's own buffers, as `concatenate` does."""
        space, batch = self.single_observation_space, self._observations
        if type(space) in _ARRAYS and type(batch) is np.ndarray and batch.ndim > 1:
            shape = batch.shape[1:]
            if len(found) == 1 and type(found[0]) is np.ndarray:
                one = found[0]
                if one.dtype is batch.dtype and one.shape == shape:
                    batch[0] = one
                    return batch
            for one in found:
                if type(one) is not np.ndarray or one.shape != shape:
                    break
            else:
                # What `stack` does, which `concatenate` calls, in a fifth of the time.
                np.concatenate(found, 0, batch.reshape(-1, *shape[1:]))
                return batch
        return concatenate(space, found, batch)

    def _add_info(
        self, infos: dict[str, Any], env_info: dict[str, Any], env_num: int
    ) -> dict[str, Any]:
        """Add an info as SyncVectorEnv does, and remember the values that are cast.

        Only the first value under a key needs SyncVectorEnv, which makes its array. To have it add
        the others, too, takes one and a half times as long.
        """
        for key, value in env_info.items():
            array, mask = infos.get(key), infos.get(f"_{key}")
            if array is None or mask is None:
                if type(value) is int and not _INT.min <= value <= _INT.max:
                    infos[key] = np.full(self.num_envs, None, object)
                    infos[f"_{key}"] = mask = np.zeros(self.num_envs, np.bool_)
                    infos[key][env_num], mask[env_num] = value, True
                else:
                    infos = super()._add_info(infos, {key: value}, env_num)
                array = infos[key]
            elif isinstance(value, dict) and isinstance(array, dict):
                infos[key] = self._add_info(array, value, env_num)
                mask[env_num] = True
            else:
                if not _store(array, env_num, value):
                    array = infos[key] = self._as_objects(array, mask)
                    array[env_num] = value
                mask[env_num] = True
            if (
                type(array) is np.ndarray
                and array.dtype.kind != "O"
                and array.dtype != _dtype(value)
            ):
                self.cast.setdefault(id(array), []).append([env_num, value])
        return infos

    def _as_objects(self, values: Any, mask: Any) -> Any:
        """Return the values of one key, as far as there are any, in an array of objects."""
        originals = dict(self.cast.pop(id(values), ()))
        objects = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(mask).tolist():
            objects[i] = originals[i] if i in originals else vector_infos.item(values, i)
        return objects


class _CheckedResets(SpaceWatch):
    """A SpaceWatch that also checks what `reset` returns."""

    def reset(self, **kwargs: Any) -> Any:
        """Reset the environment. Raises RuntimeError, and what `check_reset` raises."""
        result = super().reset(**kwargs)
        if not (
            type(result) is tuple
            and len(result) == 2
            and result[0] is not None
            and type(result[1]) is dict
        ):
            check_reset(result, self._env.observation_space)
        return result


def _store(array: Any, index: int, value: Any) -> bool:
    """Put a value into an array; return False if NumPy would refuse or repeat it."""
    if type(array) is not np.ndarray:
        return False  # a dict
    if array.dtype.kind != "O" and (
        type(value) is dict or getattr(value, "shape", ()) != array.shape[1:]
    ):
        return False
    try:
        array[index] = value
    except (ValueError, TypeError, OverflowError):
        return False
    return True


_INT = np.iinfo(int)


def _key(envs: Sequence[Env[Any, Any]], mode: AutoresetMode) -> Hashable | None:
    """Return a key that is equal only for vectors with the same pattern; None: there is none."""
    if len(envs) > MAX_ENVS:
        return None
    keys = {
        (known_spaces.key_of(one.observation_space), known_spaces.key_of(one.action_space))
        for one in envs
    }
    if len(keys) != 1 or None in (found := keys.pop()):
        return None
    return mode, len(envs), *found


def _keep(key: Hashable | None, attributes: Mapping[str, Any]) -> None:
    """Keep the pattern of a vector that was just made, if it has a key."""
    if key is not None:
        pattern = {name: one for name, one in attributes.items() if name not in _OF_EACH}
        _PATTERNS.keep(key, _copied(pattern), _size(pattern))


def _copied(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with buffers of their own. The spaces, which nobody changes, are shared."""
    return {name: one if isinstance(one, Space) else _copy(one) for name, one in pattern.items()}


def _size(value: Any) -> int:
    """Return how many bytes of memory the attributes of a vector take, roughly."""
    match value:
        case np.ndarray():
            return value.nbytes
        case Space():
            return _size(vars(value))
        case Mapping():
            return sum(map(_size, [*value, *value.values()]))
        case list() | tuple():
            return sum(map(_size, value))
        case str() | bytes():
            return len(value)
        case _:
            return object.__sizeof__(value)


def _copy(value: Any) -> Any:
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return value.copy()  # `deepcopy` does the same in ten times the time
    return copy.deepcopy(value)


_PLAIN: dict[type, np.dtype[Any]] = {kind: np.dtype(kind) for kind in (bool, int, float)}
_OTHER: np.dtype[Any] = np.dtype(object)  # NumPy takes None for float64


def _dtype(value: Any) -> Any:
    return _PLAIN.get(type(value)) or getattr(value, "dtype", _OTHER)
