"""A broker that has forgotten the env agent, or was lost (§4.3.2, §7.13). These checks run last."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.conformance.checks.peers import seen_by_broker
from gymwire.conformance.session import Session
from gymwire.protocol.messages import Busy, BusyReason

CHECKS: list[Check] = []


@check(
    CHECKS,
    "4.3.2",
    "sends HELLO when the broker has forgotten it, with its sessions",
    as_broker=True,
)
def forgotten(agent: Agent) -> None:
    """Answer BUSY as a broker that has lost its tables."""
    session = agent.open()
    session.reset()
    seen_by_broker(agent).epoch += 1
    _introduced_again(agent, session, lambda: bool(agent.send(Busy(BusyReason.HELLO, 0.0))))
    session.step()


@check(CHECKS, "7.13", "reconnects after it has lost the broker, and continues", as_broker=True)
def restarted(agent: Agent) -> None:
    """Cut the connection in the middle of an episode, and forget the agent, as if restarted."""
    session = agent.open()
    session.reset()
    request = session.send_next(session.act())
    _, reply = session.take(request)
    seen_by_broker(agent).epoch += 1
    rid = agent.wire.routing_id
    _introduced_again(agent, session, agent.wire.renew)
    again = agent.wire.routing_id
    expect(again == rid, f"the same routing id, {rid.hex()}", again.hex(), "3.3")
    session.send_frame(request, session.last)
    message, frame = session.reply(session.last, "the kept reply")
    expect(frame == reply, "the same reply as before", message, "7.2")
    session.step()


def _introduced_again(agent: Agent, session: Session, forget: object) -> None:
    """Let the broker forget the agent, and wait for HELLO and OFFER."""
    broker = seen_by_broker(agent)
    first, hellos, offers = broker.hellos[0], len(broker.hellos), len(broker.offers)
    assert callable(forget)
    if not forget():
        raise Skipped("this connection cannot be made again")
    agent.wait_for(lambda: len(broker.hellos) > hellos or None, "HELLO")
    hello = broker.hellos[hellos]
    expect(hello.agent == first.agent, "the same `agent` as before", hello.agent.hex(), "4.3.1")
    row = [session.sid, session.nonce, agent.address, ""]
    expect(row in hello.sessions, f"the session {row}", hello.sessions, "4.3.1")
    agent.wait_for(lambda: len(broker.offers) > offers or None, "OFFER after WELCOME")
