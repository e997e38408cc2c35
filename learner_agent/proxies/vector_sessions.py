"""The opening of a vector's sessions: those of vectors, or plain ones if the agent has none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gymnasium.vector import AutoresetMode

from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.plain_group import PlainGroup
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.client.session_group import SessionGroup
from gymwire.learner_agent.client.truncating_group import TruncatingGroup
from gymwire.learner_agent.client.truncating_plain_group import TruncatingPlainGroup
from gymwire.learner_agent.proxies import batching
from gymwire.learner_agent.proxies.options import VectorProxyOptions
from gymwire.protocol import capabilities
from gymwire.protocol.errors import EnvironmentFailed, ProtocolError
from gymwire.protocol.messages import EnvKind


def open_group(options: VectorProxyOptions, connection: BrokerConnection) -> SessionGroup:
    """Open the sessions of a vector, and warn if it does not have the render mode.

    Raises what `BrokerConnection.open_all` raises.
    """
    group = _open(options, connection)
    options.warn_of_render_mode(group[0].opened.metadata)
    return group


def _open(options: VectorProxyOptions, connection: BrokerConnection) -> SessionGroup:
    mode = AutoresetMode(options.autoreset_mode)
    truncates = options.on_lost == "truncate"
    make_group = partial(TruncatingGroup, mode) if truncates else SessionGroup
    parts = batching.slices(options.num_envs, options.sessions)
    where = repr(options.address)
    try:
        return make_group(connection, parts, where, partial(_open_vectors, options))
    except EnvironmentFailed as error:
        refusal = error
    spare = [_open_without_vectors(options, connection, refusal)]
    each = batching.slices(options.num_envs, options.num_envs)
    kind = TruncatingPlainGroup if truncates else PlainGroup
    return kind(mode, connection, each, where, partial(_open_plain, options, spare))


def _open_vectors(
    options: VectorProxyOptions,
    connection: BrokerConnection,
    sizes: Sequence[int],
    wait_s: float | None,
) -> list[RemoteSession]:
    mode = options.autoreset_mode
    assert isinstance(mode, str)
    sessions = options.open_sessions(connection, sizes, autoreset_mode=mode, wait_s=wait_s)
    for opened_mode in (one.opened.metadata.get("autoreset_mode") for one in sessions):
        if type(opened_mode) is not str or opened_mode != mode:
            for session in sessions:
                session.close(wait=False)
            raise ProtocolError(
                f"The env agent at {options.address!r} opened a vector in the autoreset "
                f"mode {opened_mode!r:.100} instead of {mode!r}."
            )
    return sessions


def _open_without_vectors(
    options: VectorProxyOptions, connection: BrokerConnection, refusal: EnvironmentFailed
) -> RemoteSession:
    """Open a plain session at an env agent that has no vectors.

    Raises `refusal`, why it opened no vector, if it has vectors or opens no plain session either.
    """
    try:
        (session,) = options.open_sessions(connection, kind=EnvKind.ENV)
    except EnvironmentFailed:
        raise refusal from None
    if capabilities.EACH in capabilities.common(session.opened.limits.get("capabilities")):
        session.close(wait=False)
        raise refusal
    return session


def _open_plain(
    options: VectorProxyOptions,
    spare: list[RemoteSession],
    connection: BrokerConnection,
    sizes: Sequence[int],
    wait_s: float | None,
) -> list[RemoteSession]:
    """Open a plain session for each of `sizes`. `spare`: those that are open already."""
    ready = [spare.pop() for _ in sizes[: len(spare)]]
    missing = [0 for _ in sizes[len(ready) :]]
    if missing:
        more = options.open_sessions(connection, missing, wait_s=wait_s, kind=EnvKind.ENV)
        ready = [*ready, *more]
    return ready
