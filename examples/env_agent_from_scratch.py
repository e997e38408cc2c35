"""An env agent without gymwire, written from docs/protocol.md with pyzmq and msgpack.

It serves a corridor: the learner starts at a random position and gets a reward of 1 at the right
end.

    gymwire broker
    python examples/env_agent_from_scratch.py tcp://127.0.0.1:5555
    gymwire run corridor --episodes 3

§ in comments refers to docs/protocol.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket as hostsocket
import struct
import sys
import time
import traceback
from typing import Any, NamedTuple

import msgpack
import zmq

ADDRESS, ENV_ID, CAPACITY = "corridor", "Corridor-v0", 4
LAST = 10
HEADER = struct.Struct("<BBBBIQQ")  # §3.7: magic, version, kind, flags, head_len, sid, seq
COMPACT = 1  # flag: values are in the compact form of their spaces (§11.8)
OBSERVATION = [["Box", "<f4", [1], 0.0, 10.0]]  # §11
ACTION = [["Discrete", "<i8", 2, 0]]


class Kind:
    """The message kinds that this agent needs (§4)."""

    RESET, STATUS, ACT, PERCEPT, CLOSE, CLOSED, RENDER, FRAME, CALL, RESULT, ERROR = range(1, 12)
    OPEN, OPENED, GONE, BUSY = 16, 17, 21, 22
    HELLO, WELCOME, OFFER, OFFERED, PING, BYE = 32, 33, 34, 35, 39, 41


class Corridor:
    """The environment. It returns observations in the compact form of their space (§11.8)."""

    def __init__(self) -> None:
        self._random, self._position = random.Random(), 0

    def reset(self, seed: int | None) -> list[Any]:
        """Return the fields of STATUS."""
        if seed is not None:
            self._random.seed(seed)
        self._position = self._random.randrange(LAST)
        return [struct.pack("<f", self._position), {}]

    def step(self, action: int) -> list[Any]:
        """Return the fields of PERCEPT."""
        if action not in (0, 1):
            raise ValueError(f"{action} is neither 0 (left) nor 1 (right)")
        self._position = max(0, self._position + (1 if action else -1))
        at_end = self._position == LAST
        return [struct.pack("<f", self._position), float(at_end), at_end, False, {}]


class Session:
    """An environment, and the last request and reply, to execute each request once (§7.1)."""

    def __init__(self, nonce: bytes, learner: str) -> None:
        self.nonce, self.learner = nonce, learner
        self.env, self.in_episode = Corridor(), False
        self.last, self.request, self.reply = 0, b"", b""


class Message(NamedTuple):
    """A received message. Its head is decoded only when needed."""

    kind: int
    sid: int
    seq: int
    head: bytes

    def fields(self, count: int) -> list[Any]:
        """Decode the fields. Raises ValueError if there are not `count`."""
        fields = msgpack.unpackb(self.head, strict_map_key=False)
        if not isinstance(fields, list) or len(fields) != count:
            raise ValueError(f"A message of kind {self.kind} must have {count} fields.")
        return fields

    def reply(self, kind: int, *fields: Any, flags: int = 0) -> bytes:
        """Encode a reply to this message."""
        return encode(kind, *fields, sid=self.sid, seq=self.seq, flags=flags)


def encode(kind: int, *fields: Any, sid: int = 0, seq: int = 0, flags: int = 0) -> bytes:
    """Encode a message as a frame."""
    head: bytes = msgpack.packb(fields)
    return HEADER.pack(0xE7, 1, kind, flags, len(head), sid, seq) + head


def read(frame: bytes) -> Message:
    """Check a frame's header (§3.7). Raises ValueError or struct.error."""
    magic, version, kind, _flags, head_len, sid, seq = HEADER.unpack_from(frame)
    if magic != 0xE7 or version != 1 or HEADER.size + head_len > len(frame):
        raise ValueError("Not a gymwire frame of version 1.")
    return Message(kind, sid, seq, frame[HEADER.size : HEADER.size + head_len])


def number(action: Any) -> int:
    """Return an action as an int. It may be a NumPy integer on the wire (§10.1)."""
    if isinstance(action, msgpack.ExtType) and action.code == 2:
        dtype, _, raw = action.data.partition(b"\0")
        if dtype[1:2] in (b"i", b"u"):
            return int.from_bytes(raw, "big" if dtype[:1] == b">" else "little")
    if type(action) is not int:
        raise TypeError(f"{action!r} is not an action: send 0 (left) or 1 (right)")
    return action


