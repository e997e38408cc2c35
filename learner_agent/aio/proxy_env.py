"""A remote environment for asynchronous code: `ProxyEnv` with `await`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from gymnasium import Space
from gymnasium.envs.registration import EnvSpec

from gymwire.learner_agent.aio.calls import Interrupted, Stack, anyio, run, run_on, take_stack
from gymwire.learner_agent.aio.connection import AioConnection
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.open_sessions import MAX_OPENING
from gymwire.learner_agent.proxies import proxy_env
from gymwire.learner_agent.proxies.options import ProxyOptions, broker_url
from gymwire.protocol import values
from gymwire.protocol.errors import (
    AttributeDenied,
    EnvironmentClosed,
    EnvironmentFailed,
    GymwireError,
    MoveError,
)

P = ParamSpec("P")
T = TypeVar("T")


class Connection:
    """A connection to a broker that any number of asynchronous `ProxyEnv` share.

        async with gymwire.aio.Connection() as connection:
            async with gymwire.aio.ProxyEnv("cartpole", connection=connection) as env:
                ...

    It belongs to the event loop in which it was opened.

    Args:
        broker: the broker's URL. Default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        timeout_s: raise if the broker sends nothing for this long, in seconds, at least 0.5.
        wait_s: how much longer to wait for the broker to start, for an address to be offered, and
            for a free slot, in seconds.
        key: the file with this agent's key pair. Default: the variable GYMWIRE_KEY, else no key.
        broker_key: the broker's public key or its file. Default: the variable GYMWIRE_BROKER_KEY,
            else no key.

    Raises:
        AddressError: the URL is malformed.

    `open` raises:
        BrokerUnreachable, VersionMismatch, Denied: the broker cannot be used.
    """

    def __init__(
        self,
        broker: str | None = None,
        *,
        timeout_s: float = 60.0,
        wait_s: float = 0.0,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self.broker = broker_url(broker or "")
        self._options = {
            "timeout_s": timeout_s,
            "wait_s": wait_s,
            "key": key,
            "broker_key": broker_key,
        }
        self._blocking: AioConnection | None = None
        self._is_closed = False
        # A broker may refuse more OPENs than these for a moment.
        self._openings = anyio.Semaphore(MAX_OPENING)

    async def open(self) -> Self:
        """Connect to the broker; `async with` does it. Idempotent."""
        if self._blocking is None and not self._is_closed:
            self._blocking = await run(AioConnection, self.broker, **self._options)
        return self

    async def find(self, address: str = "") -> list[dict[str, Any]]:
        """Return the offers (docs/protocol.md §6), of one address if it is given."""
        return await run(self.blocking.find, address)

    @property
    def blocking(self) -> AioConnection:
        """The connection itself, for calls. Raises EnvironmentClosed unless it is open."""
        if self._blocking is None or self._is_closed:
            raise EnvironmentClosed(
                "This connection is not open. Use it inside `async with`, or call open()."
            )
        return self._blocking

    async def make(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that opens one session; a bounded number run at the same time.

        After a cancellation, wait briefly for the session, and close it.
        """
        async with self._openings:
            try:
                return await run(function, *args, **kwargs)
            except anyio.get_cancelled_exc_class():
                # The env agent may open the session only now, while no task waits for input.
                with anyio.CancelScope(shield=True), contextlib.suppress(GymwireError):
                    await run(self.blocking.close_given_up)
                raise

    async def close(self) -> None:
        """Leave the broker, which ends the sessions that are still open. Idempotent."""
        self._is_closed = True
        if self._blocking is not None:
            self._blocking.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()


_KNOWN_ONCE_OPEN = {
    "observation_space", "action_space", "metadata", "render_mode", "spec",
}  # fmt: skip


class _Options(ProxyOptions):
    """The options of a proxy whose connection belongs to an event loop."""

    CONNECTION: ClassVar[type[BrokerConnection]] = AioConnection
    SHARES: ClassVar[bool] = False


