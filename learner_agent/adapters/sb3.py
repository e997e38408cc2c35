"""A vector of remote environments for Stable-Baselines3."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from gymwire.learner_agent.adapters import single_infos
from gymwire.learner_agent.proxies import batching
from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv
from gymwire.learner_agent.training.checked_env import fault
from gymwire.protocol import generators, values
from gymwire.protocol.errors import (
    AttributeDenied,
    ConfigurationError,
    ProtocolError,
    VersionMismatch,
)
from gymwire.protocol.extras import install_line
from gymwire.protocol.messages import Call

try:
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire.sb3 needs Stable-Baselines3 ({error}). Install it with: {install_line('sb3')}",
        name=error.name,
    ) from error


Indices = int | Iterable[int] | None


class ProxyVecEnv(VecEnv):
    """Environments at env agents as a `VecEnv` of Stable-Baselines3, with one message for all.

    It behaves like a DummyVecEnv of the same environments, and training with it ends with the same
    weights, unless the environments register a vector class of their own, which may draw other
    numbers: pass `env_kwargs={"vectorization_mode": "sync"}` then.

    A copy (`copy.deepcopy`, `pickle`) uses sessions of its own, which must be reset first.
    Every method raises what that of ProxyVectorEnv raises.

    Args:
        address: the address of the environments, e.g. "cartpole". Default: the variable
            GYMWIRE_ADDRESS.
        n_envs: the number of environments, at least 1.
        broker: the broker's URL. Default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        seed: environment i gets `seed + i` at the first reset. None: no seed.
        options: any other option of ProxyVectorEnv, except `autoreset_mode` and `exact_infos`.
    """

    reset_infos: list[dict[Any, Any]]

    def __init__(
        self,
        address: str | None = None,
        n_envs: int = 1,
        broker: str | None = None,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        for name in options.keys() & _NOT_OPTIONS.keys():
            raise TypeError(f"ProxyVecEnv has no option {name!r}: {_NOT_OPTIONS[name]}")
        mode = AutoresetMode.SAME_STEP
        self._vector = ProxyVectorEnv(
            address, n_envs, broker, autoreset_mode=mode, exact_infos=True, **options
        )
        self._was_reset = False
        vector = self._vector
        super().__init__(n_envs, vector.single_observation_space, vector.single_action_space)
        self._takes_arrays = not (
            isinstance(self.action_space, spaces.Dict | spaces.Tuple)
            or isinstance(vector.action_space, spaces.Dict)
        )
        self.metadata = {k: v for k, v in vector.metadata.items() if k != "autoreset_mode"}
        if seed is not None:
            self.seed(seed)

    # --- episodes ---------------------------------------------------------------------------------

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next reset, for all environments or for each of them.

        Raises ConfigurationError if one of them is named `reset_mask`: the vector uses it to choose
        which environments to reset, and does not pass it on.
        """
        each = [options] if isinstance(options, dict) else options or ()
        if any("reset_mask" in one for one in each):
            raise ConfigurationError(
                "The environments of a vector cannot have an option reset_mask: the vector uses it "
                "to choose which of them to reset. Give the option another name, or use a "
                "DummyVecEnv of gymwire.ProxyEnv."
            )
        super().set_options(options)

    def reset(self) -> Any:
        """Start an episode in all environments, with the seeds and options set for this reset only.

        Returns:
            Observations, batched.
        """
        wanted = [values.encode(one) for one in self._options]  # arrays do not compare to a bool
        different = dict(zip(wanted, self._options, strict=True))
        if len(different) > 1 and not self._was_reset:  # a mask needs a first reset of all
            self._vector.reset(seed=self._seed())
        reset_infos: list[dict[Any, Any]] = [*self.reset_infos]
        for encoded, options in different.items():
            chosen = np.array([one == encoded for one in wanted])
            mask = {} if chosen.all() else {"reset_mask": chosen}
            observations, infos = self._vector.reset(
                seed=self._seed(), options={**options, **mask} or None
            )
            singles = single_infos.split(infos, chosen.nonzero()[0].tolist(), self.num_envs)
            for i, info in singles.items():
                reset_infos[i] = info
        self._was_reset = True
        self.reset_infos = reset_infos
        self._reset_seeds()
        self._reset_options()
        return observations

    def _seed(self) -> int | list[int | None] | None:
        first = self._seeds[0]
        if first is not None and self._seeds == [*range(first, first + self.num_envs)]:
            return int(first)  # which every vector understands, as it does None
        return [*self._seeds] if any(one is not None for one in self._seeds) else None

    def step_async(self, actions: Any) -> None:
        """Send the actions of all environments without waiting.

        Args:
            actions: one for each environment, also of Dict and Tuple spaces.
        """
        self._vector.step_async(actions if self._takes_arrays else self._batch(actions))

    def _batch(self, actions: Any) -> Any:
        space = self.action_space
        if isinstance(space, spaces.Dict | spaces.Tuple):
            out: Any = create_empty_array(space, self.num_envs)
            return concatenate(space, actions, out)
        return _batched(self._vector.action_space, actions)  # of a class derived from Dict

    def step_wait(self) -> tuple[Any, NDArray[Any], NDArray[Any], list[dict[Any, Any]]]:
        """Wait for the step that `step_async` sent.

        Returns:
            Observations, of the next episode where one has ended; rewards, float32 (n_envs,);
            dones, bool (n_envs,); and the info of each environment.
        """
        observations, rewards, terminated, truncated, merged = self._vector.step_wait()
        self._check("the reward {}, which is not an array of {} numbers", rewards, "biuf")
        for name, flags in (("terminated", terminated), ("truncated", truncated)):
            self._check(f"{{}} as {name}, which is not an array of {{}} bools", flags, "biu")
        dones = terminated | truncated
        ended = dones.nonzero()[0].tolist()
        lasts = self._lasts(merged, ended) if ended else {}
        if merged:
            infos = [*single_infos.split(merged, range(self.num_envs), self.num_envs).values()]
        else:
            infos = [*map(dict.copy, repeat(_NOT_CUT, self.num_envs))]
        for i, last in lasts.items():
            self.reset_infos[i], infos[i] = infos[i] if merged else {}, last
        if merged:
            for info in infos:
                info[_CUT] = False
        for i in ended:  # last, as in a DummyVecEnv
            infos[i][_CUT] = bool(truncated[i] and not terminated[i])
            infos[i]["terminal_observation"] = infos[i].pop(_FINAL)
        return observations, rewards.astype(np.float32), dones, infos

    def _check(self, wrong: str, array: Any, kinds: str) -> None:
        """Raise EnvironmentFailed unless this has an item of such a dtype for each environment."""
        if getattr(array, "shape", None) != (self.num_envs,) or array.dtype.kind not in kinds:
            address = self._vector._options.address  # noqa: SLF001 - of this package
            raise fault(address, wrong.format(reprlib.repr(array), self.num_envs), "step")

    def _lasts(self, merged: dict[Any, Any], ended: list[int]) -> dict[int, dict[Any, Any]]:
        """Take the infos of the last steps of these episodes from those of a vector.

        Each has the last observation under its key in the vector's infos.
        """
        found = {key: merged.pop(key) for key in _ENDS if key in merged}
        lasts = single_infos.split(found, ended, self.num_envs)
        for i, one in lasts.items():
            if _FINAL not in one:
                raise ProtocolError(
                    f"{self._vector} ended an episode without `final_obs` in its infos, which the "
                    f"autoreset mode SameStep requires. That is a fault of the remote environment."
                )
            lasts[i] = one.pop("final_info", {})
            lasts[i][_FINAL] = one[_FINAL]
        return lasts

    def close(self) -> None:
        """End the sessions and free their slots. Idempotent."""
        self._vector.close()

    # --- pictures ---------------------------------------------------------------------------------

    def get_images(self) -> list[Any]:
        """Return a picture of each environment; None for each without `render_mode="rgb_array"`."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode!r}, but pictures need 'rgb_array'.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return [*(self._vector.render() or [None] * self.num_envs)]

    # --- attributes -------------------------------------------------------------------------------

    def has_attr(self, attr_name: str) -> bool:
        """Return whether all environments have an attribute that may be used. Calls no method."""
        if attr_name in _LOCAL:
            return True
        try:
            found = self._each("each-has", attr_name, None)
        except AttributeDenied:
            return False
        return all(found)

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """Return an attribute of these environments; a method becomes a callable that calls it.

        Raises AttributeDenied if the env agent does not expose it.
        """
        if attr_name in _LOCAL:
            return [_LOCAL[attr_name](self._vector) for _ in self._numbers(indices)]
        numbers = self._numbers(indices)
        if attr_name == "np_random":
            remote = self._vector.np_random  # one for each environment, or for each session
            parts = zip(remote, batching.slices(self.num_envs, len(remote)), strict=True)
            each = [one for one, part in parts for _ in range(part.start, part.stop)]
            return [each[number] for number in numbers]
        found = self._each("each-get", attr_name, numbers)
        return [
            self._read(attr_name, number, item) for number, item in zip(numbers, found, strict=True)
        ]

    def _read(self, name: str, number: int, item: Any) -> Any:
        match item:
            case {"value": value}:
                return value
            case {"method": True}:
                return partial(self._call_one, name, number)
            case _:
                raise ProtocolError(f"{self._vector} sent a malformed value of {name!r}.")

    def _call_one(self, name: str, number: int, *args: Any, **kwargs: Any) -> Any:
        return self.env_method(name, *args, indices=number, **kwargs)[0]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of these environments. Raises AttributeDenied if it is not exposed."""
        value = generators.describe_new(value) if attr_name == "np_random" else value
        self._each("each-set", attr_name, self._numbers(indices), value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of these environments, and return the results.

        Raises AttributeDenied if the env agent does not expose it.
        """
        numbers = self._numbers(indices)
        if method_name == "render":
            pictures = self._vector.render() or [None] * self.num_envs
            return [pictures[number] for number in numbers]
        # HerReplayBuffer passes infos in an array of objects, which no frame can hold.
        args = [one.tolist() if _holds_objects(one) else one for one in method_args]
        return self._each("each-call", method_name, numbers, *args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Return whether each environment has a wrapper of this class at the env agent.

        False if the env agent is of release 0.1.0, which cannot tell.
        """
        numbers = self._numbers(indices)
        name = f"{wrapper_class.__module__}:{wrapper_class.__qualname__}"
        try:
            return self._each("each-wrapped", name, numbers)
        except VersionMismatch:
            return [False] * len(numbers)

    def _each(
        self, mode: str, name: str, numbers: list[int] | None, *args: Any, **kwargs: Any
    ) -> list[Any]:
        chosen = [*range(self.num_envs)] if numbers is None else numbers
        return self._vector.access_each(Call(mode, name, args, kwargs), chosen)

    def _numbers(self, indices: Indices) -> list[int]:
        # As in a DummyVecEnv, where they index a list: -1 is the last environment.
        chosen = [*self._get_indices(indices)]
        if not all(-self.num_envs <= one < self.num_envs for one in chosen):
            raise IndexError(
                f"indices must be from 0 to {self.num_envs - 1}, not {indices!r:.100}."
            )
        return [range(self.num_envs)[one] for one in chosen]


def _batched(space: spaces.Space[Any], actions: Iterable[Any]) -> Any:
    """Batch actions for this space of a vector, whose single space only the env agent knows."""
    if isinstance(space, spaces.Dict):
        return {key: _batched(part, [one[key] for one in actions]) for key, part in space.items()}
    return tuple(actions) if space.dtype is None else np.array(actions, space.dtype)


def _holds_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.hasobject


# Of ProxyVectorEnv, and what to do instead.
_NOT_OPTIONS = {
    "num_envs": "the number of environments is n_envs.",
    "autoreset_mode": "the mode is always SameStep. Leave it out.",
    "exact_infos": "infos are always exact. Leave it out.",
}
_FINAL = "final_obs"
_ENDS = (_FINAL, "_final_obs", "final_info", "_final_info")
_CUT = "TimeLimit.truncated"
_NOT_CUT = {_CUT: False}
# What the proxy knows itself, although the env agent may not expose it.
_LOCAL: dict[str, Callable[[ProxyVectorEnv], Any]] = {
    "action_space": lambda vector: vector.single_action_space,
    "metadata": lambda vector: {k: v for k, v in vector.metadata.items() if k != "autoreset_mode"},
    "observation_space": lambda vector: vector.single_observation_space,
    "render_mode": lambda vector: vector.render_mode,
    "spec": lambda vector: vector.spec,
}
