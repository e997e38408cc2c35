"""Requests of the gym dialogue: a frame in, the environment called, the frame of the reply out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, assert_never

from gymwire.env_agent import failure_reports
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.results import unpack
from gymwire.env_agent.runners.runner import RunStep
from gymwire.env_agent.session import Verdict
from gymwire.env_agent.slot import Slot
from gymwire.protocol import dialogue, logs, remote_space
from gymwire.protocol.codec import COMPACT, FLAGS_AT, MAX_MESSAGE, NAME, Frame, Header, Pieces
from gymwire.protocol.errors import EncodingError, ProtocolError
from gymwire.protocol.messages import (
    Act,
    Call,
    Close,
    Closed,
    Code,
    Error,
    Kind,
    Message,
    Percept,
    Render,
    RenderedFrame,
    Reset,
    Result,
    Status,
)
from gymwire.protocol.space_codecs import NOT_COMPACT
from gymwire.protocol.step_codec import RawPercept

_int_from_bytes = int.from_bytes

# Request → the kind of its reply, the same in all states.
_REPLY = {
    request: next(iter(replies))
    for moves in dialogue.MOVES.values()
    for request, replies in moves.items()
}


class RequestHandler:
    """Executes the requests of the sessions of one serving loop, in its thread.

    `after_call`: see `SessionHost`.

    Attributes:
        max_message: the largest frame that may be sent, in bytes; the loop lowers it to the
            broker's limit.
    """

    def __init__(self, after_call: Callable[[], None] = lambda: None) -> None:
        self.max_message = MAX_MESSAGE
        self._after_call = after_call
        self._pid = os.getpid()
        self._log = logs.logger()

    def step(
        self, slot: Slot, data: Frame | memoryview, run_step: RunStep | None = None
    ) -> Frame | Pieces | None:
        """Execute an ACT that is the next request; the fast path of `handle`.

        Args:
            slot: the session and its environment.
            data: the frame.
            run_step: called with the action; None: the slot's `raw_step`, or the runner's `step`.

        Returns:
            The frame to send, or None if `handle` must handle the request.
        """
        steps, session = slot.steps, slot.session
        if steps is None:
            return None
        # Locals, and names of the module, are called faster by Python 3.11.
        decode, encode = steps.decode_act, steps.encode_percept
        action = decode(data)
        name = bytes(data[NAME])
        seq = _int_from_bytes(name[8:], "little")
        if action is NOT_COMPACT or not session.begin_step(seq):
            return None
        if run_step is None:
            run_step = slot.raw_step or slot.runner.step
        try:
            step = run_step(action)
        except BaseException as error:  # noqa: BLE001 - the environment's; a reply, too
            reply: Message = self._raised(slot, Kind.ACT, error)
        else:
            if type(step) is RawPercept:
                raw = steps.encode_raw(step, name)
                if len(raw) <= self.max_message:
                    session.finish_step(seq, data, raw)
                    return raw
                step = steps.decode_percept(raw, name)
            if type(step) is tuple and len(step) == 5:
                frame = encode(step, name)
                if (
                    frame is not None
                    and len(frame) <= self.max_message
                    # else a replaced space may be why, and the slot's codec compares the spaces
                    and (
                        isinstance(frame, Pieces)
                        or frame[FLAGS_AT] & COMPACT
                        or not slot.runner.spaces.is_replaced
                    )
                ):
                    session.finish_step(seq, data, frame)
                    return frame
            reply = self._percept(slot, step)
        session.judge(Kind.ACT, seq, data)
        return self._finish(slot, Kind.ACT, seq, reply)

    def handle(
        self,
        slot: Slot,
        header: Header,
        data: Frame | memoryview,
        run_step: RunStep | None = None,
    ) -> Frame | Pieces | None:
        """Handle any request of the gym dialogue; return the frame to send, or None."""
        session = slot.session
        match session.judge(header.kind, header.seq, data):
            case Verdict.EXECUTE:
                reply = self._execute(slot, header, data, run_step)
                self._after_call()
                return self._finish(slot, header.kind, header.seq, reply)
            case Verdict.REPEAT:
                return session.reply
            case Verdict.REFUSE:
                return session.refusal
            case Verdict.DROP:
                return None
            case verdict:
                assert_never(verdict)

    def fail(
        self, slot: Slot, header: Header, data: Frame | memoryview, error: BaseException
    ) -> Frame | Pieces | None:
        """Return the reply to a request whose handling raised because of a bug of ours.

        The ERROR is the reply to the request, and takes its number, so that a repetition of the
        request gets the same ERROR and does not reach the environment.
        """
        session = slot.session
        match session.judge(header.kind, header.seq, data):
            case Verdict.REPEAT:
                return session.reply
            case Verdict.REFUSE:
                return session.refusal
            case Verdict.DROP:
                return None
        try:
            reply = failure_reports.handling_failed(header.kind.name, error)
            frame = slot.codec.encode(reply, session.sid, header.seq)
            session.finish(Kind.ERROR, frame)
        finally:
            session.abort()  # if there is no reply
        return frame

    def _finish(self, slot: Slot, request: Kind, seq: int, reply: Message) -> Frame:
        session = slot.session
        try:
            frame = slot.codec.encode(reply, session.sid, seq)
        except EncodingError as error:
            reply = failure_reports.reply_not_encodable(session.address, error)
            frame = slot.codec.encode(reply, session.sid, seq)
        if len(frame) > self.max_message:
            reply = failure_reports.reply_too_large(session.address, len(frame), self.max_message)
            frame = slot.codec.encode(reply, session.sid, seq)
        session.finish(Kind.ERROR if type(reply) is Error else _REPLY[request], frame)
        return frame

    def _execute(
        self,
        slot: Slot,
        header: Header,
        data: Frame | memoryview,
        run_step: RunStep | None,
    ) -> Message:
        try:
            message = slot.codec.decode(data, header)
        except ProtocolError as error:
            return Error(Code.PROTOCOL, str(error))
        runner = slot.runner
        try:
            match message:
                case Act():
                    return self._percept(slot, (run_step or runner.step)(message.action))
                case Reset():
                    return Status(*runner.reset(message.seed, message.options))
                case Render():
                    return RenderedFrame(runner.render())
                case Call():
                    return self._call(slot, message)
                case Close():
                    return Closed()
                case _:
                    return Error(Code.PROTOCOL, f"{header.kind.name} is not a request.")
        except BaseException as error:  # noqa: BLE001 - the environment's; a reply, too
            return self._raised(slot, header.kind, error, is_probe=_is_probe(message, error))

    def _percept(self, slot: Slot, step: Any) -> Message:
        """Return the PERCEPT of a step, or an ERROR if `step` is not what a step returns."""
        try:
            observation, reward, terminated, truncated, info = unpack(step, "step")
            info = slot.runner.wire_infos(info)
        except BaseException as error:  # noqa: BLE001 - its values may be objects of its own
            return self._raised(slot, Kind.ACT, error)
        return Percept(observation, reward, terminated, truncated, info)

    def _call(self, slot: Slot, call: Call) -> Message:
        asks_space = (call.mode, call.name) == ("call", remote_space.CALL)
        reads_none = asks_space or call.mode == "each-wrapped"
        if call.name not in slot.exposed and not reads_none:
            return Error(
                Code.ATTRIBUTE_DENIED,
                f"The env agent at {slot.session.address!r} does not expose {call.name!r}. Its "
                f"operator can expose it with --expose {call.name}. Exposed now: "
                f"{', '.join(sorted(slot.exposed))}.",
            )
        return Result(slot.runner.access(call))

    def _raised(
        self, slot: Slot, request: Kind, error: BaseException, *, is_probe: bool = False
    ) -> Error:
        end_if_forked(self._pid, error)
        log = self._log.debug if is_probe else self._log.warning
        log(
            "environment raised",
            **slot.facts,
            request=request.name,
            error=failure_reports.summary(error)[:200],
        )
        return failure_reports.request_failed(error, slot.runner.env)


def _is_probe(message: Message, error: BaseException) -> bool:
    """Return whether `error` only says that there is no such attribute, as `hasattr` expects.

    In another interpreter, it has the name of that class, not the class.
    """
    reads = isinstance(message, Call) and message.mode in ("get", "each-get")
    return reads and "AttributeError" in [kind.__name__ for kind in type(error).__mro__]
