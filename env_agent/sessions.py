"""The sessions of one serving loop: opened with an environment of their own, and closed."""

from __future__ import annotations

import os
import socket as hostsocket
from collections.abc import Iterable
from functools import partial
from typing import Any

import structlog

from gymwire.env_agent import failure_reports
from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.requests import RequestHandler
from gymwire.env_agent.runners.in_loop import InLoopRunner
from gymwire.env_agent.session import Session
from gymwire.env_agent.slot import Slot
from gymwire.protocol import spaces
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.codec import PLAIN, Codec, Frame, check_size
from gymwire.protocol.messages import MULTI_AGENT, Code, Error, Open, Opened
from gymwire.protocol.security import signing
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.signing import SignedCodec
from gymwire.protocol.step_codec import compile_steps

# Learners may read, write and call these attributes in addition to those of `--expose`.
EXPOSED_BY_DEFAULT = (
    "action_mask",
    "action_masks",
    "compute_reward",
    "compute_terminated",
    "compute_truncated",
    "get_action_meanings",
    "get_keys_to_action",
    "np_random",
    "np_random_seed",
    "valid_actions",
)


class SessionHost:
    """Opens and closes the sessions of one serving loop, in its thread. It uses no socket.

    Attributes:
        environments: makes, describes and closes the environments.
        requests: executes the requests of the sessions.
        slots: the open sessions by sid.
        by_key: the open sessions by the eight bytes of the sid in a frame.
    """

    def __init__(self, services: Iterable[Service], key: KeyPair | None = None) -> None:
        self.environments = Environments(services)
        self.requests = RequestHandler()
        self.slots: dict[int, Slot] = {}
        self.by_key: dict[bytes, Slot] = {}
        self._key = key
        self._log = structlog.get_logger()
        self._opaque_paths: set[tuple[str, str]] = set()

    def open(self, sid: int, seq: int, request: Open, direct: dict[str, Any] | None) -> Frame:
        """Open a session, and return OPENED, or an ERROR that says why it is not open.

        A repeated request gets the same reply.

        Args:
            sid: the session's id, chosen by the broker.
            seq: the request number of OPEN.
            request: what the learner requests.
            direct: how the learner can connect directly, or None.
        """
        slot = self.slots.get(sid)
        if slot is not None:
            return slot.codec.encode(slot.opened, sid, seq)
        service = self.environments.service(request.address)
        if service is None:
            error = Error(Code.ADDRESS_UNKNOWN, f"This agent does not offer {request.address!r}.")
            return PLAIN.encode(error, sid, seq)
        try:
            runner = self.environments.make(service, request)
        except BaseException as error:  # noqa: BLE001 - whatever it raises is a reply
            return PLAIN.encode(failure_reports.open_failed(service.address, error), sid, seq)
        try:
            slot = self._make_slot(service, sid, runner, request, direct)
            frame = slot.codec.encode(slot.opened, sid, seq)
            advice = "The spaces and metadata of the environment are too large."
            check_size("OPENED", len(frame), self.requests.max_message, advice)
        except BaseException as error:  # noqa: BLE001 - properties of the environment may raise, too
            self.environments.close(runner, service.address)
            return PLAIN.encode(failure_reports.open_failed(service.address, error), sid, seq)
        self.slots[sid] = self.by_key[slot.session.key] = slot
        return frame

    def _make_slot(
        self,
        service: Service,
        sid: int,
        runner: InLoopRunner,
        request: Open,
        direct: dict[str, Any] | None,
    ) -> Slot:
        signer = None
        if self._key is not None and request.challenge:
            signer = signing.answer_challenge(self._key, request.challenge, request.nonce, sid)
        found = runner.describe(service.factory.name)
        kind = request.env_kind
        several = pettingzoo.EXPOSED if kind in MULTI_AGENT else ()
        exposed = frozenset((*EXPOSED_BY_DEFAULT, *several, *service.exposed))
        single_observation, single_action = (
            None if space is None else spaces.describe(space, root=name)
            for space, name in (
                (found.single_observation_space, "single_observation_space"),
                (found.single_action_space, "single_action_space"),
            )
        )
        opened = Opened(
            observation_space=spaces.describe(found.observation_space, root="observation_space"),
            action_space=spaces.describe(found.action_space, root="action_space"),
            single_observation_space=single_observation,
            single_action_space=single_action,
            spec=found.spec,
            metadata=found.metadata,
            render_mode=found.render_mode,
            num_envs=request.num_envs,
            limits={
                "attributes": sorted(exposed),
                "stamps": signer is None,
                "capabilities": list(CAPABILITIES),
            },
            agent=f"host {hostsocket.gethostname()}, process {os.getpid()}",
            direct=direct,
            key=b"" if signer is None or self._key is None else self._key.public,
        )
        observation = runner.spaces.guard(spaces.compile(found.observation_space))
        action = spaces.compile(found.action_space)
        codec = (Codec if signer is None else partial(SignedCodec, signer))(
            observation,
            action,
            strict_infos=service.strict_infos,
            on_opaque=partial(self._warn_opaque, service.address),
        )
        # The step codec does not sign frames.
        steps = (
            compile_steps(sid, observation, action, request.num_envs) if signer is None else None
        )
        session = Session(sid, request.nonce, request.address, request.learner)
        return Slot(session, runner, codec, steps, exposed, opened)

    def _warn_opaque(self, address: str, path: str) -> None:
        """Log, once for each path, that the learner gets the repr of an info value."""
        if (address, path) not in self._opaque_paths:
            self._opaque_paths.add((address, path))
            self._log.warning("info value not serializable, repr sent", address=address, path=path)

    def close(self, sid: int) -> None:
        """Close a session, if it is open, and its environment."""
        slot = self.slots.pop(sid, None)
        if slot is not None:
            del self.by_key[slot.session.key]
            slot.session.drop_reply()
            self.environments.close(slot.runner, slot.session.address)

    def close_all(self) -> None:
        """Close all sessions and environments."""
        for sid in list(self.slots):
            self.close(sid)
        self.environments.close_spares()
