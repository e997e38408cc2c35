"""The sessions of one serving loop: opened with an environment of their own, and closed."""

from __future__ import annotations

import os
import re
import socket as hostsocket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gymwire.env_agent import failure_reports, known_spaces
from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.bounded_cache import BoundedCache
from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.recorded_session import RecordedSession, header_of
from gymwire.env_agent.requests import RequestHandler
from gymwire.env_agent.runners.runner import Runner
from gymwire.env_agent.session import Session
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.unfinished import Unfinished
from gymwire.protocol import logs, values
from gymwire.protocol.capabilities import CAPABILITIES, VALUES, common
from gymwire.protocol.codec import PLAIN, Codec, Frame, check_size, renumber
from gymwire.protocol.messages import (
    EXPOSED_BY_DEFAULT,
    MULTI_AGENT,
    Code,
    Error,
    Open,
    Opened,
)
from gymwire.protocol.pictures import RENDER_MODES
from gymwire.protocol.security import signing
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.signing import SignedCodec
from gymwire.protocol.space_codecs import SpaceCodec
from gymwire.protocol.step_codec import StepCodec, compile_steps

MAX_KNOWN = 64  # different environments for which the state that their sessions share is kept
PER_BYTE = 8  # bytes of memory that their metadata may take for each byte when encoded
MAX_WARNED_TEXT = 200  # characters of a path or a type in a warning about values
_INDEX = re.compile(r"\[\d+\]")
MAX_WARNED = 1000  # warnings about values: an environment can make up paths and types
Warned = dict[tuple[str, ...], object]
"""The address and the texts of each warning about values that was logged."""


@dataclass(slots=True)
class _Common:
    """What sessions share whose environments have the same spaces and metadata.

    Attributes:
        opened: OPENED without what each session has of its own.
        observation: the codec of the observation space.
        action: the codec of the action space.
        exposed: the attributes that learners may use.
        last: the last OPENED of a session that is not signed, whether its learner has the
            capability `values`, and the frame, whose numbers do not count.
        steps: the codec of steps, of sessions without and with that capability.
    """

    opened: Opened
    observation: SpaceCodec
    action: SpaceCodec
    exposed: frozenset[str]
    last: tuple[Opened, bool, Frame] | None = None
    steps: dict[bool, StepCodec] = field(default_factory=dict)

    def compiled(self, *, extended: bool) -> StepCodec:
        """Return the codec of steps for another session."""
        found = self.steps.get(extended)
        if found is None:
            found = self.steps[extended] = compile_steps(
                self.observation, self.action, self.opened.num_envs, extended=extended
            )
        found.renew()
        return found

    def complete(self, direct: dict[str, Any] | None, public_key: bytes) -> Opened:
        """Return OPENED of a session: with its direct endpoint, and the key if it is signed."""
        last = None if self.last is None else self.last[0]
        if last is not None and last.direct == direct and last.key == public_key:
            return last
        limits = {**self.opened.limits, "stamps": not public_key}
        return replace(self.opened, limits=limits, direct=direct, key=public_key)

    def encode(self, slot: Slot, sid: int, seq: int, *, extended: bool) -> Frame:
        """Return the frame of a session's OPENED, which is encoded once for all that are equal."""
        if slot.steps is None:  # signed
            return slot.codec.encode(slot.opened, sid, seq)
        last = self.last
        if last is None or last[0] is not slot.opened or last[1] is not extended:
            last = self.last = slot.opened, extended, slot.codec.encode(slot.opened)
        return renumber(last[2], sid, seq)


