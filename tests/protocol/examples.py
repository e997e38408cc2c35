"""One example of each message, and more of some: those of docs/protocol.md, and others."""

from __future__ import annotations

import hashlib

import numpy as np
from gymnasium.spaces import Box, Discrete

from gymwire.protocol import values
from gymwire.protocol.codec import Codec
from gymwire.protocol.messages import (
    Act,
    Attach,
    Attached,
    Busy,
    BusyReason,
    Bye,
    Call,
    Close,
    Closed,
    Code,
    Error,
    Find,
    Found,
    Gone,
    Hello,
    Message,
    Observe,
    Observed,
    Offer,
    Offered,
    Open,
    Opened,
    Percept,
    Ping,
    Pong,
    Progress,
    Render,
    RenderedFrame,
    Report,
    Reset,
    Result,
    Resume,
    Resumed,
    Role,
    Status,
    Stop,
    Stopped,
    Watch,
    Watched,
    Welcome,
    Withdraw,
)
from gymwire.protocol.spaces import compile, describe

OBSERVATION = Box(-1.0, 1.0, (2,), np.float32)
ACTION = Discrete(2)
NONCE = bytes(range(16))
SID = 0x1122334455667788

_BOX, _DISCRETE = describe(OBSERVATION), describe(ACTION)
_DIGEST = hashlib.sha256(values.encode(["Toy-v0", _BOX, _DISCRETE])).digest()
_OPEN = Open("toy", NONCE, None, {}, 0, "", False)
OBSERVED = np.array([0.5, -1.0], np.float32)
_OTHER = np.array([0.5, -1.0])  # does not fit the space

# Name → the message, its sid and its seq; in the order of a session, as the document shows them.
DOCUMENTED: dict[str, tuple[Message, int, int]] = {
    "HELLO": (Hello(Role.ENV, NONCE, "toy 1", "host-a"), 0, 0),
    "WELCOME": (
        Welcome(7, "gymwire 1.0", "", 67108864, 30.0, "unix:///tmp/toy/lanes", NONCE[::-1]),
        0,
        0,
    ),
    "ATTACH": (Attach(NONCE[::-1]), 0, 0),
    "OFFER": (
        Offer("toy", "Toy-v0", _BOX, _DISCRETE, {}, {}, 4, _DIGEST),
        0,
        1,
    ),
    "OFFERED": (Offered("toy"), 0, 1),
    "FIND": (Find(), 0, 1),
    "OPEN": (_OPEN, 0, 2),
    "OPEN, forwarded": (_OPEN, SID, 2),
    "OPENED": (
        Opened(
            _BOX,
            _DISCRETE,
            None,
            None,
            {"id": "Toy-v0"},
            {"render_modes": []},
            None,
            0,
            {"attributes": []},
            agent="",
        ),
        SID,
        2,
    ),
    "RESET": (Reset(42), SID, 1),
    "STATUS": (Status(OBSERVED, {}), SID, 1),
    "ACT": (Act(np.int64(1)), SID, 2),
    "ACT, self-describing": (Act(1), SID, 2),
    "PERCEPT": (Percept(OBSERVED, 1.0, False, True, {"a": (1, np.float32(2))}), SID, 2),
    "CALL": (Call("get", "valid_actions"), SID, 3),
    "RESULT": (Result({"value": np.array([True, False])}), SID, 3),
    "RESULT, with a tail": (Result(np.zeros(1024, np.float32)), SID, 3),
    "ERROR": (Error(Code.EXPECTED, "Request 5 came, but 4 is next.", {"expected": 4}), SID, 5),
    "PROGRESS": (Progress(1.5), SID, 4),
    "BUSY": (Busy(BusyReason.UNREACHABLE, 0.05), SID, 4),
    "PING": (Ping(), SID, 4),
    "PONG": (Pong(), SID, 4),
    "RESUME": (Resume(NONCE), SID, 4),
    "RESUMED": (Resumed(), SID, 4),
    "CLOSE": (Close(), SID, 4),
    "CLOSED": (Closed(), SID, 4),
    "GONE": (Gone("the learner has left"), SID, 0),
    "OBSERVE": (Observe(), 0, 1),
    "REPORT": (Report([[SID, 1200, 400.0, 0.001, 0.0025, 0.0, False]]), 0, 0),
    "STOP": (Stop(), SID, 2),
    "STOPPED": (Stopped(0, 1), SID, 2),
    "WATCH": (Watch(3), SID, 5),
    "WATCHED": (Watched(4, "text/plain", b"#.@"), SID, 5),
}

OTHERS: dict[str, tuple[Message, int, int]] = {
    "ATTACHED": (Attached(), 0, 0),
    "BYE": (Bye("done"), 0, 0),
    "CALL, with arguments": (Call("call", "action_masks", (1,), {"deep": True}), SID, 7),
    "FOUND": (Found([{"address": "toy", "used": 1}]), 0, 1),
    "FRAME": (RenderedFrame(np.zeros((1, 2, 3), np.uint8)), SID, 7),
    "FRAME, with a tail": (RenderedFrame(np.arange(4096, dtype=np.uint8)), SID, 7),
    "HELLO, with capabilities": (
        Hello("learner", NONCE, "toy 1", "host-a", capabilities=["extensions"]),
        0,
        0,
    ),
    "HELLO, with sessions": (Hello("env", NONCE, "toy 1", "host-a", [[1, NONCE, "a", ""]]), 0, 0),
    "OBSERVE, the next page": (Observe(["sessions", 99, 100]), 0, 2),
    "OBSERVED": (
        Observed({"epoch": 7, "busy": {"rate": 1}}, [{"address": "toy"}], [{"sid": SID}], []),
        0,
        1,
    ),
    "OPEN, of a vector": (Open("lab/toy", NONCE, "ansi", {"n": 1}, 4, "NextStep", True, ""), 0, 3),
    "PERCEPT, self-describing": (
        Percept(_OTHER, np.float64(1.0), False, True, {"big": 2**70}),
        SID,
        7,
    ),
    "STOP, of an env agent": (Stop("0a1b2c3d4e", "an operator"), 0, 3),
    "RENDER": (Render(), SID, 7),
    "RESET, with options": (Reset(None, {"low": -0.5}), SID, 7),
    "RESUME, to take over": (Resume(NONCE, True), SID, 7),
    "STATUS, self-describing": (Status(_OTHER, {"mask": (1, True, None)}), SID, 7),
    "WITHDRAW": (Withdraw("toy"), 0, 2),
}
EXAMPLES = DOCUMENTED | OTHERS

CODEC = Codec(compile(OBSERVATION), compile(ACTION))
