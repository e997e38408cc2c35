"""The environments and what may be done to them: a message goes in, its reply comes out.

No socket is seen here. Every environment is made, used and closed by the thread that calls.
"""

from __future__ import annotations

import hashlib
import os
import socket as hostsocket
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, assert_never

import structlog
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from gymwire.env_agent.factory import Env, Factory, Vector
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.session import Session, Verdict
from gymwire.protocol import generators, spaces, values, vector_infos
from gymwire.protocol.capabilities import CAPABILITIES
from gymwire.protocol.codec import PLAIN, SEQ, Codec, Frame, Header, Pieces
from gymwire.protocol.dialogue import State
from gymwire.protocol.errors import ConfigurationError, EncodingError, ProtocolError
from gymwire.protocol.messages import (
    Act,
    Call,
    Close,
    Closed,
    Code,
    Error,
    Kind,
    Message,
    Offer,
    Open,
    Opened,
    Percept,
    Render,
    RenderedFrame,
    Reset,
    Result,
    Status,
)
from gymwire.protocol.security import signing
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.signing import SignedCodec, Signer
from gymwire.protocol.space_codecs import NOT_COMPACT
from gymwire.protocol.step_codec import StepCodec, compile_steps

# Attributes that may be read, written or called from afar, beside those of `--allow`.
ATTRIBUTES = (
    "action_mask",
    "action_masks",
    "get_action_meanings",
    "get_keys_to_action",
    "np_random",
    "np_random_seed",
    "valid_actions",
)
MAX_NUM_ENVS = 4096  # of one session: a number from the wire must not exhaust the memory
MAX_MESSAGE = 64 * 1024 * 1024
MAX_TRACEBACK = 20_000  # characters


@dataclass(frozen=True)
class Service:
    """One environment under one address, as the operator asked for it."""

    address: str
    factory: Factory
    max_sessions: int = 8
    attributes: Sequence[str] = ()
    strict_infos: bool = False


@dataclass(slots=True)
class Slot:
    """A live session with its environment."""

    session: Session
    env: Env | Vector
    codec: Codec
    attributes: frozenset[str]
    opened: Opened
    is_vector: bool
    steps: StepCodec | None
    heard: float = 0.0  # when a direct frame came last (monotonic seconds)
    replied: int = 0  # when a reply with time stamps was made last (monotonic nanoseconds)