class SessionHost:
    """Opens and closes the sessions of one serving loop. It uses no socket.

    `make` and `close` run in the thread of the session; the loop's reader calls `add` and `remove`.

    Args:
        services: what it offers.
        key: the agent's key pair, or None.
        after_call: called after each call of an environment that is not a step on the fast path.
        warned: which warnings about values were logged; all loops of an env agent share it.
        unfinished: counts the environments of ended sessions; all loops share it, too.

    Attributes:
        environments: makes, describes and closes the environments.
        requests: executes the requests of the sessions.
        slots: the open sessions by sid.
        by_key: the open sessions by the eight bytes of the sid in a frame.
        opening: the addresses of sessions whose environment is being made, by sid.
        ending: the ended sessions whose environment is not closed yet, by sid.
        unfinished: counts the environments of ended sessions.
    """

    def __init__(
        self,
        services: Iterable[Service],
        key: KeyPair | None = None,
        after_call: Callable[[], None] = lambda: None,
        warned: Warned | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.environments = Environments(services)
        self.requests = RequestHandler(after_call)
        self.slots: dict[int, Slot] = {}
        self.by_key: dict[bytes, Slot] = {}
        self.opening: dict[int, str] = {}
        self.ending: dict[int, Slot] = {}
        self.unfinished = Unfinished() if unfinished is None else unfinished
        self._key = key
        self._pid = os.getpid()
        self._after_call = after_call
        self._log = logs.logger()
        self._known = BoundedCache[_Common](MAX_KNOWN)  # by what they have in common
        self._warned: Warned = {} if warned is None else warned

    def open(self, sid: int, seq: int, request: Open, direct: dict[str, Any] | None) -> Frame:
        """Open a session in this thread, and return the reply to OPEN, also to a repeated one."""
        if again := self.repeat_opened(sid, seq):
            return again
        slot, frame = self.make(sid, seq, request, direct)
        if slot is not None:
            self.add(slot)
        return frame

    def repeat_opened(self, sid: int, seq: int) -> Frame | None:
        """Return the reply to a repeated OPEN; None if the session is not open."""
        slot = self.slots.get(sid)
        return None if slot is None else slot.codec.encode(slot.opened, sid, seq)

    def make(
        self,
        sid: int,
        seq: int,
        request: Open,
        direct: dict[str, Any] | None,
        *,
        uses_spare: bool = True,
    ) -> tuple[Slot | None, Frame]:
        """Make the environment of a session, in the thread that will use it.

        Args:
            sid: the session's id, chosen by the broker.
            seq: the request number of OPEN.
            request: what the learner requests.
            direct: how the learner can connect directly, or None.
            uses_spare: whether this is the thread that described the environments.

        Returns:
            The slot and OPENED; or None and an ERROR that says why the session is not open.
        """
        service = self.environments.service(request.address)
        if service is None:
            error = Error(Code.ADDRESS_UNKNOWN, f"This agent does not offer {request.address!r}.")
            return None, PLAIN.encode(error, sid, seq)
        try:
            runner = self.environments.make(service, request, uses_spare=uses_spare)
        except BaseException as error:  # noqa: BLE001 - whatever it raises is a reply
            end_if_forked(self._pid, error)
            return None, PLAIN.encode(failure_reports.open_failed(service.address, error), sid, seq)
        finally:
            self._after_call()
        try:
            shared = self._common(service, runner, request)
            extended = VALUES in common(request.capabilities)
            slot = self._make_slot(service, sid, runner, request, shared, direct, extended=extended)
            frame = shared.encode(slot, sid, seq, extended=extended)
            advice = "The spaces and metadata of the environment are too large."
            check_size("OPENED", len(frame), self.requests.max_message, advice)
        except BaseException as error:  # noqa: BLE001 - properties of the environment may raise, too
            end_if_forked(self._pid, error)
            self.environments.close(runner, service.address)
            return None, PLAIN.encode(failure_reports.open_failed(service.address, error), sid, seq)
        return slot, frame

    def refusal(self, address: str) -> Error | None:
        """Return why no session can open although the broker has a slot; None: it can."""
        service = self.environments.service(address)
        slots = 0 if service is None else service.max_sessions
        count = self.unfinished.excess(address, slots)
        return failure_reports.too_many_unfinished(address, count, slots) if count else None

    @property
    def listed(self) -> list[list[Any]]:
        """The live sessions as HELLO lists them. May be read from any thread."""
        sessions = [slot.session for slot in list(self.slots.values())]
        return [[one.sid, one.nonce, one.address, one.learner] for one in sessions]

    def address_of(self, sid: int) -> str:
        """Return the address of a session that opens, is open or closes, else "". Thread-safe."""
        slot = self.slots.get(sid) or self.ending.get(sid)
        return self.opening.get(sid, "") if slot is None else slot.session.address

    def add(self, slot: Slot) -> None:
        """Add the slot of a session that is open."""
        self.slots[slot.session.sid] = self.by_key[slot.session.key] = slot

    def _make_slot(
        self,
        service: Service,
        sid: int,
        runner: Runner,
        request: Open,
        shared: _Common,
        direct: dict[str, Any] | None,
        *,
        extended: bool,
    ) -> Slot:
        signer = None
        if self._key is not None and request.challenge:
            signer = signing.answer_challenge(self._key, request.challenge, request.nonce, sid)
        key = b"" if signer is None or self._key is None else self._key.public
        opened = shared.complete(direct, key)
        observation = runner.spaces.guard(shared.observation)
        codec = (Codec if signer is None else partial(SignedCodec, signer))(
            observation,
            shared.action,
            strict_infos=service.strict_infos,
            extended=extended,
            on_opaque=partial(self._warn_opaque, service.address),
            on_converted=partial(self._warn_converted, service.address),
        )
        steps = None
        if signer is None:  # the step codec does not sign frames
            steps = shared.compiled(extended=extended)
        session = Session(sid, request.nonce, request.address, request.learner)
        if service.recorder is not None:
            session = RecordedSession(
                session,
                service.recorder,
                header_of(service, opened, request, sid),
                runner.read_generator,
                tag_size=0 if signer is None else signing.TAG_SIZE,
            )
        learner, why = learner_facts(request), _unwatchable(service, runner)
        return Slot(
            session,
            runner,
            codec,
            steps,
            shared.exposed,
            opened,
            runner.raw_step(steps.raw_size) if steps is not None and steps.raw_size else None,
            learner,
            why,
            service.watch_rate,
        )

    def _common(self, service: Service, runner: Runner, request: Open) -> _Common:
        """Return what the sessions whose environments are alike share."""
        found = runner.describe(service.factory.name)
        observation = runner.spaces.known("observation_space")
        action = runner.spaces.known("action_space")
        singles = [
            None if space is None else known_spaces.known(space, name)
            for space, name in (
                (found.single_observation_space, "single_observation_space"),
                (found.single_action_space, "single_action_space"),
            )
        ]
        facts: list[Any] = [found.spec, found.metadata, found.render_mode, request.num_envs]
        kind = runner.kind
        described = [observation, action, *singles]
        content = values.encode([service.address, kind, *facts])
        watchable = not _unwatchable(service, runner)
        key = (content, watchable, *(None if one is None else one.digest for one in described))
        known = self._known.get(key)
        if known is not None:
            return known
        several = pettingzoo.EXPOSED if kind in MULTI_AGENT else ()
        exposed = frozenset((*EXPOSED_BY_DEFAULT, *several, *service.exposed))
        limits: dict[str, Any] = {"attributes": sorted(exposed), "capabilities": list(CAPABILITIES)}
        if service.recorder is not None:
            limits["recorded"] = True
        if watchable:
            limits["watchable"] = True
        agent = f"host {hostsocket.gethostname()}, process {os.getpid()}"
        fields: list[Any] = [None if one is None else one.description for one in described]
        fields += [*facts, limits, agent]
        opened = Opened(*fields)
        made = _Common(opened, observation.codec, action.codec, exposed)
        # `last` has the bytes of the descriptions, too.
        sizes = [2 * one.size for one in described if one is not None]
        self._known.keep(key, made, PER_BYTE * len(content) + sum(sizes))
        return made

    def _warn_opaque(self, address: str, path: str) -> None:
        """Log that the learner gets a repr: once for each path, whatever its indices."""
        self._warn_once("info value not serializable, repr sent", address, path=path)

    def _warn_converted(self, address: str, kind: str, became: str) -> None:
        """Log, once for each type, that the learner gets values of another type."""
        self._warn_once("values converted", address, type=kind, becomes=became)

    def _warn_once(self, event: str, address: str, **texts: str) -> None:
        texts = {name: text[:MAX_WARNED_TEXT] for name, text in texts.items()}
        key = (address, *(_INDEX.sub("[]", text) for text in texts.values()))
        mine = object()
        # Another thread may warn of the same at this moment: only one sets the key.
        if len(self._warned) >= MAX_WARNED or self._warned.setdefault(key, mine) is not mine:
            return
        self._log.warning(event, address=address, **texts)
        if len(self._warned) >= MAX_WARNED and self._warned.setdefault((), mine) is mine:
            self._log.warning("no further warnings about values", after=MAX_WARNED)

    def remove(self, slot: Slot) -> None:
        """Remove the slot of a session that ends."""
        del self.slots[slot.session.sid], self.by_key[slot.session.key]

    def close(self, slot: Slot) -> None:
        """Close the environment of a slot, in the thread that has used it."""
        slot.session.drop_reply()
        self.environments.close(slot.runner, slot.session.address)
        self._after_call()


def _unwatchable(service: Service, runner: Runner) -> str:
    """Return why the sessions of an environment cannot be watched; "" if they can be."""
    if not service.watchable:
        return "The operator of its env agent can allow it with gymwire serve --watchable."
    mode = getattr(runner.env, "render_mode", None)
    if mode in RENDER_MODES:
        return ""
    if mode is None:
        return "This environment cannot be rendered as rgb_array or ansi."
    return f"The learner has asked for the render mode {mode!r}, which has no frames to show."


def learner_facts(request: Open) -> dict[str, object]:
    """Return what the log says about a learner: its name or identity, its host and its process."""
    facts: dict[str, object] = {
        "learner": request.learner_name or request.learner,
        "learner_host": request.learner_host,
        "learner_pid": request.learner_pid,
    }
    return {name: value for name, value in facts.items() if value}  # a broker of 0.1.0 says little
