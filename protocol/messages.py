"""The messages of the protocol, one frozen type per kind (docs/protocol.md §4).

A message is the body of a frame. The header of the frame carries the session id `sid` (0: none) and
the request number `seq`: that of the request itself, or of the request that a reply answers. Fields
have the order that they have on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

VERSION = 1

NONCE_SIZE = 16  # bytes of the secret of a session
ATTACH_TOKEN_SIZE = 16  # bytes of the secret with which a peer attaches its local channel
AGENT_SIZE = 16  # bytes of the id of a process


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
    OBSERVE = 44
    OBSERVED = 45
    REPORT = 46
    STOP = 47
    STOPPED = 48
    WATCH = 49
    WATCHED = 50


CONTROL_KINDS = 16
"""The first kind that the broker itself reads; it relays those below without reading them."""


class Code:
    """The cause of an ERROR. The learner raises the exception that belongs to it."""

    VERSION = "version"  # the peers speak different versions
    PROTOCOL = "protocol"  # the receiver of this error broke the protocol
    EXPECTED = "expected"  # a request number was skipped; details: {"expected": number}
    TOO_LARGE = "too-large"  # the message exceeds the receiver's limit
    ADDRESS_UNKNOWN = "address-unknown"
    ADDRESS_INVALID = "address-invalid"
    ADDRESS_TAKEN = "address-taken"
    NO_FREE_SLOT = "no-free-slot"
    DENIED = "denied"  # the key lacks a right
    OPEN_FAILED = "open-failed"  # the environment could not be created
    ENVIRONMENT_FAILED = "environment-failed"  # the environment raised
    ATTRIBUTE_DENIED = "attribute-denied"
    ENCODING = "encoding"  # the environment's answer cannot be serialized
    SESSION_LOST = "session-lost"  # final
    LIMIT = "limit"  # a quota of the policy is used up
    NOT_STOPPED = "not-stopped"  # what STOP names is unknown, or cannot be stopped
    NOT_WATCHABLE = "not-watchable"  # the session of a WATCH is unknown, or cannot be watched


class Role:
    """The role of a peer of the broker."""

    LEARNER = "learner"
    ENV = "env"  # one serving loop of an env agent
    PROGRESS = "pulse"  # an env agent's progress connection, which reports long steps
    LIVENESS = "presence"  # an env agent's liveness connection, which never sends HELLO


class EnvKind:
    """The kind of environment that a session uses."""

    ENV = "env"  # a gymnasium.Env
    VECTOR = "vector"  # a gymnasium.vector.VectorEnv
    PARALLEL = "parallel"  # a PettingZoo ParallelEnv
    AEC = "aec"  # a PettingZoo AECEnv


MULTI_AGENT = (EnvKind.PARALLEL, EnvKind.AEC)
"""The kinds of environment with several agents."""

EXTENSION = {"extension": True}
"""The metadata of extension fields, which a frame carries beside its head (§3.11)."""
LIVENESS_PREFIX = b"\x02"  # the first byte of a liveness connection's routing id
LIVENESS_AGENT_SIZE = 15  # bytes of the id of a process that follow it


# --- the gym dialogue -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reset:
    """Start an episode. `seed`: int, list (for a vector) or None; `options`: dict or None."""

    seed: Any = None
    options: Any = None


@dataclass(frozen=True, slots=True)
class Status:
    """Reply to RESET: what `Env.reset` returned."""

    observation: Any
    info: Any


@dataclass(frozen=True, slots=True)
class Act:
    """Take one step with this action."""

    action: Any


@dataclass(frozen=True, slots=True)
class Percept:
    """Reply to ACT: what `Env.step` returned, with the same types."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


@dataclass(frozen=True, slots=True)
class Close:
    """End the session. A second CLOSE has no effect."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Reply to CLOSE: the session has ended, and its slot is free."""


@dataclass(frozen=True, slots=True)
class Render:
    """Render the environment in the session's render mode."""


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """Reply to RENDER: what `Env.render` returned."""

    frame: Any


@dataclass(frozen=True, slots=True)
class Call:
    """Read (`get`), write (`set`) or call (`call`) an attribute that the env agent exposes.

    `mode` may also be one of `capabilities.EACH_MODES`: for some environments of a vector.
    """

    mode: str
    name: str
    args: Any = ()
    kwargs: Any = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Result:
    """Reply to CALL."""

    value: Any