class Host:
    """The environments of one serving loop."""

    def __init__(self, services: Iterable[Service], key: KeyPair | None = None) -> None:
        self._key = key
        self._services = {service.address: service for service in services}
        self._spares: dict[str, Env | Vector] = {}
        self.slots: dict[int, Slot] = {}
        self.max_message = MAX_MESSAGE  # bytes of a frame; the loop lowers it to the broker's limit
        self.by_key: dict[bytes, Slot] = {}  # by the sid's bytes, as they stand in a frame
        self._log = structlog.get_logger()
        self._opaque_paths: set[tuple[str, str]] = set()

    # --- what is on offer -------------------------------------------------------------------------

    def describe(self, service: Service, capacity: int, direct: str | None) -> Offer:
        """Make the environment once to see its spaces; the first session will use this one.

        What the constructor raises is passed on.
        """
        env = self._spares[service.address] = service.factory.make_first()
        single = "single_" if isinstance(env, VectorEnv) else ""
        observation, action = (
            spaces.describe(getattr(env, single + name), root=name)
            for name in ("observation_space", "action_space")
        )
        env_id = env.spec.id if env.spec is not None else service.factory.name
        return Offer(
            address=service.address,
            env_id=env_id,
            observation_space=observation,
            action_space=action,
            spec=_spec(env, service.factory.name),
            metadata=_metadata(env.metadata),
            capacity=capacity,
            digest=hashlib.sha256(values.encode([env_id, observation, action])).digest(),
            direct=direct,
            capabilities=list(CAPABILITIES),
        )

    # --- sessions ---------------------------------------------------------------------------------

    def open(self, sid: int, seq: int, wish: Open, direct: dict[str, Any] | None) -> Frame:
        """Open a session, or say why not. Asked again, it answers the same."""
        slot = self.slots.get(sid)
        if slot is not None:
            return slot.codec.encode(slot.opened, sid, seq)
        service = self._services.get(wish.address)
        if service is None:
            error = Error(Code.ADDRESS_UNKNOWN, f"This agent does not offer {wish.address!r}.")
            return PLAIN.encode(error, sid, seq)
        try:
            env = self._make(service, wish)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is an answer
            return PLAIN.encode(_open_failed(service, error), sid, seq)
        try:
            signed = None
            if self._key is not None and wish.challenge:
                signed = signing.answer_challenge(self._key, wish.challenge, wish.nonce, sid)
            reply, codec, steps = self._opened(service, sid, env, wish, direct, signed)
            frame = codec.encode(reply, sid, seq)
        except Exception as error:  # noqa: BLE001 - properties of the environment may raise, too
            self._close(env, wish.address)
            return PLAIN.encode(_open_failed(service, error), sid, seq)
        session = Session(sid, wish.nonce, wish.address, wish.learner)
        attributes = frozenset((*ATTRIBUTES, *service.attributes))
        slot = Slot(session, env, codec, attributes, reply, bool(wish.num_envs), steps)
        self.slots[sid] = self.by_key[session.key] = slot
        return frame

    def _make(self, service: Service, wish: Open) -> Env | Vector:
        if not 0 <= wish.num_envs <= MAX_NUM_ENVS:
            raise ConfigurationError(
                f"A session has {MAX_NUM_ENVS} environments at most, not {wish.num_envs}: spread "
                f"them over several sessions."
            )
        spare = self._spares.pop(service.address, None)
        if spare is not None:
            plain = wish.num_envs == 0 and wish.render_mode is None and not wish.env_kwargs
            if plain and not isinstance(spare, VectorEnv):
                return spare
            self._close(spare, service.address)
        if wish.num_envs:
            mode = AutoresetMode(wish.autoreset_mode)
            return service.factory.make_vector(
                wish.num_envs, mode, wish.render_mode, wish.env_kwargs
            )
        return service.factory.make(wish.render_mode, wish.env_kwargs)

    def _opened(
        self,
        service: Service,
        sid: int,
        env: Env | Vector,
        wish: Open,
        direct: dict[str, Any] | None,
        signed: Signer | None,
    ) -> tuple[Opened, Codec, StepCodec | None]:
        single_observation = single_action = None
        if isinstance(env, VectorEnv):
            single_observation = spaces.describe(
                env.single_observation_space, root="single_observation_space"
            )
            single_action = spaces.describe(env.single_action_space, root="single_action_space")
        opened = Opened(
            observation_space=spaces.describe(env.observation_space, root="observation_space"),
            action_space=spaces.describe(env.action_space, root="action_space"),
            single_observation_space=single_observation,
            single_action_space=single_action,
            spec=_spec(env, service.factory.name),
            metadata=_metadata(env.metadata),
            render_mode=env.render_mode,
            num_envs=wish.num_envs,
            limits={
                "attributes": sorted({*ATTRIBUTES, *service.attributes}),
                "stamps": signed is None,
                "capabilities": list(CAPABILITIES),
            },
            agent=f"host {hostsocket.gethostname()}, process {os.getpid()}",
            direct=direct,
            key=b"" if signed is None or self._key is None else self._key.public,
        )

        def on_opaque(path: str) -> None:
            if (service.address, path) not in self._opaque_paths:
                self._opaque_paths.add((service.address, path))
                self._log.warning(
                    "an info value cannot travel; the learner sees its repr",
                    address=service.address,
                    path=path,
                )

        observation = spaces.compile(env.observation_space)
        action = spaces.compile(env.action_space)
        codec = (Codec if signed is None else partial(SignedCodec, signed))(
            observation,
            action,
            strict_infos=service.strict_infos,
            on_opaque=on_opaque,
        )
        # The short way for steps has no tags.
        steps = compile_steps(sid, observation, action, wish.num_envs) if signed is None else None
        return opened, codec, steps

    def close(self, sid: int) -> Session | None:
        """End a session and free its slot."""
        slot = self.slots.pop(sid, None)
        if slot is None:
            return None
        del self.by_key[slot.session.key]
        slot.session.answer = b""  # it may lie in memory that goes with the environment
        self._close(slot.env, slot.session.address)
        return slot.session

    def _close(self, env: Env | Vector, address: str) -> None:
        """Close an environment; if that fails, it is logged, not passed on."""
        try:
            env.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's, not ours
            self._log.warning(
                "the environment failed to close",
                address=address,
                error=f"{type(error).__name__}: {_text(error)}"[:200],
            )

    def close_all(self) -> None:
        """End everything: the loop stops."""
        for sid in list(self.slots):
            self.close(sid)
        for address, env in self._spares.items():
            self._close(env, address)
        self._spares.clear()

    # --- requests ---------------------------------------------------------------------------------

    def step(
        self,
        slot: Slot,
        seq: int,
        data: Frame | memoryview,
        stamp: Callable[[], None] | None = None,
    ) -> Frame | Pieces | None:
        """Take the ACT that is next: `handle` without detours. None: it is not; `handle` must.

        `stamp` is called when the environment's step begins, and when it has ended.
        """
        session = slot.session
        steps = slot.steps
        if steps is None or seq != session.last + 1 or session.state is not State.EPISODE:
            return None
        action = steps.decode_act(data)
        if action is NOT_COMPACT:
            return None
        if stamp is not None:
            stamp()
        session.answer = b""  # see `Session.judge`
        try:
            step = slot.env.step(action)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's; a reply, too
            reply: Message = self._raised(slot, Kind.ACT, error)
        else:
            if stamp is not None:
                stamp()
            if type(step) is tuple and len(step) == 5:
                frame = steps.encode_percept(step, bytes(data[SEQ]))
                if frame is not None and len(frame) <= self.max_message:
                    session.stepped(seq, data, frame)
                    return frame
            reply = self._percept(slot, step)
        session.judge(Kind.ACT, seq, data)
        return self._answer(slot, Kind.ACT, seq, reply)

    def handle(
        self,
        slot: Slot,
        header: Header,
        data: Frame | memoryview,
        stamp: Callable[[], None] | None = None,
    ) -> Frame | Pieces | None:
        """Take one frame of the gym dialogue; returns the frame to send, if any."""
        session = slot.session
        match session.judge(header.kind, header.seq, data):
            case Verdict.EXECUTE:
                reply = self._execute(slot, header, data, stamp)
                return self._answer(slot, header.kind, header.seq, reply)
            case Verdict.REPEAT:
                return session.answer
            case Verdict.REFUSE:
                return session.refusal
            case Verdict.DROP:
                return None
            case verdict:
                assert_never(verdict)

    def _answer(self, slot: Slot, request: Kind, seq: int, reply: Message) -> Frame:
        session = slot.session
        try:
            frame = slot.codec.encode(reply, session.sid, seq)
        except EncodingError as error:
            reply = Error(Code.ENCODING, _cannot_travel(session.address, error))
            frame = slot.codec.encode(reply, session.sid, seq)
        if len(frame) > self.max_message:
            reply = Error(
                Code.TOO_LARGE,
                f"The answer of the environment at {session.address!r} has {len(frame)} bytes; "
                f"the broker takes {self.max_message} at most. The request has been executed.",
            )
            frame = slot.codec.encode(reply, session.sid, seq)
        session.executed(Kind.ERROR if type(reply) is Error else _REPLY[request], frame)
        return frame

    def _execute(
        self,
        slot: Slot,
        header: Header,
        data: Frame | memoryview,
        stamp: Callable[[], None] | None,
    ) -> Message:
        try:
            message = slot.codec.decode(data, header)
        except ProtocolError as error:
            return Error(Code.PROTOCOL, str(error))
        env = slot.env
        try:
            match message:
                case Act():
                    if stamp is not None:
                        stamp()
                    step = env.step(message.action)
                    if stamp is not None:
                        stamp()
                    return self._percept(slot, step)
                case Reset():
                    observation, info = env.reset(seed=message.seed, options=message.options)
                    return Status(observation, _infos(env, info) if slot.is_vector else info)
                case Render():
                    return RenderedFrame(env.render())
                case Call():
                    return self._call(slot, message)
                case Close():
                    return Closed()
                case _:
                    return Error(Code.PROTOCOL, f"{header.kind.name} is not a request.")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's; a reply, too
            return self._raised(slot, header.kind, error)

    def _percept(self, slot: Slot, step: Any) -> Message:
        """What `step` returned, as a message; an ERROR if it is not what a step returns."""
        try:
            observation, reward, terminated, truncated, info = step
            if slot.is_vector:
                info = _infos(slot.env, info)
        except (TypeError, ValueError) as error:
            return self._raised(slot, Kind.ACT, error)
        return Percept(observation, reward, terminated, truncated, info)

    def _raised(self, slot: Slot, request: Kind, error: BaseException) -> Error:
        self._log.warning(
            "the environment raised",
            address=slot.session.address,
            request=request.name,
            error=f"{type(error).__name__}: {_text(error)}"[:200],
        )
        return _failed(error, slot.env if isinstance(slot.env, SyncVectorEnv) else None)

    def _call(self, slot: Slot, call: Call) -> Message:
        name, env = call.name, slot.env
        if name not in slot.attributes:
            return Error(
                Code.ATTRIBUTE_DENIED,
                f"The env agent does not hand out {name!r}. Its operator can, with --allow {name}; "
                f"now allowed: {', '.join(sorted(slot.attributes))}.",
            )
        if isinstance(env, VectorEnv):
            return _call_vector(env, call)
        if call.mode == "set":
            value = call.args[0]
            env.set_wrapper_attr(name, generators.build(value) if name == "np_random" else value)
            return Result(None)
        found = env.get_wrapper_attr(name)
        if call.mode == "call":
            return Result(found(*call.args, **call.kwargs))
        if name == "np_random":
            return Result({"value": generators.describe(found)})
        return Result({"method": True} if callable(found) else {"value": found})


