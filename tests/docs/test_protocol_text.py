"""The numbers and rules in docs/protocol.md are those of the code."""

from __future__ import annotations

import re
import socket
from importlib import import_module

import pytest
import zmq

from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Hello, Open, Opened, Role
from tests.broker.harness import Broker
from tests.docs import transcript
from tests.processes import PATIENCE_S, programs

DOC = transcript.PATH.read_text(encoding="utf-8")

# Clause, what it says, and the constants that it says it with.
NUMBERS = (
    ("0.1", "interval {:d} ms", "protocol.transport.dealer:HEARTBEAT_IVL_MS"),
    ("0.1", "TTL {:d} ms", "protocol.transport.dealer:HEARTBEAT_TIMEOUT_MS"),
    ("0.2", "{:d} bytes of header", "protocol.codec:HEADER_SIZE"),
    ("3.4", "interval {:d} ms", "protocol.transport.dealer:HEARTBEAT_IVL_MS"),
    ("3.4", "timeout {:d} ms", "protocol.transport.dealer:HEARTBEAT_TIMEOUT_MS"),
    ("3.4", "TTL {:d} ms", "protocol.transport.dealer:HEARTBEAT_TIMEOUT_MS"),
    ("3.4", "arrived on it for {:g} s", "broker.connections:LEARNER_SILENCE_S"),
    ("3.6", "{:d} MiB by default", "protocol.codec:MAX_MESSAGE/1048576"),
    ("3.6", "at most {:d} MiB", "protocol.codec:MAX_CONTROL/1048576"),
    ("3.7", "header of {:d} bytes", "protocol.codec:HEADER_SIZE"),
    ("3.13", "does not answer for {:g} s", "gateway.server:PING_TIMEOUT_S"),
    ("3.13", "beyond {:d} MiB", "gateway.websocket:MAX_WAITING/1048576"),
    ("3.13", "or {:,d} frames", "gateway.websocket:MAX_FRAMES"),
    ("6.4", "{:d} KiB of offers", "broker.directory:PAGE_BYTES/1024"),
    ("6.4", "{:,d} addresses", "broker.directory:PAGE_NAMES"),
    ("7.5", "SHOULD: {:g} s", "learner_agent.client.exchange:RESEND_S"),
    ("7.5", "doubling up to {:g} s", "learner_agent.client.exchange:RESEND_MAX_S"),
    ("7.7", "up for less than {:g} s", "broker.recovery:STARTING_S"),
    ("7.8", "longer than {:g} s", "env_agent.progress_reporter:SLOW_S"),
    ("7.9", "older than {:g} s", "broker.tables:PROGRESS_TTL_S"),
    ("7.11", "waits {:g} s", "broker.recovery:REJOIN_S"),
    ("7.12", "the agent has {:g} s", "broker.peers:GRACE_S"),
    ("7.13", "during the first {:g} s;", "broker.recovery:STARTING_S"),
    ("7.13", "during the first {:g} s,", "broker.recovery:REJOIN_S"),
    ("7.13", "away for {:g} s", "env_agent.loop:AWAY_S"),
    ("8.2", "{:d} more bytes at its end, after", "protocol.stamps:REQUEST_SIZE"),
    ("8.2", "and {:d} more bytes", "protocol.stamps:REPLY_SIZE"),
    ("10.3", "array of {:d} bytes or more", "protocol.arrays:LARGE"),
    ("10.4", "at most {:d} levels", "protocol.faults:MAX_DEPTH"),
    ("11.6", "Ours: {:d} levels", "protocol.faults:MAX_DEPTH"),
    ("11.8", "fewer than {:d}", "protocol.arrays:LARGE"),
    ("13.4", "{:,d} peers", "broker.peers:MAX_PEERS"),
    ("13.4", "{:,d} sessions", "broker.sessions:MAX_SESSIONS"),
    ("13.4", "announce {:,d}", "broker.sessions:MAX_ANNOUNCED"),
    ("13.4", "accepts {:,d} parts", "protocol.control_limits:MAX_PARTS"),
    ("13.4", "{:d} offers", "broker.offers:MAX_OFFERS"),
    ("13.4", "{:d} MiB of them", "broker.offers:MAX_OFFER_BYTES/1048576"),
    ("13.4", "{:,d} frames at once", "broker.rate_limit:BURST"),
    ("13.4", "{:,d} per second", "broker.rate_limit:RATE"),
    ("14.3", "tag of {:d} bytes", "protocol.security.signing:TAG_SIZE"),
)


