"""A slot: one session with its environment."""

from __future__ import annotations

from dataclasses import dataclass

from gymwire.env_agent.runners.in_loop import InLoopRunner
from gymwire.env_agent.session import Session
from gymwire.protocol.codec import Codec
from gymwire.protocol.messages import Opened
from gymwire.protocol.step_codec import StepCodec


@dataclass(slots=True)
class Slot:
    """A live session with its environment.

    Attributes:
        session: the numbers and the state of the dialogue.
        runner: the environment.
        codec: encodes and decodes all messages.
        steps: the fast codec of steps; None for a signed session, whose frames carry tags.
        exposed: the attributes that the learner may use.
        opened: the reply to OPEN, sent again if the learner repeats it.
        opened_at: when the session was opened, in monotonic seconds.
        heard_at: when the last request came on the fast path, in monotonic seconds.
        replied_at: when the last reply with time stamps was made, in monotonic nanoseconds.
    """

    session: Session
    runner: InLoopRunner
    codec: Codec
    steps: StepCodec | None
    exposed: frozenset[str]
    opened: Opened
    opened_at: float = 0.0
    heard_at: float = 0.0
    replied_at: int = 0