def _infos(env: Env | Vector, infos: Any) -> Any:
    if not isinstance(infos, dict):
        raise TypeError(f"The infos of a vector must be a dict, not {type(infos).__name__}.")
    if not isinstance(env, HostedVector):
        return vector_infos.to_wire(infos)
    cast, env.cast = env.cast, {}
    return vector_infos.to_wire(infos, cast)


def _call_vector(env: Any, call: Call) -> Message:
    name = call.name
    if not hasattr(env, "get_attr"):  # a vector that is no collection of single environments
        if call.mode == "call":
            return Result(getattr(env, name)(*call.args, **call.kwargs))
        if call.mode == "set":
            setattr(env, name, call.args[0])
            return Result(None)
        found = getattr(env, name)
        return Result({"value": generators.describe(found) if name == "np_random" else found})
    if call.mode == "set":
        found = call.args[0]
        if name == "np_random":
            found = [generators.build(state) for state in found]
        env.set_attr(name, found)
        return Result(None)
    if call.mode == "call":
        return Result(tuple(env.call(name, *call.args, **call.kwargs)))
    found = tuple(env.get_attr(name))
    if name == "np_random":
        found = tuple(map(generators.describe, found))
    return Result({"value": found})


_REPLY = {
    Kind.ACT: Kind.PERCEPT,
    Kind.RESET: Kind.STATUS,
    Kind.RENDER: Kind.FRAME,
    Kind.CALL: Kind.RESULT,
    Kind.CLOSE: Kind.CLOSED,
}