def clause(number: str) -> str:
    """Return the text of a clause on one line."""
    found = re.search(
        rf"^\*\*{re.escape(number)}\*\*(.*?)(?=^\*\*\d|^#)", DOC, re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"there is no clause {number}"
    return " ".join(found[1].split())


@pytest.mark.parametrize(("number", "says", "constant"), NUMBERS)
def test_a_number_in_the_text_is_the_constant_of_the_code(
    number: str, says: str, constant: str
) -> None:
    module, _, expression = constant.partition(":")
    if module.startswith("gateway."):
        pytest.importorskip("starlette", reason="needs the extra gymwire[web]")
    name, _, unit = expression.partition("/")
    value = getattr(import_module(f"gymwire.{module}"), name)
    if unit or "d}" in says:
        value = int(value) // int(unit or 1)
    assert says.format(value) in clause(number)


def test_the_transcript_is_what_the_example_sends() -> None:
    assert transcript.documented() == transcript.text(transcript.play())


def test_the_clauses_of_the_simple_agent_are_few_and_cite_the_rules() -> None:
    numbers = re.findall(r"^\*\*(0\.\d+)\*\*", DOC, re.MULTILINE)
    assert numbers == [f"0.{n}" for n in range(1, len(numbers) + 1)]
    assert len(numbers) <= 27
    for number in numbers:
        assert re.search(r"\(§[\d.]+(, §[\d.]+)*\)", clause(number)), number


# --- the choice of a serving loop, §4.2.1 ---------------------------------------------------------


def loop_of(broker: Broker, learner: bytes, nonce: bytes, address: str = "cartpole") -> bytes:
    """Open a session; return the routing id of the loop that has it."""
    sid = broker.open(learner, address, nonce=nonce * 16)
    loop = broker.reaches(learner, sid)
    assert loop is not None
    return loop


def test_the_process_with_the_fewest_sessions_comes_before_the_loop_with_the_fewest() -> None:
    broker = Broker()
    idle_loop = broker.env(b"\x01idle", "cartpole", agent=b"P")
    busy_loop = broker.env(b"\x01busy", "cartpole", "maze", agent=b"P")
    other_process = broker.env(b"\x01other", "cartpole", agent=b"Q")
    learner = broker.learner()
    assert loop_of(broker, learner, b"a", "maze") == busy_loop
    assert loop_of(broker, learner, b"b") == other_process
    assert loop_of(broker, learner, b"c") == idle_loop


def test_agent_in_opened_names_the_host_and_the_process() -> None:
    assert "host name and the process id" in " ".join(DOC.split())
    with programs() as started, zmq.Context() as context:
        _, url = started.broker()
        agent = started.env_agent(url, "--address", "cartpole", "--env", "CartPole-v1")
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
            dealer.setsockopt(zmq.ROUTING_ID, b"\x01" + bytes(range(15)))
            dealer.connect(url)
            dealer.send(PLAIN.encode(Hello(Role.LEARNER, bytes(16), "test", "elsewhere")))
            dealer.send(PLAIN.encode(Open("cartpole", bytes(16)), 0, 1))
            while not isinstance(opened := PLAIN.decode(dealer.recv()), Opened):
                continue
    assert socket.gethostname() in opened.agent
    assert str(agent.process.pid) in opened.agent
