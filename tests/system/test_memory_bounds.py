"""What a broker and an env agent bear while an env agent that is in a step is flooded."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import zmq

from gymwire import ProxyEnv
from gymwire.protocol import codec
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Act, BusyReason, Hello, Kind, Message, Open, Reset, Role
from tests.chaos.fleet import free_port, resident
from tests.processes import PATIENCE_S, programs
from tests.protocol.transport.test_inflow import message
from tests.protocol.transport.test_stalled_readers import dial_as_dealer, fill_and_reset

MIB = 1024 * 1024
FRAME, FRAMES, BOUND = 16 * MIB, 40, 160 * MIB


class Flooder:
    """A learner that sends what it likes."""

    def __init__(self, url: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
        self.socket.sndhwm = 1
        self.socket.connect(url)
        self.sid = self.seq = 0

    def open(self, address: str) -> None:
        """Begin an episode of a new session."""
        self.say(Hello(Role.LEARNER, os.urandom(16), "test", "elsewhere"))
        self.wait_for(Kind.WELCOME)
        self.say(Open(address, os.urandom(16)))
        self.wait_for(Kind.OPENED)
        self.seq = 1
        self.say(Reset(1, {}))
        self.wait_for(Kind.STATUS)

    def say(self, message: Message) -> None:
        self.socket.send(PLAIN.encode(message, self.sid, self.seq))
        self.seq += 1

    def wait_for(self, kind: Kind) -> bytes:
        """Return the next frame of this kind."""
        while self.socket.poll(int(PATIENCE_S * 1000)):
            data = self.socket.recv()
            header = codec.read_header(data)
            if header.kind is kind:
                self.sid = header.sid
                return data
        raise AssertionError(f"no {kind.name}")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_frames_for_an_env_agent_in_a_step_do_not_pile_up() -> None:
    with programs() as started:
        broker, url = started.broker("tcp://127.0.0.1:*", "--no-local-channels")
        agent = started.env_agent(
            url, "--address", "slow", "--env", "tests.odd_envs:Slow", "--direct", "never"
        )
        one = Flooder(url)
        try:
            one.open("slow")
            before = resident(broker.process.pid), resident(agent.process.pid)
            one.say(Act(600))
            one.wait_for(Kind.PROGRESS)
            large = PLAIN.encode(Act(bytes(FRAME)), one.sid, one.seq)
            one.socket.send(large)
            for _ in range(FRAMES):
                one.socket.send(large)
                busy = PLAIN.decode(one.wait_for(Kind.BUSY))
                assert getattr(busy, "reason", None) == BusyReason.QUEUE_FULL
            for program, most in zip((broker, agent), before, strict=True):
                assert resident(program.process.pid) - most < BOUND
        finally:
            one.context.destroy(linger=0)
            agent.kill()


def test_a_reset_behind_a_full_queue_does_not_end_an_env_agent_in_a_step() -> None:
    port = free_port()
    with programs() as started:
        _, url = started.broker("tcp://127.0.0.1:*", "--no-local-channels")
        agent = started.env_agent(
            *(url, "--address", "slow", "--env", "tests.odd_envs:Slow"),
            *("--threads", "1", "--direct", f"tcp://127.0.0.1:{port}"),
        )
        one = Flooder(url)
        try:
            one.open("slow")
            one.say(Act(3))
            one.wait_for(Kind.PROGRESS)
            fill_and_reset(port)
            one.wait_for(Kind.PERCEPT)
            with ProxyEnv("slow", url) as env:  # for which all direct connections are read
                env.reset(seed=1)
                env.step(0)
        finally:
            one.context.destroy(linger=0)
        assert agent.process.poll() is None


def takes_without_end(peer: socket.socket, parts: int) -> bool:
    """Return whether a connection takes so many parts of one message, of 1 MiB each."""
    part = message(MIB, more=True)
    try:
        for _ in range(parts):
            peer.sendall(part)
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tcp_info")
@pytest.mark.parametrize("victim", ["broker", "env agent"])
def test_a_message_without_end_is_cut_off(victim: str) -> None:
    port = free_port()
    with programs() as started:
        broker, url = started.broker("tcp://127.0.0.1:*")
        agent = started.env_agent(
            url, "--address", "a", "--env", "CartPole-v1", "--direct", f"tcp://127.0.0.1:{port}"
        )
        program = broker if victim == "broker" else agent
        before = resident(program.process.pid)
        target = int(url.rpartition(":")[2]) if victim == "broker" else port
        with dial_as_dealer(target) as peer:
            assert not takes_without_end(peer, 4000)
        assert resident(program.process.pid) - before < 2000 * MIB
