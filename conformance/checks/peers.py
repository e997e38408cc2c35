"""HELLO, OFFER, and other messages of the broker outside of sessions (§3.2, §3.3, §4.3, §6)."""

from __future__ import annotations

import hashlib

from gymwire.conformance.agent import Agent
from gymwire.conformance.as_broker import BrokersAgent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.session import build
from gymwire.protocol import values
from gymwire.protocol.address import parse_address
from gymwire.protocol.codec import KIND_AT, PLAIN
from gymwire.protocol.errors import AddressError
from gymwire.protocol.messages import AGENT_SIZE, Found, Offer, Ping, Resumed, Stopped

CHECKS: list[Check] = []
NO_KIND = 200
RID_SIZE = 1 << 4  # bytes of a routing id
DIGEST_SIZE = hashlib.sha256().digest_size


def seen_by_broker(agent: Agent) -> BrokersAgent:
    """Return the agent as its broker sees it."""
    assert isinstance(agent, BrokersAgent)
    return agent


def offer_of(agent: Agent) -> Offer:
    """Return the offer under test."""
    broker = seen_by_broker(agent)
    agent.received = broker.first_offer
    offer = broker.offer()
    assert offer is not None
    return offer


@check(CHECKS, "3.3", "has a routing id of the byte 01 and 15 random bytes", as_broker=True)
def routing_id(agent: Agent) -> None:
    """Look at the routing id of the connection."""
    rid = agent.wire.routing_id
    if not rid:
        raise Skipped("this connection has none")
    fine = len(rid) == RID_SIZE and rid[0] == 1
    expect(fine, f"{RID_SIZE} bytes that begin with 01", rid.hex())


@check(CHECKS, "4.3.1", "introduces itself as a serving loop without sessions", as_broker=True)
def hello(agent: Agent) -> None:
    """Look at the first HELLO."""
    broker = seen_by_broker(agent)
    agent.received, first = broker.first_hello, broker.hellos[0]
    expect(len(first.agent) == AGENT_SIZE, f"`agent` of {AGENT_SIZE} bytes", first.agent.hex())
    expect(first.sessions == [], "no sessions in the first HELLO", first.sessions)


@check(CHECKS, "6.1", "offers an address with spaces, spec and capacity", as_broker=True)
def offer(agent: Agent) -> None:
    """Look at the offer."""
    found = offer_of(agent)
    try:
        parsed = parse_address(found.address)
    except AddressError as error:
        parsed, text = None, str(error)
    else:
        text = found.address
    expect(parsed is not None and not parsed.identity, "an address without @", text, "2.1")
    expect(found.env_id, "an `env_id`", found.env_id)
    expect(found.capacity >= 1, "a capacity of 1 or more", found.capacity)
    expect(isinstance(found.spec.get("id"), str), "a spec with a text as `id`", found.spec)
    build(found.observation_space, "observation_space")
    build(found.action_space, "action_space")


@check(CHECKS, "6.2", "offers the digest of its environment", as_broker=True)
def digest(agent: Agent) -> None:
    """Compute the digest, if the spaces of the offer are those of a session."""
    found = offer_of(agent)
    if not found.digest:
        raise Skipped("it leaves the digest to the broker")
    size = len(found.digest)
    expect(size == DIGEST_SIZE, f"a digest of {DIGEST_SIZE} bytes, or none", size, "6.1")
    session = agent.open()
    described = [found.observation_space, found.action_space]
    if described != [session.opened.observation_space, session.opened.action_space]:
        raise Skipped("the spaces in OFFER are not those of its sessions, which may be shortened")
    expected = hashlib.sha256(values.encode([found.env_id, *described])).hexdigest()
    expect(found.digest.hex() == expected, f"the SHA-256 {expected}", found.digest.hex())


@check(CHECKS, "4.3", "does not answer a PING of the broker", as_broker=True)
def ping(agent: Agent) -> None:
    """Send a PING, and then a request."""
    broker = seen_by_broker(agent)
    session = agent.open()
    pongs = broker.pongs
    agent.send(Ping())
    session.reset()
    expect(broker.pongs == pongs, "no answer to PING", "PONG")


@check(CHECKS, "4.3.3", "ignores kinds that it knows and has no use for", as_broker=True)
def unused_kinds(agent: Agent) -> None:
    """Send some of them, and then a request."""
    session = agent.open()
    for message in (Found([]), Resumed(), Stopped(0, 0)):
        agent.send(message)
    session.reset()


@check(CHECKS, "4.3.3", "survives a kind that does not exist", as_broker=True)
def unknown_kind(agent: Agent) -> None:
    """Send one without a session, and then a request."""
    session = agent.open()
    frame = bytearray(PLAIN.encode(Ping()))
    frame[KIND_AT] = NO_KIND
    agent.send_frame(bytes(frame))
    session.reset()
