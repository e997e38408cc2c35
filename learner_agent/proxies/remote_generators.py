"""The random generators of remote environments: draws advance them, as they do locally."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from gymwire.learner_agent.client.failures import naming_agent
from gymwire.learner_agent.proxies import numba_types
from gymwire.learner_agent.proxies.interrupts import kept_for_getattr, raise_kept
from gymwire.protocol import generators
from gymwire.protocol.errors import (
    DecodingError,
    EnvironmentClosed,
    EnvironmentFailed,
    EnvironmentLost,
    MoveError,
)


class RemoteGenerators:
    """Generators that mirror those of the environments of one proxy.

    Before a draw, their states are read if the environments may have drawn since. After draws, the
    states are written back before the proxy's next request.

    Args:
        read: returns the states of the environments' generators, as `generators.describe` does.
        write: sets these generators to states. Doing it twice is as good as once.
        where: the address of the environments, as errors show it.

    Attributes:
        all: the generators, one for each environment.
    """

    def __init__(
        self,
        read: Callable[[], Sequence[Any]],
        write: Callable[[Sequence[Any]], None],
        where: str = "",
    ) -> None:
        self._read = read
        self._write = write
        self._where = where
        self._is_fresh = False  # whether the states are those of the environments, or later ones
        self._is_drawn = False  # whether they are later ones
        self._is_writing = False
        self._given: set[int] = set()  # the generators to which there may be references
        self._pid = os.getpid()
        self.all: list[RemoteGenerator] = []

    def make(self, states: Sequence[Any]) -> None:
        """Make the generators, in these states."""
        with naming_agent(self._where):
            self.all = [RemoteGenerator(self, state) for state in states]
        self._is_fresh = True

    def give(self) -> tuple[RemoteGenerator, ...]:
        """Return the generators, to callers who may keep them."""
        self._given = set(range(len(self.all)))
        numba_types.refuse(RemoteGenerator)
        return tuple(self.all)

    def release(self, numbers: Iterable[int], read: Callable[[], Sequence[Any]]) -> None:
        """Detach the generators of environments that are about to replace them.

        Those that a caller may have kept continue from their present states, as local ones do.

        Args:
            numbers: those of the environments, or of the generators if that is not the same.
            read: as the `read` of the constructor, within a call of the proxy.
        """
        released = self._given.intersection(numbers)
        if not released:
            return
        if self._pid == os.getpid():
            with contextlib.suppress(EnvironmentFailed, EnvironmentLost, MoveError):
                self._use_states(read())
        for number in released:
            former = self.all[number]
            self.all[number] = RemoteGenerator(self, former.own_state)
            former.detach()
        self._given -= released

    def _use_states(self, states: Sequence[Any]) -> None:
        with naming_agent(self._where):
            if len(states) != len(self.all):
                raise DecodingError(f"{len(states)} random generators instead of {len(self.all)}.")
            for generator, state in zip(self.all, states, strict=True):
                generator.use_state(state)

    def begin_draw(self) -> None:
        """Read the states if they may be old. They will be written back."""
        if self._pid != os.getpid():
            self._is_fresh = self._is_drawn = False
        if not self._is_fresh:
            self._use_states(self._read())
            self._is_fresh, self._pid = True, os.getpid()

    def mark_drawn(self) -> None:
        """Note that a generator is in a later state now, or will be."""
        self._is_drawn = True

    def before_request(self) -> None:
        """Write the states back if there were draws; the request may make the environment draw.

        An exception from outside leaves them to the next request. If the session is lost, nothing
        is written: the request itself says so, or opens another one.
        """
        if self._is_writing:
            return
        if self._is_drawn and self._pid == os.getpid():
            self._is_writing = True
            try:
                self._write([generator.own_state for generator in self.all])
            except (EnvironmentLost, EnvironmentClosed):
                pass
            except EnvironmentFailed:
                self._is_fresh = self._is_drawn = False
                raise
            finally:
                self._is_writing = False
        self._is_fresh = self._is_drawn = False


class RemoteGenerator(np.random.Generator):
    """The generator of a remote environment. Its draws advance that environment's own.

    Code that draws through `bit_generator` itself is not supported: Cython raises AttributeError
    where it asks for an interface, and numba a TypeError (see `numba_types`). `deepcopy` and
    `pickle` make a plain generator in the present state.
    """

    def __init__(self, remote: RemoteGenerators, state: Any) -> None:
        super().__init__(generators.build(state).bit_generator)
        self._remote = remote

    @property
    def own_state(self) -> dict[str, Any]:
        """The state after the last draw."""
        return dict(_BITS(self).state)

    def use_state(self, state: Any) -> None:
        """Continue from this state."""
        super().__init__(generators.build(state).bit_generator)

    def detach(self) -> None:
        """Detach this generator from its environment."""
        self._remote = _DETACHED

    @property
    def bit_generator(self) -> Any:
        """Gives access to the remote generator's `state`, for reading and writing."""
        return _State(self._remote, self)

    def spawn(self, n_children: int) -> list[np.random.Generator]:
        """Raise NotImplementedError: the seed sequence stays at the env agent."""
        raise NotImplementedError(
            "The generator of a remote environment cannot spawn others. Seed them with numbers "
            "that you draw from it."
        )

    def __copy__(self) -> RemoteGenerator:
        return self  # a shallow copy of a local generator shares its bit generator

    def __reduce__(self) -> tuple[Any, ...]:
        return generators.build, (self.bit_generator.state,)

    def __repr__(self) -> str:
        return f"RemoteGenerator({_BITS(self).__class__.__name__})"

    __str__ = __repr__


_DETACHED = RemoteGenerators(lambda: (), lambda states: None)

_BITS: Callable[[np.random.Generator], Any] = np.random.Generator.bit_generator.__get__


class _State:
    """Stands for the bit generator of a remote environment."""

    def __init__(self, remote: RemoteGenerators, generator: RemoteGenerator) -> None:
        self._remote = remote
        self._generator = generator

    @property
    @kept_for_getattr
    def state(self) -> dict[str, Any]:
        """The state of the environment's generator."""
        self._remote.begin_draw()
        return self._generator.own_state

    @state.setter
    def state(self, value: Any) -> None:
        self._remote.begin_draw()
        self._generator.use_state(value)
        self._remote.mark_drawn()

    def __getattr__(self, name: str) -> Any:
        raise_kept(self, name)
        raise AttributeError(
            f"The bit generator of a remote environment has a state, but no {name!r}: code that "
            f"draws through it cannot reach the environment. Draw with the generator's methods."
        )


def _drawing(name: str) -> Callable[..., Any]:
    """Return a method of Generator that draws from the remote one."""
    plain = getattr(np.random.Generator, name)

    @wraps(plain)
    def draw(self: RemoteGenerator, *args: Any, **kwargs: Any) -> Any:
        remote = self._remote
        remote.begin_draw()
        remote.mark_drawn()  # earlier than the draw, which an exception from outside may follow
        return plain(self, *args, **kwargs)

    return draw


for _name in dir(np.random.Generator):
    if not _name.startswith("_") and _name not in vars(RemoteGenerator):
        setattr(RemoteGenerator, _name, _drawing(_name))
