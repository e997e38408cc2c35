"""Go on with an episode at another env agent by replaying it (`on_lost="replay"`)."""

from __future__ import annotations

from typing import Any

from gymwire.learner_agent.client.recording import Recording
from gymwire.learner_agent.proxies.attributes import RemoteAttributes
from gymwire.learner_agent.proxies.session_owner import SessionOwner
from gymwire.protocol import logs, values
from gymwire.protocol.errors import (
    AddressUnknown,
    AttributeDenied,
    EnvironmentFailed,
    EnvironmentLost,
    NoFreeSlot,
)
from gymwire.protocol.step_codec import Step

RETRY_S = 0.1  # between attempts to open another session


class EpisodeReplay:
    """Records the current episode, and replays it in a new session when the old one is lost."""

    def __init__(self, owner: SessionOwner, attributes: RemoteAttributes) -> None:
        self._owner = owner
        self._attributes = attributes
        self._recording = Recording()

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
            except EnvironmentLost:
                self._replay()
                continue
            self._recording.step(encoded, step)
            return step

    def reset(self, seed: Any, options: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode, which replaces the recorded one. Raises what `step` raises."""
        generator = None
        while True:
            try:
                if seed is None:
                    generator = self._generator_state()
                answer = self._owner.reset(seed, options)
            except EnvironmentLost:
                self._replay()
                if generator is not None:
                    self._attributes.set("np_random", generator)
                continue
            self._recording.reset(generator, seed, options, answer)
            return answer

    def _generator_state(self) -> Any:
        """Return the state of the remote environment's generator; None if it has none."""
        try:
            return self._attributes.get("np_random")
        except (EnvironmentFailed, AttributeDenied):
            return None

    def _replay(self) -> None:
        """Bring a new session to the state of the lost one."""
        owner, recording = self._owner, self._recording
        address, timeout_s = owner.options.address, owner.options.timeout_s
        lost = owner.session.exchange.lost
        connection = owner.session.connection
        deadline = connection.clock() + timeout_s
        log = logs.logger()
        log.warning("session lost, replaying episode", address=address, why=lost)
        while True:
            try:
                owner.reopen(wait_s=0.0)
                if recording.generator is not None:
                    self._attributes.set("np_random", recording.generator)
                recording.replay(owner.reset, lambda action: owner.session.step(action))
            except (AddressUnknown, NoFreeSlot, EnvironmentLost) as error:
                if connection.clock() > deadline:
                    raise EnvironmentLost(
                        f"The session is lost ({lost}), and for {timeout_s:g} s no other agent "
                        f"could take the episode over: {error}"
                    ) from error
                connection.wait(lambda: False, connection.clock() + RETRY_S)
                continue
            log.info("episode replayed", address=address, steps=recording.steps)
            return
