"""Go on with an episode at another env agent by replaying it (`on_lost="replay"`)."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from gymwire.learner_agent.client import replacing
from gymwire.learner_agent.client.recording import Position, Recording
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.learner_agent.proxies.attributes import RemoteAttributes
from gymwire.learner_agent.proxies.session_owner import SessionOwner
from gymwire.protocol import logs, values
from gymwire.protocol.errors import (
    AttributeDenied,
    EnvironmentFailed,
    EnvironmentLost,
)
from gymwire.protocol.messages import Call, Kind, Reset, Status
from gymwire.protocol.step_codec import Step


class EpisodeReplay:
    """Records the current episode, and replays it in a new session when the old one is lost."""

    def __init__(self, owner: SessionOwner, attributes: RemoteAttributes) -> None:
        self._owner = owner
        self._attributes = attributes
        self._recording = Recording()
        self._before: Position = self._recording.position
        # The last reset without a seed, and the generator's state before it.
        self._seedless: tuple[bytes, Any] = b"", None

    def begin_call(self) -> None:
        """Begin a call of the proxy: from now on, `undo` returns to this moment."""
        self._owner.begin_call()
        self._before = self._recording.position

    def end_call(self) -> None:
        """End a call of the proxy."""
        self._owner.end_call()

    def undo(self, error: BaseException) -> None:
        """End a call with an exception, as `SessionOwner.undo`; it is not recorded then."""
        self._owner.undo(error)
        self._recording.position = self._before

    @property
    def in_call(self) -> object:
        """True while a call of the proxy is under way."""
        return self._owner.in_call

    @in_call.setter
    def in_call(self, value: object) -> None:
        self._owner.in_call = value

    @property
    def shared(self) -> object:
        """The same for all that the calls of one proxy use."""
        return self._owner

    def step(self, action: Any) -> Step:
        """Step the environment, after a replay if the session is lost.

        Raises:
            EnvironmentLost: no other env agent took over within `timeout_s`.
            ReplayMismatch: the replayed episode differed.
        """
        encoded = values.encode(action, root="action")
        while True:
            try:
                step = self._owner.session.step(action, self._owner.options.step_timeout_s)
            except EnvironmentLost as error:
                self._replay(error)
                continue
            self._recording.step(encoded, step)
            return step

    def reset(self, seed: Any, options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode, which replaces the recorded one. Raises what `step` raises."""
        request = Reset(seed, options)
        self._owner.check_usable(request)
        generator = None
        while True:
            try:
                if seed is None:
                    generator = self._generator_before(request)
                else:
                    self._seedless = b"", None
                answer = self._owner.reset(seed, options)
            except EnvironmentLost as error:
                self._replay(error, generator)
                continue
            self._recording.reset(generator, seed, options, answer)
            return answer

    def set_generator(self, state: Any, *, in_place: bool) -> None:
        """Set the environment's generator to a state, after a replay if the session is lost."""
        while True:
            try:
                self._attributes.set_generator(state, in_place=in_place)
            except EnvironmentLost as error:
                self._replay(error)
                continue
            self._recording.draw(state)
            return

    def _generator_before(self, request: Reset) -> Any:
        """Return the state of the generator before a reset, None if the environment has none.

        The reset may be under way already, after an exception. Other requests that are under way
        end first: only a reset may replace them.
        """
        session = self._owner.session
        pending, encoded = session.exchange.pending, values.encode(request.options, root="options")
        known, generator = self._seedless
        if pending is not None and pending.kind is Kind.RESET and known == encoded:
            return generator
        if pending is not None:
            with contextlib.suppress(EnvironmentFailed, AttributeDenied):
                session.finish(self._owner.options.step_timeout_s)
        generator = None
        with contextlib.suppress(EnvironmentFailed, AttributeDenied):
            generator = self._attributes.get("np_random")
        self._seedless = encoded, generator
        return generator

    def _replay(self, error: EnvironmentLost, generator: Any = None) -> None:
        """Open another session, bring it to the state of the lost one, and use it from then on.

        Until then the lost session stays in use, so that an exception leaves no episode half done.

        Args:
            error: the exception that reports the loss.
            generator: the generator's state after the episode, if it is known.
        """
        owner, recording = self._owner, self._recording
        address, timeout_s = owner.options.address, owner.options.timeout_s
        lost = owner.session.exchange.lost
        if lost is None:
            raise error  # which is not about this session
        connection = owner.session.connection
        log = logs.logger()
        log.warning("session lost, replaying episode", address=address, why=lost)
        replacing.open_another(
            connection,
            partial(owner.open, connection, wait_s=0.0, prepare=partial(self._repeat, generator)),
            timeout_s,
            f"The session is lost ({lost}), and for {timeout_s:g} s no other agent could take the "
            f"episode over",
        )
        log.info("episode replayed", address=address, steps=recording.steps)

    def _repeat(self, generator: Any, session: RemoteSession) -> None:
        """Repeat the recorded episode in a new session; set its generator to a state, if known."""
        timeout_s = self._owner.options.step_timeout_s

        def reset(seed: Any, options: Any) -> tuple[Any, dict[str, Any]]:
            status = session.request(Reset(seed, options), timeout_s)
            assert type(status) is Status
            return status.observation, status.info

        def set_generator(state: Any) -> None:
            if state is not None:
                session.request(Call("set", "np_random", (state,)), timeout_s)

        set_generator(self._recording.generator)
        self._recording.replay(reset, session.step, set_generator)
        set_generator(generator)
