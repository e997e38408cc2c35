"""The messages of the protocol, one frozen type per performative (docs/protocol.md §4).

A message is the body of a frame; `sid` (the session, 0 for none) and `seq` (the number of the
request that it is or answers) travel in the header and are kept beside it. Fields are listed in the
order in which they travel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

VERSION = 1


class Kind(IntEnum):
    """The kind of a message. Below `CONTROL_KINDS` it belongs to the gym dialogue."""

    RESET = 1
    STATUS = 2
    ACT = 3
    PERCEPT = 4
    CLOSE = 5
    CLOSED = 6
    RENDER = 7
    FRAME = 8
    CALL = 9
    RESULT = 10
    ERROR = 11

    OPEN = 16
    OPENED = 17
    RESUME = 18
    RESUMED = 19
    PROGRESS = 20
    GONE = 21
    BUSY = 22

    HELLO = 32
    WELCOME = 33
    OFFER = 34
    OFFERED = 35
    WITHDRAW = 36
    FIND = 37
    FOUND = 38
    PING = 39
    PONG = 40
    BYE = 41
    ATTACH = 42
    ATTACHED = 43


CONTROL_KINDS = 16
"""The first kind that the broker itself reads; it relays those below without reading them."""


class Code:
    """What an ERROR is about; the learner raises the exception that belongs to it."""

    VERSION = "version"  # the peers speak different versions
    PROTOCOL = "protocol"  # the receiver of this error broke the protocol
    EXPECTED = "expected"  # a request number was skipped; details: {"expected": its number}
    TOO_LARGE = "too-large"  # the message is over the receiver's limit
    ADDRESS_UNKNOWN = "address-unknown"
    ADDRESS_INVALID = "address-invalid"
    ADDRESS_TAKEN = "address-taken"
    NO_FREE_SLOT = "no-free-slot"
    DENIED = "denied"  # the key lacks a right
    OPEN_FAILED = "open-failed"  # the environment could not be made
    ENVIRONMENT_FAILED = "environment-failed"  # the environment raised
    ATTRIBUTE_DENIED = "attribute-denied"
    ENCODING = "encoding"  # the environment's answer cannot travel
    SESSION_LOST = "session-lost"  # final
    LIMIT = "limit"  # a limit of the policy is reached


class Role:
    """What a peer is to the broker."""

    LEARNER = "learner"
    ENV = "env"  # one serving loop of an env agent
    PROGRESS = "pulse"  # an env agent's progress connection, which reports long steps
    LIVENESS = "presence"  # an env agent's liveness connection, which never sends HELLO


def extension() -> list[Any]:
    """Declare an extension field: a list that the frame carries beside the head (§3.11).

    Release 0.1.0 ignores such fields, so a message can get them without a new version.
    """
    made: list[Any] = field(default_factory=list, metadata={EXTENSION: True})
    return made


EXTENSION = "extension"  # marks extension fields in the metadata of their dataclass
LIVENESS_PREFIX = b"\x02"  # the first byte of a liveness connection's routing id


# --- the gym dialogue -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reset:
    """Start an episode. `seed`: int, list (a vector of environments) or None; `options`: dict."""

    seed: Any = None
    options: Any = None


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to RESET."""

    observation: Any
    info: Any


@dataclass(frozen=True, slots=True)
class Act:
    """One step with this action."""

    action: Any


@dataclass(frozen=True, slots=True)
class Percept:
    """The answer to ACT: what `Env.step` returned, with the very types it returned."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


@dataclass(frozen=True, slots=True)
class Close:
    """End the session. Idempotent."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The session has ended and its slot is free."""


@dataclass(frozen=True, slots=True)
class Render:
    """Render the environment in the session's render mode."""


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """The answer to RENDER: what `Env.render` returned."""

    frame: Any


