"""One environment, with the dialogue of Gymnasium whatever its library is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from . import libraries
from .agents import ENV, Agents
from .asynchronous import settled
from .frames import COMPACT, COMPACT_END, FLAGS, VALUE
from .generators import GENERATOR, continued
from .libraries import REWARDS, classes
from .packing import pack
from .signatures import parameters, render_takes_mode
from .spaces import SPACES, read_space

MAX_KNOWN = 256  # actions of which the bytes are kept
SPEC = ("id", "reward_threshold", "nondeterministic", "max_episode_steps", "order_enforce")


def five_results(result: Any) -> Any:
    """Return the results of a step; four of old gym become five, as Gymnasium converts them."""
    if not isinstance(result, (tuple, list)) or len(result) != 4 or not isinstance(result[3], dict):
        return result
    observation, reward, done, info = result
    info = dict(info)  # the environment may use its own again
    is_cut = bool(info.pop("TimeLimit.truncated", False))
    return observation, reward, bool(done) and not is_cut, bool(done) and is_cut, info


def action_decoder(dtype_name: str, shape: Any) -> Callable[[bytes], Any]:
    """Return the function that makes an action of its raw bytes; shape None: a scalar."""
    ndarray, dtype = libraries.np.ndarray, libraries.np.dtype(dtype_name)
    if shape is not None:
        return lambda raw: ndarray(shape, dtype, bytearray(raw))
    known: dict[bytes, Any] = {}

    def decode(raw: bytes) -> Any:
        action = known.get(raw)
        if action is None:
            scalar = ndarray((), dtype, raw)[()]
            action = scalar if len(raw) == dtype.itemsize else scalar.item()
            if len(known) < MAX_KNOWN:
                known[raw] = action
        return action

    return decode


class Hosted:
    """One environment, with the dialogue of Gymnasium whatever its library is."""

    def __init__(self, env: Any, render_mode: str | None, given: Any = ()) -> None:
        self.env = env
        bare = getattr(env, "unwrapped", env)
        (names, others), (bare_names, bare_others) = map(parameters, (env.reset, bare.reset))
        self._reset_takes = {
            name: (name in names or others) and (name in bare_names or bare_others)
            for name in ("seed", "options")
        }
        # Gymnasium's own environments return what Gymnasium prescribes, or it is an error.
        self._is_gymnasium = isinstance(env, classes("Env", libraries=("gymnasium",)))
        self._asks_for_info = "return_info" in bare_names  # gym 0.22 to 0.25
        self._render_takes_mode = render_takes_mode(bare)
        self._mode = render_mode
        self._spaces = {name: getattr(env, name, None) for name in SPACES}
        self._used = [name for name in SPACES if name not in given]  # the operator gives others
        self._facts: dict[str, Any] = {}
        self._has_warned = False
        self._decode_action: Any = None
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
        facts["has_numpy"] = libraries.np is not None
        facts["kind"] = env.kind if isinstance(env, Agents) else ENV
        return facts

    def compile(self, action: Any, observation: Any) -> None:
        """Use compact steps: dtype and shape of the action (None: a scalar) and observation.

        None: actions, or observations, have no compact form.
        """
        if action is not None:
            self._decode_action = action_decoder(*action)
        if observation is not None:
            self._observation = libraries.np.dtype(observation[0]), tuple(observation[1])

    def step_compact(self, raw: bytes) -> tuple[int, bytes]:
        """Step with a raw action; return the kind and the body of the answer."""
        result = self.env.step(self._decode_action(raw))
        if type(result) is tuple and len(result) == 5:
            seen, reward, terminated, truncated, info = result
            kind = REWARDS.get(type(reward))
            dtype, shape = self._observation
            if (
                kind
                and type(terminated) is type(truncated) is bool
                and type(info) is dict
                and not info
                and type(seen) is libraries.np.ndarray
                and seen.dtype == dtype
                and seen.shape == shape
                and (len(shape) < 2 or seen.flags.c_contiguous)
            ):
                end = COMPACT_END.pack(kind, reward, FLAGS[terminated, truncated])
                return COMPACT, seen.tobytes() + end
        return VALUE, pack(self._results(result))

    def step(self, action: Any) -> Any:
        """Step, and return the results as Gymnasium's environments do."""
        return self._results(self.env.step(action))

    def _results(self, result: Any) -> Any:
        """Return the results of `step`; four of old gym become five."""
        if type(result) is not tuple:
            result = settled(result)
        if not self._is_gymnasium and (type(result) is not tuple or len(result) != 5):
            result = five_results(result)
        if isinstance(result, (tuple, list)) and result and not self._fits(result[0]):
            self._check_spaces()
        return result

    def _fits(self, seen: Any) -> bool:
        """Return whether an observation has the compact form, if there is one."""
        dtype, shape = self._observation
        return dtype is None or (
            type(seen) is libraries.np.ndarray and seen.dtype == dtype and seen.shape == shape
        )

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
        if self._is_gymnasium or result is None:  # a `return` is missing, which is an error
            return result
        if type(result) is tuple and len(result) == 2 and self._is_pair(result[1]):
            return result
        return result, {}

    def _is_pair(self, info: Any) -> bool:
        """Return whether a tuple that ends with this is no observation of old gym, but a pair.

        An info that is wrong is still one, which the env agent reports, if the observation cannot
        be a tuple of two: without parts, it is an array of another length, or a scalar.
        """
        space = self._spaces["observation_space"]
        in_parts, shape = hasattr(space, "spaces"), getattr(space, "shape", None)
        if isinstance(info, Mapping):
            return self._reset_takes["seed"] or not in_parts
        return not in_parts and shape is not None and tuple(shape[:1]) != (2,)

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
        if isinstance(found, classes("Space")):
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