def _failed(error: BaseException, vector: SyncVectorEnv[Any, Any] | None = None) -> Error:
    text = _printable("".join(traceback.format_exception(error)))[-MAX_TRACEBACK:]
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    name = kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"
    details: dict[str, Any] = {"type": name, "traceback": text}
    if vector is not None and (index := _index_in(vector, error)) is not None:
        details["env_index"] = index
    return Error(Code.ENVIRONMENT_FAILED, _text(error), details)


def _text(error: BaseException) -> str:
    """What an exception says, if it can: a foreign `__str__` may itself raise."""
    try:
        return _printable(str(error))
    except Exception as failure:  # noqa: BLE001 - the environment's
        return f"<its text cannot be had: {type(failure).__name__}>"


def _printable(text: str) -> str:
    """The text without lone surrogates (file names have them), which cannot travel."""
    return text.encode("utf-8", "backslashreplace").decode()


def _index_in(vector: SyncVectorEnv[Any, Any], error: BaseException) -> int | None:
    """Which environment of a vector raised: what the loop over them was at."""
    steps = [(frame, frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)]
    for (frame, name), (_, inner) in pairwise(steps):
        if (
            name in ("step", "reset")
            and inner in ("step", "reset", "_add_info")
            and frame.f_locals.get("self") is vector
        ):
            return frame.f_locals.get("i")
    return None


def _open_failed(service: Service, error: BaseException) -> Error:
    if isinstance(error, EncodingError):
        text = f"The environment at {service.address!r} cannot be offered: {_text(error)}"
    else:
        text = (
            f"The environment at {service.address!r} could not be made: "
            f"{type(error).__name__}: {_text(error)}"
        )
    details = _failed(error).details
    return Error(Code.OPEN_FAILED, text, details)


def _cannot_travel(address: str, error: EncodingError) -> str:
    return (
        f"The environment at {address!r} returned something that cannot travel: {_text(error)} The "
        f"step has been executed."
    )


def _spec(env: Any, name: str) -> dict[str, Any]:
    spec = env.spec
    if spec is None:
        return {"id": name}
    fields = {
        "id": spec.id,
        "reward_threshold": spec.reward_threshold,
        "nondeterministic": spec.nondeterministic,
        "max_episode_steps": spec.max_episode_steps,
        "order_enforce": spec.order_enforce,
        "disable_env_checker": spec.disable_env_checker,
        "kwargs": {k: v for k, v in spec.kwargs.items() if k != "render_mode"},
    }
    return values.opaque(fields, root="spec")[0]  # type: ignore[no-any-return]


def _metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v.value if isinstance(v, AutoresetMode) else v for k, v in metadata.items()}
    return values.opaque(plain, root="metadata")[0]  # type: ignore[no-any-return]