@dataclass(frozen=True, slots=True)
class Call:
    """Read (`get`), write (`set`) or call (`call`) an attribute that the agent hands out."""

    mode: str
    name: str
    args: Any = ()
    kwargs: Any = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to CALL."""

    value: Any


@dataclass(frozen=True, slots=True)
class Error:
    """A refusal or a failure; a legal answer to every request."""

    code: str
    text: str
    details: dict[str, Any] = field(default_factory=dict)


# --- sessions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Ask for a session. The broker chooses the agent, mints the sid and fills `learner`.

    `nonce`: 16 random bytes, the session's secret; the same nonce opens the same session.
    `num_envs`: 0 for a plain environment, n for a vector of n. `challenge`: the X25519 public key
    of a learner that pins the agent and wants the session signed, else b"".
    """

    address: str
    nonce: bytes
    render_mode: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    num_envs: int = 0
    autoreset_mode: str = ""
    direct: bool = False
    learner: str = ""
    challenge: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is open. Spaces are descriptions (`protocol.spaces.describe`).

    For a vector the `single_` spaces are those of one environment; for a plain environment they
    are None. `agent`: its host and process, for people. `direct`: {"urls", "host", "key"} of the
    agent's direct endpoint, or None. `key`: the agent's public key (z85) if the session is
    signed, else b"".
    """

    observation_space: Any
    action_space: Any
    single_observation_space: Any
    single_action_space: Any
    spec: dict[str, Any]
    metadata: dict[str, Any]
    render_mode: str | None
    num_envs: int
    limits: dict[str, Any]
    agent: str
    direct: dict[str, Any] | None = None
    key: bytes = b""
    capabilities: list[Any] = extension()


@dataclass(frozen=True, slots=True)
class Resume:
    """Bind the session in the header to this connection. `nonce` proves that it is the learner's.

    `take_over`: bind it even though another connection, now silent, still holds it.
    """

    nonce: bytes
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session is bound to this connection."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The request in the header is being executed, since `since_s` seconds."""

    since_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The session in the header is lost, and why. Final."""

    reason: str


@dataclass(frozen=True, slots=True)
class Busy:
    """The frame was not delivered; send the same bytes again after `retry_after_s` seconds.

    Reasons: see `BusyReason`.
    """

    reason: str
    retry_after_s: float = 0.05


class BusyReason:
    """Why a frame was not delivered."""

    HELLO = "hello"  # the broker does not know this connection: HELLO and RESUME first
    STARTING = "starting"  # the broker has just started; the agent may still announce the session
    UNREACHABLE = "unreachable"  # the other side's connection is down; it may come back
    QUEUE_FULL = "queue-full"  # the other side does not read
    RATE = "rate"  # over the policy's steps per second


# --- peers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """A peer introduces itself, on every new connection and to every new broker.

    `agent`: 16 random bytes, the same for all connections of one process. `sessions`: the live
    sessions of a serving loop, [sid, nonce, address, learner] each.
    """

    role: str
    agent: bytes
    software: str
    host: str
    sessions: list[Any] = field(default_factory=list)
    capabilities: list[Any] = extension()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The broker's answer. `epoch`: a random number of this run of the broker.

    `identity`: that of the peer's key, or "" without keys. `max_message`: bytes. `lane`: where a
    peer of the broker's host may dial a lane, which `ticket` shows to be its own; "" and b"" for
    others.
    """

    epoch: int
    software: str
    identity: str
    max_message: int
    lease_s: float
    local_channel: str = ""
    attach_token: bytes = b""
    capabilities: list[Any] = extension()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a serving loop offers under an address. `capacity`: sessions at once.

    `digest` stands for what all agents of a pool must share: env id and spaces.
    """

    address: str
    env_id: str
    observation_space: Any
    action_space: Any
    spec: dict[str, Any]
    metadata: dict[str, Any]
    capacity: int
    digest: bytes
    direct: str | None = None
    capabilities: list[Any] = extension()


@dataclass(frozen=True, slots=True)
class Offered:
    """The offer stands."""

    address: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """No new sessions for this address; running ones go on."""

    address: str


@dataclass(frozen=True, slots=True)
class Find:
    """What is on offer? `address`: one of them, or "" for all."""

    address: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to FIND: one dict per address and agent (docs/protocol.md §6)."""

    offers: list[Any]


@dataclass(frozen=True, slots=True)
class Ping:
    """Is the session in the header (0: just the broker) alive?"""


@dataclass(frozen=True, slots=True)
class Pong:
    """It is. `in_step_s`: for how long it has been executing a request, or None."""

    in_step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender leaves, on purpose."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Attach:
    """This connection is a lane of the peer that was given this ticket."""

    attach_token: bytes


@dataclass(frozen=True, slots=True)
class Attached:
    """So it is."""


Message = (
    Reset
    | Status
    | Act
    | Percept
    | Close
    | Closed
    | Render
    | RenderedFrame
    | Call
    | Result
    | Error
    | Open
    | Opened
    | Resume
    | Resumed
    | Progress
    | Gone
    | Busy
    | Hello
    | Welcome
    | Offer
    | Offered
    | Withdraw
    | Find
    | Found
    | Ping
    | Pong
    | Bye
    | Attach
    | Attached
)

TYPES: dict[Kind, type[Message]] = {
    Kind.FRAME if t is RenderedFrame else Kind[t.__name__.upper()]: t for t in Message.__args__
}
KINDS: dict[type[Message], Kind] = {t: kind for kind, t in TYPES.items()}
