"""The transcript of docs/protocol.md §0: a broker's frames, and what the example answers to them.

Run `python -m tests.docs.transcript` to write it into the document again.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import zmq
from gymnasium.spaces import Box, Discrete

from gymwire.protocol import spaces
from gymwire.protocol.codec import HEADER_SIZE, Codec, read_header
from gymwire.protocol.messages import (
    Act,
    Close,
    Kind,
    Message,
    Offered,
    Open,
    Reset,
    Welcome,
)
from tests.docs.dumps import dump
from tests.processes import PATIENCE_S, ROOT

PATH = ROOT / "docs" / "protocol.md"
EXAMPLE = ROOT / "examples" / "env_agent_from_scratch.py"
BLOCK = re.compile(r"```transcript\n(.*?)```", re.DOTALL)
CODEC = Codec(
    spaces.compile(Box(0, 10, (1,), np.float32)), spaces.compile(Discrete(2, dtype=np.int64))
)
NONCE, AGENT, HOST = bytes(range(16, 32)), bytes(range(16)), "host-a"
SID = 0x1122334455667788

# What the broker sends, and how many frames the agent sends before that.
BROKER: tuple[tuple[int, Message, int, int], ...] = (
    (1, Welcome(7, "gymwire 0.2.0", "", 67108864, 30.0), 0, 0),
    (1, Offered("corridor"), 0, 0),
    (0, Open("corridor", NONCE, None, {}, 0, "", True), SID, 1),
    (1, Reset(3), SID, 1),
    (1, Act(np.int64(1)), SID, 2),
    (1, Act(np.int64(1)), SID, 2),
    (1, Close(), SID, 3),
)


def play() -> list[tuple[str, bytes]]:
    """Return the frames of a session with the example, each with its direction."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
    port = router.bind_to_random_port("tcp://127.0.0.1")
    agent = subprocess.Popen([sys.executable, str(EXAMPLE), f"tcp://127.0.0.1:{port}"])
    frames: list[tuple[str, bytes]] = []
    rid = b""

    def receive() -> None:
        nonlocal rid
        rid, frame = router.recv_multipart()
        while read_header(frame).kind is Kind.PING:  # on a busy machine a second passes
            rid, frame = router.recv_multipart()
        frames.append(("E → B", _without_chance(frame)))

    try:
        for answers, message, sid, seq in BROKER:
            for _ in range(answers):
                receive()
            frame = bytes(CODEC.encode(message, sid, seq))
            frames.append(("B → E", frame))
            router.send_multipart([rid, frame])
        receive()
    finally:
        agent.terminate()
        agent.wait(PATIENCE_S)
        context.destroy(linger=0)
    return frames


def _without_chance(frame: bytes) -> bytes:
    """Return the frame with the document's host name and agent token in a HELLO."""
    if read_header(frame).kind is not Kind.HELLO:
        return frame
    role, _, software, _, *rest = msgpack.unpackb(frame[HEADER_SIZE:])
    head: bytes = msgpack.packb([role, AGENT, software, HOST, *rest])
    return frame[:4] + len(head).to_bytes(4, "little") + frame[8:HEADER_SIZE] + head


def text(frames: list[tuple[str, bytes]]) -> str:
    """Return the block of the document."""
    parts = [
        f"{direction} {read_header(frame).kind.name}\n{dump(frame)}\n"
        for direction, frame in frames
    ]
    return "\n".join(parts)


def documented(document: Path = PATH) -> str:
    """Return the block that the document has."""
    [block] = BLOCK.findall(document.read_text(encoding="utf-8"))
    return str(block)


if __name__ == "__main__":
    written = PATH.read_text(encoding="utf-8")
    block = f"```transcript\n{text(play())}```"
    PATH.write_text(BLOCK.sub(lambda _: block, written), encoding="utf-8")