class Agent:
    """One serving loop: a connection to the broker and the sessions on it."""

    def __init__(self, broker: str) -> None:
        self._token = os.urandom(16)
        self._sessions: dict[int, Session] = {}
        self._ping_at = float("inf")  # not before HELLO
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))  # §3.3
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 1500)  # §3.4
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4000)
        self._socket.setsockopt(zmq.HEARTBEAT_TTL, 4000)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # §3.5
        self._socket.setsockopt(zmq.RCVTIMEO, 100)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.Event.HANDSHAKE_SUCCEEDED
        )
        self._socket.connect(broker)

    def run(self) -> None:
        """Serve until the process ends."""
        while True:
            self.receive()

    def receive(self) -> None:
        """Handle a message, if one comes within 100 ms."""
        if self._monitor.poll(0):  # §4.3.2: connected, or reconnected
            self._monitor.recv_multipart()
            self._hello()
        elif time.monotonic() >= self._ping_at:  # §0.8
            self._ping_at = time.monotonic() + 1
            self._send(encode(Kind.PING))
        with contextlib.suppress(zmq.Again, ValueError, TypeError, struct.error):
            frame, *more = self._socket.recv_multipart()
            if not more:  # §3.2
                self._handle(read(frame), frame)

    def close(self) -> None:
        """Leave the broker."""
        self._send(encode(Kind.BYE, "env agent stopped"))
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close(linger=300)

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(zmq.Again):  # the peer repeats its request (§7.5)
            self._socket.send(frame, zmq.DONTWAIT)

    def _hello(self) -> None:
        rows = [[sid, s.nonce, ADDRESS, s.learner] for sid, s in self._sessions.items()]
        self._send(
            encode(Kind.HELLO, "env", self._token, "scratch", hostsocket.gethostname(), rows)
        )
        self._ping_at = time.monotonic() + 1

    def _handle(self, message: Message, frame: bytes) -> None:
        match message.kind:
            case Kind.WELCOME:
                digest = hashlib.sha256(msgpack.packb([ENV_ID, OBSERVATION, ACTION])).digest()
                about = [{"id": ENV_ID}, {"render_modes": []}, CAPACITY, digest, None]
                self._send(encode(Kind.OFFER, ADDRESS, ENV_ID, OBSERVATION, ACTION, *about))
            case Kind.OFFERED:
                print("serving", ADDRESS, flush=True)
            case Kind.BUSY:
                self._hello()
            case Kind.GONE:
                self._sessions.pop(message.sid, None)
            case Kind.ERROR if message.sid == 0:
                sys.exit(f"The broker refused: {message.fields(3)[1]}")
            case Kind.OPEN:
                self._send(self._open(message))
            case Kind.RESET | Kind.ACT | Kind.RENDER | Kind.CALL | Kind.CLOSE:
                reply = self._reply_to(message, frame)
                if reply is not None:
                    self._send(reply)

    def _open(self, message: Message) -> bytes:
        about = [{"id": ENV_ID}, {"render_modes": []}, None, 0, {"attributes": []}, "", None, b""]
        opened = message.reply(Kind.OPENED, OBSERVATION, ACTION, None, None, *about)
        if message.sid in self._sessions:  # §7.4
            return opened
        address, nonce, render_mode, kwargs, num_envs, _, _, learner, _ = message.fields(9)
        if address != ADDRESS:
            return error(message, "address-unknown", f"Only {ADDRESS} is served here.")
        if render_mode is not None or kwargs or num_envs:
            text = "The corridor supports no render mode, no keyword arguments and no vectors."
            return error(message, "open-failed", text)
        self._sessions[message.sid] = Session(nonce, learner)
        return opened

    def _reply_to(self, message: Message, frame: bytes) -> bytes | None:
        """Apply the table of §7.2: execute the next request, repeat the last reply, or refuse."""
        session, seq = self._sessions.get(message.sid), message.seq
        if session is None:
            if message.kind == Kind.CLOSE:
                return message.reply(Kind.CLOSED)
            return error(message, "session-lost", "The corridor does not know this session.")
        if seq > session.last + 1:
            text = f"Got request {seq}; expected {session.last + 1}."
            return error(message, "expected", text, expected=session.last + 1)
        if seq < session.last:
            return None
        if seq == session.last:
            if frame == session.request:
                return session.reply
            return error(message, "protocol", "A repeated request must have the same bytes.")
        if message.kind == Kind.ACT and not session.in_episode:  # §7.3: does not use up the number
            return error(message, "protocol", "ACT is not allowed before RESET.")
        session.reply = self._execute(session, message)
        session.last, session.request = seq, frame
        return session.reply

    def _execute(self, session: Session, message: Message) -> bytes:
        counts = {Kind.RESET: 2, Kind.ACT: 1, Kind.CLOSE: 0, Kind.RENDER: 0, Kind.CALL: 4}
        try:
            fields = message.fields(counts[message.kind])
        except (ValueError, TypeError) as failure:  # §7.3: uses up the number
            return error(message, "protocol", str(failure))
        try:
            match message.kind:
                case Kind.RESET:
                    status = session.env.reset(fields[0])
                    session.in_episode = True
                    return message.reply(Kind.STATUS, *status, flags=COMPACT)
                case Kind.ACT:
                    percept = session.env.step(number(fields[0]))
                    return message.reply(Kind.PERCEPT, *percept, flags=COMPACT)
                case Kind.CLOSE:
                    del self._sessions[message.sid]
                    return message.reply(Kind.CLOSED)
                case Kind.CALL:
                    return error(message, "attribute-denied", "The corridor exposes no attributes.")
            raise NotImplementedError("The corridor cannot be rendered.")
        except Exception as failure:  # noqa: BLE001 - every failure becomes a reply (§7.2)
            kind, trace = type(failure).__qualname__, traceback.format_exc()
            return error(message, "environment-failed", str(failure), type=kind, traceback=trace)


def error(message: Message, code: str, text: str, **details: Any) -> bytes:
    """Encode an ERROR in reply to this message (§12)."""
    return message.reply(Kind.ERROR, code, text, details)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    agent = Agent(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555")
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(agent):
        agent.run()