class BlockingEnv(proxy_env.ProxyEnv):
    """A `gymwire.ProxyEnv` for calls: where it would block, only the calling task waits."""

    _OPTIONS = _Options

    @property
    def is_pending(self) -> bool:
        """Whether a request was sent whose reply no call has returned."""
        return self._session.pending

    def get_exposed(self, name: str) -> Any:
        """Return a remote attribute."""
        return self._attributes.get_exposed(name)

    def set_exposed(self, name: str, value: Any) -> None:
        """Set a remote attribute."""
        self._attributes.set_exposed(name, value)

    def call_exposed(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a remote method."""
        return self._attributes.get_exposed(name)(*args, **kwargs)


class _Cancelled(NamedTuple):
    """A call that was cancelled after its request was sent.

    `arguments` are bytes, because callers reuse arrays.
    """

    method: Callable[..., Any]
    arguments: bytes


class ProxyEnv:
    """One environment at an env agent, for asynchronous code under asyncio or Trio.

        async with gymwire.aio.ProxyEnv("cartpole") as env:
            observation, info = await env.reset(seed=1)
            observation, reward, terminated, truncated, info = await env.step(0)

    It returns and raises what `gymwire.ProxyEnv` does, with the same guarantees: the code is the
    same. A call that is cancelled after its request was sent continues at the env agent. The same
    call again returns its result; before any other call its reply is awaited and dropped, except
    before `reset` and `close`, which replace it.

    Use it from one task at a time; any task may close it.

    Args:
        address: the address of the environment, e.g. "cartpole". Default: the variable
            GYMWIRE_ADDRESS.
        broker: the broker's URL. Default: the variable GYMWIRE_BROKER, else tcp://127.0.0.1:5555.
        connection: a connection to share with other environments, instead of one of its own to
            `broker`. The caller closes it.
        options: any other option of `gymwire.ProxyEnv`.

    Attributes:
        observation_space, action_space, metadata, render_mode, spec: once it is open, as those of
            `gymwire.ProxyEnv`.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    metadata: Mapping[str, Any]
    render_mode: str | None
    spec: EnvSpec | None

    def __init__(
        self,
        address: str | None = None,
        broker: str | None = None,
        *,
        connection: Connection | None = None,
        **options: Any,
    ) -> None:
        self._connection = connection
        self._make: Callable[..., BlockingEnv] = BlockingEnv
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = (address, broker), options
        self._env: BlockingEnv | None = None
        self._is_closed = False
        self._current: Stack | None = None  # the call that is under way,
        self._scope: Any = None  # or the scope of one that does not only run blocking code
        self._left: Any = None  # an event: that call has ended
        self._cancelled: _Cancelled | None = None

    @classmethod
    def resume(cls, token: bytes) -> Self:
        """Return an environment that resumes a session when it is opened.

        See `gymwire.ProxyEnv.resume`, whose tokens are the same, and which raises the same.
        """
        env = cls()
        env.__dict__.update(_make=BlockingEnv.resume, _arguments=((token,), {}))
        return env

    async def open(self) -> Self:
        """Open the session; `async with` does it. Idempotent.

        Raises what the constructor of `gymwire.ProxyEnv` does.
        """
        if self._is_closed:
            raise EnvironmentClosed("Cannot open: this environment is closed. Make a new one.")
        if self._env is None:
            args, kwargs = self._arguments
            shared = self._connection
            with self._alone():
                if shared is None:
                    self._env = await run(self._make, *args, **kwargs)
                else:
                    blocking = shared.blocking
                    self._env = await shared.make(self._make, *args, connection=blocking, **kwargs)
            env = self._opened()
            self.observation_space, self.action_space = env.observation_space, env.action_space
            self.metadata, self.render_mode, self.spec = env.metadata, env.render_mode, env.spec
        return self

    # --- the calls of Gymnasium -------------------------------------------------------------------

    async def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and return its first observation and info."""
        return await self._call(BlockingEnv.reset, seed=seed, options=options)  # type: ignore[no-any-return]

    async def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Run one step of the remote environment, exactly once."""
        return await self._call(BlockingEnv.step, action)  # type: ignore[no-any-return]

    async def render(self) -> Any:
        """Return what the remote environment renders: an array, a str, or None."""
        return await self._call(BlockingEnv.render)

    # --- other methods ----------------------------------------------------------------------------

    async def get(self, name: str) -> Any:
        """Return an attribute that the env agent exposes. Raises AttributeDenied.

        `np_random` is the state of the environment's generator, as a dict; `set` takes such a dict.
        """
        return await self._call(BlockingEnv.get_exposed, name)

    async def set(self, name: str, value: Any) -> None:
        """Set an attribute that the env agent exposes. Raises AttributeDenied."""
        await self._call(BlockingEnv.set_exposed, name, value)

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method that the env agent exposes, and return its result."""
        return await self._call(BlockingEnv.call_exposed, name, *args, **kwargs)

    async def session_token(self) -> bytes:
        """Return a token with which another process can resume this session after this one ends.

        See `gymwire.ProxyEnv.session_token`.
        """
        return await self.run(BlockingEnv.session_token)

    async def run(
        self,
        function: Callable[Concatenate[BlockingEnv, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call `function(env, ...)` with a blocking `gymwire.ProxyEnv` of this session.

        Where that blocks, only this task waits. So code for Gymnasium's interface, such as a
        wrapper, or draws of `np_random`, can be used. If this is cancelled in the middle of a
        request, only `reset` and `close` may follow.
        """
        env = self._opened()
        await self._finish_cancelled(env)
        with self._alone():
            return await run(function, env, *args, **kwargs)
        raise self._ended()

    async def close(self) -> None:
        """End the session and free its slot. Idempotent; never waits for a step.

        A call of another task ends with EnvironmentClosed.
        """
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            while self._current is not None or self._scope is not None:
                self._left = left = self._left or anyio.Event()
                if self._current is not None:
                    self._current.interrupt()
                else:
                    self._scope.cancel()
                await left.wait()
            if self._env is not None:
                await run(self._env.close)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError, which says how to read an attribute of the environment."""
        hint = f"For one of the environment, write `await env.get({name!r})` or `env.call`."
        if name in _KNOWN_ONCE_OPEN:
            hint = "It is known once the environment is open: use `async with`, or call open()."
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}. {hint}")

    # --- calls ------------------------------------------------------------------------------------

    def _opened(self) -> BlockingEnv:
        if self._env is None and not self._is_closed:
            raise MoveError(
                "This environment is not open. Use it inside `async with`, or call open()."
            )
        if self._env is None or self._is_closed:
            raise EnvironmentClosed("This environment is closed. Make a new one.")
        return self._env

    def _check_alone(self) -> None:
        """Raise MoveError if another task is in a call."""
        if self._current is not None or self._scope is not None:
            raise MoveError(
                "Another task is in a call of this environment. Use it from one task at a time, or "
                "make one for each task."
            )

    def _leave(self) -> None:
        """Let `close` go on, after a call."""
        self._current = self._scope = None
        if self._left is not None:
            self._left.set()
            self._left = None

    @contextlib.contextmanager
    def _alone(self) -> Any:
        """Run the calls of one task at a time; `close` ends the one that is under way."""
        self._check_alone()
        try:
            with anyio.CancelScope() as self._scope:
                yield
        finally:
            self._leave()

    async def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the blocking environment."""
        env = self._opened()
        cancelled = self._cancelled
        if cancelled is not None and method is not BlockingEnv.reset:
            again = _Cancelled(method, values.encode([list(args), kwargs]))
            if again != cancelled:
                await self._finish_cancelled(env)
        self._check_alone()
        self._current = stack = take_stack()  # less work than a scope, fewer objects to collect
        try:
            result = await run_on(stack, method, (env, *args), kwargs)
            self._cancelled = None
            return result
        except Interrupted:
            raise self._ended() from None
        except Exception:
            self._cancelled = None
            raise
        except BaseException:  # a cancellation, or what ends the program
            is_pending = env.is_pending
            arguments = values.encode([list(args), kwargs]) if is_pending else b""
            self._cancelled = _Cancelled(method, arguments) if is_pending else None
            raise
        finally:
            self._leave()

    async def _finish_cancelled(self, env: BlockingEnv) -> None:
        """Wait for the reply to a cancelled call, and drop it, so that another call can follow."""
        cancelled = self._cancelled
        if cancelled is None:
            return
        args, kwargs = values.decode(cancelled.arguments)
        with contextlib.suppress(EnvironmentFailed, AttributeDenied), self._alone():
            await run(cancelled.method, env, *args, **kwargs)
        self._cancelled = None
        self._opened()

    def _ended(self) -> EnvironmentClosed:
        return EnvironmentClosed("Another task has closed this environment. Make a new one.")
