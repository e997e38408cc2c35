"""Access to the attributes and methods of a remote environment that its operator exposes."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import Any

import gymnasium

from gymwire.learner_agent.client.failures import naming_agent
from gymwire.learner_agent.proxies.interrupts import keeps_replies
from gymwire.learner_agent.proxies.session_owner import SessionOwner
from gymwire.protocol import remote_space, spaces
from gymwire.protocol.errors import AttributeDenied, ProtocolError
from gymwire.protocol.messages import Call, Result


class RemoteAttributes:
    """Reads, sets and calls attributes of the environment behind a session."""

    def __init__(self, owner: SessionOwner) -> None:
        self._owner = owner
        self._methods: set[str] = set()  # the names that are known to be methods

    @property
    def exposed(self) -> list[str]:
        """The names that the env agent exposes."""
        names = self._owner.session.opened.limits.get("attributes")
        return [one for one in names if isinstance(one, str)] if isinstance(names, list) else []

    @property
    def undoable(self) -> SessionOwner:
        """What the calls use: `keeps_replies` requires it."""
        return self._owner

    @keeps_replies
    def get_exposed(self, name: str) -> Any:
        """Return an attribute. Raises AttributeDenied at once if it is not exposed."""
        self._check_exposed(name)
        return self.get(name)

    @keeps_replies
    def set_exposed(self, name: str, value: Any) -> None:
        """Set an attribute. Raises AttributeDenied at once if it is not exposed."""
        self._check_exposed(name)
        self.set(name, value)

    def _check_exposed(self, name: str) -> None:
        if name not in self.exposed:
            raise AttributeDenied(
                f"The env agent at {self._owner.options.address!r} does not expose {name!r}. Its "
                f"operator can expose it with --expose {name}, or apply a wrapper that needs it "
                f"there with --wrap. Exposed now: {', '.join(sorted(self.exposed))}."
            )

    def get(self, name: str) -> Any:
        """Return an attribute's value or, if it is a method, a callable that calls it remotely.

        Raises:
            AttributeDenied: the env agent does not expose it.
            EnvironmentFailed: reading it raised.
            ProtocolError: the reply makes no sense.
        """
        if name not in self._methods:
            result = self._owner.request(Call("get", name))
            assert type(result) is Result
            match result.value:
                case {"value": value}:
                    return value
                case {"space": description}:
                    with naming_agent(repr(self._owner.options.address)):
                        return spaces.build(description, root=name)
                case {"method": True}:
                    self._methods.add(name)
                case _:
                    raise ProtocolError(
                        f"The env agent at {self._owner.options.address!r} sent a malformed reply "
                        f"for the attribute {name!r}."
                    )
        return partial(self._call, name)

    def set(self, name: str, value: Any) -> None:
        """Set an attribute. Raises AttributeDenied and EncodingError."""
        self._owner.request(Call("set", name, (value,)))

    def set_generator(self, state: Any, *, in_place: bool) -> None:
        """Set the environment's random generator to a state.

        `in_place`: the environment keeps its generator, as after a draw; else it gets another one.
        """
        self._owner.request(Call("set", "np_random", (state, in_place)))

    @keeps_replies
    def ask_space(self, path: str, method: str, args: tuple[Any, ...]) -> Any:
        """Return the result of a method of a space that only the env agent knows."""
        result = self._owner.request(Call("call", remote_space.CALL, (path, method, args)))
        assert type(result) is Result
        return result.value

    @keeps_replies
    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = self._owner.request(Call("call", name, args, kwargs))
        assert type(result) is Result
        return result.value


def declares(kind: type, name: str) -> bool:
    """Return whether an attribute is the proxy's own: private, or of its class or a base class."""
    return (
        name.startswith("_")
        or hasattr(kind, name)
        or any(name in vars(base).get("__annotations__", ()) for base in kind.__mro__)
    )


def warn_wrapper(name: str) -> None:
    """Warn if a wrapper reads a private attribute of a proxy. Call this from its `__getattr__`.

    Many wrappers swallow the AttributeError, and fail later for a reason that is not the true one.
    """
    wrapper = sys._getframe(2).f_locals.get("self")  # noqa: SLF001 - whoever asks the proxy
    if isinstance(wrapper, gymnasium.Wrapper) and not name.endswith("_"):
        kind = type(wrapper)
        warnings.warn(
            f"{kind.__name__} reads the private attribute {name!r} of the environment, which its "
            f"proxy does not have. Apply the wrapper at the env agent instead: gymwire serve … "
            f"--wrap {kind.__module__}:{kind.__qualname__}",
            stacklevel=3,
        )
