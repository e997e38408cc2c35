"""The bytes of every message, so that nobody changes the wire without seeing it.

`python -m tests.protocol.test_golden` writes the file anew, after a change that is meant.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from protocol import spaces
from protocol.codec import PLAIN, Codec
from protocol.messages import (
    TYPES,
    Act,
    Busy,
    Bye,
    Call,
    Close,
    Closed,
    Error,
    Find,
    Found,
    Frame,
    Gone,
    Hello,
    Message,
    Offer,
    Offered,
    Open,
    Opened,
    Percept,
    Ping,
    Pong,
    Progress,
    Render,
    Reset,
    Result,
    Resume,
    Resumed,
    Status,
    Welcome,
    Withdraw,
)
from tests.sameness import assert_same

FILE = Path(__file__).parents[1] / "golden" / "messages.txt"
SID, SEQ = 0x0123456789ABCDEF, 7
NONCE = bytes(range(16))
OBSERVATION = np.array([0.5, -1.0], np.float32)
COMPILED = Codec(
    spaces.compile(Box(-1, 1, (2,), np.float32)), spaces.compile(Discrete(3, dtype=np.int64))
)
IMAGE = np.arange(4096, dtype=np.uint8)

MESSAGES: dict[str, tuple[Codec, Message]] = {
    "reset": (PLAIN, Reset(42, {"low": -0.5})),
    "status": (PLAIN, Status(OBSERVATION, {"mask": (1, True, None)})),
    "status in its space": (COMPILED, Status(OBSERVATION, {})),
    "act": (PLAIN, Act(np.int64(2))),
    "act in its space": (COMPILED, Act(np.int64(2))),
    "percept": (PLAIN, Percept(OBSERVATION, 1.0, False, True, {"big": 2**70})),
    "percept in its space": (COMPILED, Percept(OBSERVATION, np.float64(1.0), False, True, {})),
    "close": (PLAIN, Close()),
    "closed": (PLAIN, Closed()),
    "render": (PLAIN, Render()),
    "frame": (PLAIN, Frame(np.zeros((1, 2, 3), np.uint8))),
    "frame with a tail": (PLAIN, Frame(IMAGE)),
    "call": (PLAIN, Call("call", "action_masks", (1,), {"deep": True})),
    "result": (PLAIN, Result({"value": [1, "two"]})),
    "error": (PLAIN, Error("expected", "Request 9 came, but 7 is next.", {"expected": 7})),
    "open": (PLAIN, Open("lab/cartpole", NONCE, "ansi", {"n": 1}, 4, "NextStep", True, "")),
    "opened": (
        PLAIN,
        Opened(
            spaces.describe(Box(-1, 1, (2,), np.float32)),
            spaces.describe(Discrete(3)),
            None,
            None,
            {"id": "X-v0"},
            {"render_modes": ["ansi"]},
            None,
            0,
            {"attributes": []},
            "",
            None,
        ),
    ),
    "resume": (PLAIN, Resume(NONCE, True)),
    "resumed": (PLAIN, Resumed()),
    "progress": (PLAIN, Progress(2.5)),
    "gone": (PLAIN, Gone("the learner has left")),
    "busy": (PLAIN, Busy("unreachable", 0.05)),
    "hello": (PLAIN, Hello("env", NONCE, "gymwire 1", "host", [[1, NONCE, "a", ""]])),
    "welcome": (PLAIN, Welcome(2**62, "gymwire 1", "", 2**26, 30.0)),
    "offer": (PLAIN, Offer("cartpole", "X-v0", None, None, {}, {}, 8, b"digest", None)),
    "offered": (PLAIN, Offered("cartpole")),
    "withdraw": (PLAIN, Withdraw("cartpole")),
    "find": (PLAIN, Find("")),
    "found": (PLAIN, Found([{"address": "cartpole", "used": 1}])),
    "ping": (PLAIN, Ping()),
    "pong": (PLAIN, Pong(None)),
    "bye": (PLAIN, Bye("done")),
}


def golden() -> dict[str, bytes]:
    """Name → bytes, from the file."""
    found: dict[str, bytes] = {}
    for block in FILE.read_text(encoding="ascii").strip().split("\n\n"):
        name, *rows = block.splitlines()
        found[name.removeprefix("# ")] = bytes.fromhex("".join(rows))
    return found


def write() -> None:
    """Write the file from what the code does now."""
    blocks = []
    for name, (codec, message) in MESSAGES.items():
        text = bytes(codec.encode(message, SID, SEQ)).hex()
        rows = [text[i : i + 96] for i in range(0, len(text), 96)]
        blocks.append("\n".join([f"# {name}", *rows]))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("\n\n".join(blocks) + "\n", encoding="ascii")


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for _, message in MESSAGES.values()} == set(TYPES.values())
    assert golden().keys() == MESSAGES.keys()


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_these_bytes(name: str) -> None:
    codec, message = MESSAGES[name]
    assert bytes(codec.encode(message, SID, SEQ)) == golden()[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_these_bytes_are_the_message(name: str) -> None:
    codec, message = MESSAGES[name]
    back = codec.decode(golden()[name])
    assert type(back) is type(message)
    for field in type(message).__slots__:
        assert_same(getattr(back, field), getattr(message, field), field)


if __name__ == "__main__":
    write()