@dataclass(frozen=True, slots=True)
class Error:
    """Reply to any request: it was refused, or it failed. `code`: see `Code`."""

    code: str
    text: str
    details: dict[str, Any] = field(default_factory=dict)


# --- sessions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Open a session. The broker chooses the env agent and fills in the sid and `learner`.

    Attributes:
        nonce: 16 random bytes, the secret of the session; the same nonce opens the same session.
        num_envs: 0 for a single environment, n for a vector of n.
        direct: whether the learner may connect directly.
        learner: the identity of the learner's key.
        challenge: the X25519 public key of a learner that pins the env agent and wants a signed
            session; otherwise b"".
        capabilities: what the learner understands, see `protocol.capabilities`.
        kind: the kind of environment, see `EnvKind`.
        learner_name, learner_host, learner_pid: who the learner is, for the env agent's log: the
            policy's name for its key, its host and its process. The broker fills them in.
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
    capabilities: list[Any] = field(default_factory=list, metadata=EXTENSION)
    kind: str = field(default="", metadata=EXTENSION)
    learner_name: str = field(default="", metadata=EXTENSION)
    learner_host: str = field(default="", metadata=EXTENSION)
    learner_pid: int = field(default=0, metadata=EXTENSION)

    @property
    def env_kind(self) -> str:
        """The kind of environment, also if a learner of 0.1.0 does not name it."""
        return self.kind or (EnvKind.VECTOR if self.num_envs else EnvKind.ENV)


@dataclass(frozen=True, slots=True)
class Opened:
    """Reply to OPEN: the session is open. Spaces are descriptions (`spaces.describe`).

    Attributes:
        single_observation_space: that of one environment of a vector; None without a vector.
        single_action_space: likewise.
        limits: what the env agent allows and understands: `attributes`, the names that it exposes;
            `stamps`, whether it takes time stamps; `capabilities`, see `protocol.capabilities`.
        agent: host and process of the env agent, for people.
        direct: {"urls", "host", "key"} of the env agent's direct endpoint, or None.
        key: the public key (z85) of the env agent if the session is signed; otherwise b"".
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


@dataclass(frozen=True, slots=True)
class Resume:
    """Bind the session in the header to this connection.

    `nonce` proves that the session is the sender's. `take_over`: bind it even if another connection
    of this learner still has it.
    """

    nonce: bytes
    take_over: bool = False


@dataclass(frozen=True, slots=True)
class Resumed:
    """Reply to RESUME: the session is bound to this connection."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The request in the header has been running for `since_s` seconds."""

    since_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The session in the header is lost, for this reason. Final.

    `ended_by`: see `EndedBy`; "" if it is none of these, or unknown.
    """

    reason: str
    ended_by: str = field(default="", metadata=EXTENSION)


class EndedBy:
    """Who or what has ended a session, where that decides what a learner can do."""

    OPERATOR = "operator"
    POLICY = "policy"  # the broker's, which allows no other session either
    ENVIRONMENT = "environment"  # its process or server is gone; the env agent runs on


@dataclass(frozen=True, slots=True)
class Busy:
    """The frame was not delivered: send the same bytes again after `retry_after_s` seconds.

    `reason`: see `BusyReason`.
    """

    reason: str
    retry_after_s: float = 0.05


class BusyReason:
    """Why a frame was not delivered."""

    HELLO = "hello"  # the broker does not know this connection: send HELLO and RESUME first
    STARTING = "starting"  # the broker has just started and does not know all sessions yet
    UNREACHABLE = "unreachable"  # the other side is disconnected; it may reconnect
    QUEUE_FULL = "queue-full"  # the other side does not read
    RATE = "rate"  # over the policy's steps per second


# --- peers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """Introduce this peer: on every new connection, and to every new broker.

    Attributes:
        role: see `Role`.
        agent: 16 random bytes, the same for all connections of one process.
        sessions: the live sessions of a serving loop, each as [sid, nonce, address, learner].
        capabilities: what this peer understands, see `protocol.capabilities`.
        pid: the id of this process, for people; 0: unknown.
    """

    role: str
    agent: bytes
    software: str
    host: str
    sessions: list[Any] = field(default_factory=list)
    capabilities: list[Any] = field(default_factory=list, metadata=EXTENSION)
    pid: int = field(default=0, metadata=EXTENSION)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Reply to HELLO.

    Attributes:
        epoch: a random number that identifies this run of the broker.
        identity: that of the peer's key, or "" without keys.
        max_message: bytes of a frame.
        lease_s: how long the broker keeps the sessions of a disconnected learner.
        local_channel: the URL of the local channel, for peers on the broker's host; else "".
        attach_token: what ATTACH must carry over it; else b"".
        capabilities: what the broker understands, see `protocol.capabilities`.
    """

    epoch: int
    software: str
    identity: str
    max_message: int
    lease_s: float
    local_channel: str = ""
    attach_token: bytes = b""
    capabilities: list[Any] = field(default_factory=list, metadata=EXTENSION)


