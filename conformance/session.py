"""A session at the env agent under test, whose requests the check numbers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymwire.conformance import audit
from gymwire.conformance.check import Skipped, Violation, expect, shown
from gymwire.protocol import dialogue, spaces
from gymwire.protocol.codec import HEADER_SIZE, KIND_AT, Codec, Header
from gymwire.protocol.errors import GymwireError
from gymwire.protocol.messages import KINDS, Act, Error, Kind, Message, Opened, Percept, Reset

if TYPE_CHECKING:
    from gymwire.conformance.agent import Agent

Space = Any


class Session:
    """One session.

    Attributes:
        last: the number of the last request that was counted.
        codec: encodes actions in compact form where they have one.
    """

    def __init__(
        self,
        agent: Agent,
        header: Header,
        open_frame: bytes,
        opened_frame: bytes,
        opened: Opened,
        nonce: bytes,
    ) -> None:
        self.agent = agent
        self.sid, self.open_seq = header.sid, header.seq
        self.open_frame, self.opened_frame = open_frame, opened_frame
        self.opened, self.nonce = opened, nonce
        self.observation_space = build(opened.observation_space, "observation_space")
        self.action_space = build(opened.action_space, "action_space")
        self.action_space.seed(0)
        self.codec = Codec(
            spaces.compile(self.observation_space), spaces.compile(self.action_space)
        )
        self.last = 0
        self.state = dialogue.State.READY

    # --- frames -----------------------------------------------------------------------------------

    def send(self, message: Message, seq: int, codec: Codec | None = None) -> bytes:
        """Send a request with any number; returns its frame."""
        return self.send_frame(bytes((codec or self.codec).encode(message, self.sid, seq)), seq)

    def send_frame(self, frame: bytes, seq: int) -> bytes:
        """Send the bytes of a request."""
        self.agent.remember(self.sid, seq, frame)
        return self.agent.send_frame(frame)

    def receive(self, expected: str) -> tuple[Header, bytes]:
        """Return the next frame of the session, whatever its number."""
        return self.agent.next_of(self.sid, expected)

    def read(self, header: Header, frame: bytes) -> Message:
        """Return the message of a frame that `receive` returned. Raises Violation."""
        return audit.message_of(frame, header, self.codec)

    def reply(self, seq: int, what: str = "a reply") -> tuple[Message, bytes]:
        """Return the reply to this request, and its frame."""
        header, frame = self.receive(f"{what} to the request {seq}")
        message = self.read(header, frame)
        found = f"{header.kind.name} with seq {header.seq}"
        # A reply to an earlier request is right by itself: the check says whether it may come.
        expect(header.seq == seq, f"{what} with seq {seq}", found, "3.10" * (header.seq > seq))
        return message, frame

    def answer(self, message: Message, seq: int, codec: Codec | None = None) -> Message:
        """Send a request with any number, and return the reply."""
        self.send(message, seq, codec)
        return self.reply(seq)[0]

    def refused(self, message: Message, seq: int, code: str) -> Error:
        """Send a request that must get an ERROR with this code."""
        error = self.answer(message, seq)
        is_refusal = isinstance(error, Error) and error.code == code
        expect(is_refusal, f"ERROR {code}", error)
        assert isinstance(error, Error)
        return error

    # --- requests ---------------------------------------------------------------------------------

    def ask(self, message: Message, codec: Codec | None = None) -> Message:
        """Do the next request. Returns the reply, which the dialogue must allow."""
        return self.take(self.send_next(message, codec))[0]

    def send_next(self, message: Message, codec: Codec | None = None) -> bytes:
        """Send the next request without waiting; returns its frame."""
        self.last += 1
        return self.send(message, self.last, codec)

    def take(self, request: bytes) -> tuple[Message, bytes]:
        """Return the reply to the request that was sent last, which the dialogue must allow."""
        kind = Kind(request[KIND_AT])
        legal = [*dialogue.MOVES[self.state][kind], Kind.ERROR]
        names = " or ".join(one.name for one in legal)
        message, frame = self.reply(self.last, names)
        expect(KINDS[type(message)] in legal, f"{names} in answer to {kind.name}", message, "5.1")
        self.state = dialogue.after(self.state, kind, KINDS[type(message)])
        return message, frame

    def must(self, message: Message, codec: Codec | None = None) -> Any:
        """Do the next request, which must succeed. Returns the reply."""
        reply = self.ask(message, codec)
        if isinstance(reply, Error):
            raise Violation(f"a reply to {KINDS[type(message)].name}", shown(reply))
        return reply

    def reset(self, seed: Any = 7) -> Any:
        """Start an episode. Returns the STATUS."""
        return self.must(Reset(seed))

    def act(self) -> Act:
        """Return a step with a random action. Raises Skipped."""
        try:
            return Act(self.action_space.sample())
        except GymwireError:
            raise Skipped("the action space is none of Gymnasium's") from None

    def step(self) -> Any:
        """Do one step with a random action. Returns the PERCEPT."""
        return self.must(self.act())

    def episode(self, seed: int, steps: int, *, codec: Codec | None = None) -> list[bytes]:
        """Start an episode, and step until it ends, `steps` times at most.

        Returns the bodies of the replies, which are those of another session with the same seed and
        steps if the environment is deterministic.
        """
        self.action_space.seed(seed)
        bodies = [self.take(self.send_next(Reset(seed)))[1][HEADER_SIZE:]]
        for _ in range(steps):
            reply, frame = self.take(self.send_next(self.act(), codec))
            bodies.append(frame[HEADER_SIZE:])
            if not isinstance(reply, Percept) or has_ended(reply):
                break
        return bodies


def has_ended(percept: Percept) -> bool:
    """Return whether the episode of a plain environment has ended."""
    return bool(percept.terminated) or bool(percept.truncated)


def build(description: object, name: str) -> Space:
    """Return the space with this description. Raises Violation."""
    try:
        return spaces.build(description, root=name)
    except GymwireError as error:
        raise Violation("the description of a space", str(error), "11.1") from None
