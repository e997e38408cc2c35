"""Environments and vectors whose steps happen in a process with its own interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import iterate

from gymwire.env_agent.adapters import foreign
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.elsewhere import RunsElsewhere
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.interpreter import child_spaces, child_values
from gymwire.env_agent.interpreter.child.frames import (
    COMPACT,
    COMPACT_END,
    FLOAT,
    HEADER_SIZE,
    STEP,
)
from gymwire.env_agent.interpreter.child.generators import GENERATOR
from gymwire.env_agent.interpreter.child.spaces import SPACES
from gymwire.env_agent.interpreter.child_process import Answer, ChildProcess
from gymwire.protocol import generators
from gymwire.protocol.errors import ConfigurationError, DecodingError
from gymwire.protocol.messages import MULTI_AGENT, EnvKind
from gymwire.protocol.step_codec import RawPercept

_unpack_end, _KNOWN_FLAGS = COMPACT_END.unpack_from, child_values.KNOWN_FLAGS


class CopiedGenerator(np.random.Generator):
    """A generator in the state of one in a process.

    Setting `np_random` to it does not replace that one, but sets its state.
    """


class ChildEnv(RunsElsewhere, gymnasium.Env[Any, Any]):
    """An environment in another process; every method raises what the environment raises there.

    Args:
        process: the process.
        index: the number of the environment in it.
        facts: what the process said about the environment when it had made it.
        name: what was made there.
        given: the spaces that the operator gives instead of the environment's.

    Attributes:
        kind: its kind, see `EnvKind`.
        raw_size: the bytes of a percept that `step_raw` returns; 0: it never returns one.
        foreign_spaces: those that are not Gymnasium's or gym's, as `child_spaces.foreign` returns.
    """

    kinds: ClassVar[tuple[str, ...]] = (EnvKind.ENV, *MULTI_AGENT)

    def __init__(
        self,
        process: ChildProcess,
        index: int,
        facts: Any,
        name: str,
        given: Mapping[str, Space[Any]],
    ) -> None:
        self._process = process
        self._index = index
        self._begun: int | None = None  # the number of a step that was sent ahead
        self._tensors: set[str] = set()  # the types of tensors outside of infos that were reported
        self._has_numpy = True
        self._encode: Callable[[Any], bytes | None] = lambda action: None
        with closed_on_error([self]):
            try:
                self._read(facts, name, given)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise DecodingError(
                    f"The process describes its environment wrongly: {error}. This is a fault of "
                    f"the process; see the env agent's log."
                ) from None
            self._compile()

    def _read(self, facts: Any, name: str, given: Mapping[str, Space[Any]]) -> None:
        self.observation_space, self.action_space = (
            given[one] if one in given else built(one, facts[one], name) for one in SPACES
        )
        read = [one for one in SPACES if one not in given]
        self.foreign_spaces = [
            part for one in read for part in child_spaces.foreign(facts[one], one)
        ]
        self.metadata = foreign.renamed(facts["metadata"])
        self.render_mode = facts["render_mode"]
        self.spec = _spec(facts["spec"])
        self.kind = facts["kind"]
        if self.kind not in self.kinds:
            raise ValueError(f"unknown kind {self.kind!r:.100}")
        self._has_numpy, self._uses_numpy = facts["has_numpy"], facts["uses_numpy"]

    def _compile(self) -> None:
        """Agree with the process on the compact form of steps."""
        action, seen = map(child_values.form_of, (self.action_space, self.observation_space))
        if seen is not None and seen[1] is None:
            seen = None  # of the observations, only arrays have a compact form
        self._decode = child_values.compile_step(seen)
        self.raw_size = child_values.raw_size(seen)
        self._end_at = HEADER_SIZE + self.raw_size - COMPACT_END.size
        if not self._has_numpy:
            return
        if action is not None:
            self._encode = child_values.compile_action(action)
        if action is not None or seen is not None:
            self._call("compile", action, seen)

    @property
    def lost(self) -> str:
        """Why the process is lost; "" if it is not."""
        return self._process.lost

    def _call(self, name: str, *args: Any) -> Any:
        self._abandon()
        return self._process.value(self._process.finish(self._begin_call(name, *args)))

    def _begin_call(self, name: str, *args: Any) -> int:
        if not self._has_numpy:
            args = child_values.without_numpy(args)
        return self._process.begin_call(self._index, name, *args)

    def _abandon(self) -> None:
        """Drop the answer to a step that was sent ahead, if another environment then raised."""
        if self._begun is not None:
            self._process.abandon(self._begun)
            self._begun = None

    def begin_step(self, action: Any) -> None:
        """Send a step ahead of the `step` with the same action."""
        self._abandon()
        self._begun = self._begin(action)

    def _begin(self, action: Any) -> int:
        raw = self._encode(action)
        if raw is not None:
            return self._process.begin(self._index, STEP, raw)
        return self._begin_call("step", action)

    def step(self, action: Any) -> Any:
        """Step, or wait for the answer to `begin_step`."""
        number, raw = self._begun, None
        if number is None:
            raw = self._encode(action)
        if raw is not None:
            answer = self._process.step(self._index, raw)
        else:
            self._begun = None
            answer = self._process.finish(self._begin(action) if number is None else number)
        return self._result(answer)

    def step_raw(self, action: Any) -> Any:
        """Step as `step` does, but return the percept as the process sent it, if it is raw."""
        raw = self._encode(action) if self._begun is None else None
        if raw is None:
            return self.step(action)
        answer = self._process.step(self._index, raw)
        kind, data = answer
        if kind == COMPACT and len(data) == HEADER_SIZE + self.raw_size:
            reward, _, flags = _unpack_end(data, self._end_at)
            if reward == FLOAT and flags in _KNOWN_FLAGS:
                return RawPercept(data[HEADER_SIZE:])
        return self._result(answer)

    def _result(self, answer: Answer) -> Any:
        """Return the result of the step that the process has answered."""
        if answer[0] == COMPACT:
            try:
                return self._decode(answer[1], HEADER_SIZE)
            except DecodingError as error:
                self._process.violation(str(error))
        result = self._process.value(answer, self._tensors)
        if not self._uses_numpy and type(result) is tuple and result:
            return self._coerced(result)
        return result

    def _coerced(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        return (child_values.coerce(self.observation_space, result[0]), *result[1:])

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment."""
        self._abandon()
        answer = self._process.finish(self._begin_call("reset", seed, options))
        result = self._process.value(answer, self._tensors)
        return result if self._uses_numpy or type(result) is not tuple else self._coerced(result)

    def render(self) -> Any:
        """Return what the environment renders."""
        return self._call("render")

    def close(self) -> None:
        """Close the environment; closing the last one ends the process."""
        self._abandon()
        self._process.close(self._index)

    # --- attributes -------------------------------------------------------------------------------

    def has_wrapper_attr(self, name: str) -> bool:
        """Return whether the environment has an attribute."""
        return bool(self._call("has", name))

    def get_wrapper_attr(self, name: str) -> Any:
        """Return an attribute; of a method, a function that calls it there."""
        return self._restored(name, self._call("get", name))

    def _restored(self, name: str, found: Any) -> Any:
        """Return the attribute that `Hosted.get` describes."""
        match found:
            case ["value", value]:
                return value
            case ["generator", state]:
                return CopiedGenerator(generators.build(state).bit_generator)
            case ["space", described]:
                return child_spaces.build(described, name)
            case ["method"]:
                return lambda *args, **kwargs: self._call("call", name, list(args), kwargs)
            case _:
                return self._process.violation(f"{found!r:.100} as a description of an attribute")

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute."""
        in_place = isinstance(value, CopiedGenerator)
        if isinstance(value, np.random.Generator):
            if not in_place and self.has_wrapper_attr(name):
                generators.check(self.get_wrapper_attr(name))
            value = generators.describe(value)
        self._call("set", name, value, in_place)
        return True

    @property
    def np_random(self) -> np.random.Generator:
        """A generator in the state of the environment's; drawing from it changes nothing there."""
        found: np.random.Generator = self.get_wrapper_attr(GENERATOR)
        return found

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self.set_wrapper_attr(GENERATOR, value)

    @property
    def np_random_seed(self) -> Any:
        """The seed of the environment's generator."""
        return self.get_wrapper_attr("np_random_seed")


class ChildVector(HostedVector):
    """A vector whose environments are in one process, and step in about one round trip."""

    def step(self, actions: Any) -> Any:
        """Send all steps before the first answer is read."""
        resetting = self._autoreset_envs
        for env, action, resets in zip(
            self.envs, iterate(self.action_space, actions), resetting, strict=False
        ):
            if not resets and isinstance(env, ChildEnv):
                env.begin_step(action)
        return super().step(actions)


def built(root: str, found: Any, name: str) -> Space[Any]:
    """Return the space that the process describes."""
    try:
        return child_spaces.build(found, root)
    except DecodingError as error:
        raise ConfigurationError(
            f"{name}: the spaces cannot be read from the environment's attributes: {error} Give "
            f"them with --spaces module:NAME."
        ) from None


def _spec(found: Any) -> EnvSpec | None:
    """Return the spec with these attributes; None without a valid one."""
    kwargs = {k: v for k, v in (found.pop("_kwargs", None) or {}).items() if k != "render_mode"}
    try:
        return EnvSpec(**{"kwargs": kwargs, **found})
    except (TypeError, ValueError, gymnasium.error.Error):
        return None