@dataclass(frozen=True, slots=True)
class Offer:
    """Offer environments under an address.

    Attributes:
        capacity: sessions at once.
        digest: a hash of what all env agents of a pool must share, the env id and the spaces.
        capabilities: what the env agent understands, see `protocol.capabilities`.
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
    capabilities: list[Any] = field(default_factory=list, metadata=EXTENSION)


@dataclass(frozen=True, slots=True)
class Offered:
    """Reply to OFFER: the offer is accepted."""

    address: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take no new sessions for this address; running ones continue."""

    address: str


@dataclass(frozen=True, slots=True)
class Find:
    """List the offers: for one address, or all with "".

    `after`: what the FOUND of the previous page had as `rest`; empty for the first page.
    """

    address: str = ""
    after: list[Any] = field(default_factory=list, metadata=EXTENSION)


@dataclass(frozen=True, slots=True)
class Found:
    """Reply to FIND: one dict per address and env agent (docs/protocol.md §6).

    `rest`: what FIND needs for the next page; empty if this is the last one.
    """

    offers: list[Any]
    rest: list[Any] = field(default_factory=list, metadata=EXTENSION)


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask whether the session in the header (0: only the broker) is alive."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Reply to PING. `in_step_s`: how long the session's request has been running, or None."""

    in_step_s: float | None = None


@dataclass(frozen=True, slots=True)
class Bye:
    """Leave on purpose."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Attach:
    """Make this connection the local channel of the peer that got this token."""

    attach_token: bytes


@dataclass(frozen=True, slots=True)
class Attached:
    """Reply to ATTACH: the local channel is ready."""


# --- operators ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observe:
    """Ask for the state of the broker.

    `after`: what the OBSERVED of the previous page had as `rest`; empty for the first page.
    """

    after: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Observed:
    """Reply to OBSERVE: one page of the state of the broker (docs/protocol.md §6.5).

    Attributes:
        broker: what this run of the broker is and has counted.
        offers: one dict per address and process.
        sessions: one dict per session.
        rest: what OBSERVE needs for the next page; empty if this is the last one.
    """

    broker: dict[str, Any]
    offers: list[Any]
    sessions: list[Any]
    rest: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """Report the steps of sessions: rows [sid, steps, steps per second, p50, p99, busy, direct].

    docs/protocol.md §6.6 has the meaning of each.
    """

    rows: list[Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """End the session in the header, or, without one, let an env agent drain.

    `agent`: its id in OBSERVED. `reason`: who requests it; the broker fills it in.
    """

    agent: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Reply to STOP. `processes`, `sessions`: how many of both it concerns."""

    processes: int
    sessions: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask for the latest frame of the session in the header.

    Attributes:
        after: the number of the request after which the watcher's last frame was rendered, or 0.
        env: which environment of a vector to show.
    """

    after: int = 0
    env: int = field(default=0, metadata=EXTENSION)


@dataclass(frozen=True, slots=True)
class Watched:
    """Reply to WATCH: at most one frame (docs/protocol.md §6.8).

    Attributes:
        request: the number of the request after which the frame was rendered.
        media_type: "image/png", "text/plain", or "" if there is nothing new.
        data: the frame.
        why: why the session cannot be watched; "" if it can be.
        envs: of how many environments WATCH can choose one; 0: the session has no vector.
    """

    request: int
    media_type: str = ""
    data: bytes = b""
    why: str = ""
    envs: int = field(default=0, metadata=EXTENSION)


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
    | Observe
    | Observed
    | Report
    | Stop
    | Stopped
    | Watch
    | Watched
)

TYPES: dict[Kind, type[Message]] = {
    Kind.FRAME if t is RenderedFrame else Kind[t.__name__.upper()]: t for t in Message.__args__
}
KINDS: dict[type[Message], Kind] = {t: kind for kind, t in TYPES.items()}
