"""A slot: one session with its environment."""

from __future__ import annotations

from dataclasses import dataclass, field

from gymwire.env_agent.crew import CurrentRequest, Executor
from gymwire.env_agent.runners.runner import Runner, RunStep
from gymwire.env_agent.session import Session
from gymwire.protocol.codec import Codec
from gymwire.protocol.messages import Opened
from gymwire.protocol.process_ids import session_text
from gymwire.protocol.step_codec import StepCodec

FAST_STEP = 0.0003  # seconds: steps that take longer are executed while another thread reads
SLOW_STEP = 0.001  # seconds: longer ones count as this long, so that one of them is soon forgotten
WEIGHT = 0.25  # of the last step in the mean
# While no other session sends requests, steps up to SHORT_STEP are not worth a change of threads:
# the first request of another session waits for one of them at most.
SHORT_STEP = 0.0008
STEPS_ALONE = 64  # steps of a session in a row that show this


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
        began_at: when the last request began to be executed, in monotonic seconds.
        heard_at: when the last request arrived that was not executed at once, in monotonic seconds.
        executor: the thread that makes, uses and closes the environment.
        is_fast: whether its steps are known to be short enough to be executed by the reader.
        turn: in which turn of the loop it sent its last request.
        steps_alone: how many of its steps were executed in that turn.
        times: how long the steps since the last report took, in seconds.
        raw_step: executes steps on the fast path, and may return a RawPercept; None: the runner's
            `step` does.
        learner: what the log says about the learner.
        unwatchable: why the session cannot be watched; "" if it can be.
        watch_rate: how many frames to render for watchers per second, at most.
        replied_at: when the last reply with time stamps was made, in monotonic nanoseconds.
    """

    session: Session
    runner: Runner
    codec: Codec
    steps: StepCodec | None
    exposed: frozenset[str]
    opened: Opened
    raw_step: RunStep | None = None
    learner: dict[str, object] = field(default_factory=dict)
    unwatchable: str = ""
    watch_rate: int = 1
    opened_at: float = 0.0
    began_at: float = 0.0
    heard_at: float = 0.0
    executor: Executor = field(default_factory=Executor)
    is_fast: bool = False
    turn: int = -1
    steps_alone: int = 0
    replied_at: int = 0
    times: list[float] = field(default_factory=list)
    _step_s: float | None = None

    @property
    def facts(self) -> dict[str, object]:
        """What the log says about the session: its id, its address and its learner."""
        session = self.session
        return {"session": session_text(session.sid), "address": session.address, **self.learner}

    @property
    def current_request(self) -> CurrentRequest | None:
        """The request being executed, or None. May be read from any thread."""
        session, began_at = self.session, self.began_at
        number = session.last_seq + 1
        return (session.sid, number, began_at) if session.is_executing else None

    def note_step(self, seconds: float) -> None:
        """Note how long a step took."""
        seconds = min(seconds, SLOW_STEP)
        mean = seconds if self._step_s is None else self._step_s
        self._step_s = mean + WEIGHT * (seconds - mean)
        self.steps_alone += 1
        self.is_fast = self._step_s < (FAST_STEP if self.steps_alone < STEPS_ALONE else SHORT_STEP)
