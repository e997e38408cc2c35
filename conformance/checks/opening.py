"""OPEN and OPENED (§4.2, §7.4)."""

from __future__ import annotations

from gymwire.conformance.agent import Agent
from gymwire.conformance.audit import message_of
from gymwire.conformance.check import Check, Skipped, check, expect
from gymwire.protocol import capabilities
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Code, EnvKind, Error, Open

CHECKS: list[Check] = []
NOWHERE = "no/such-address"
RENDER_MODE = "rgb_array"


def refused(answer: object, *codes: str) -> Error:
    """Return the ERROR with one of these codes that an answer to OPEN must be."""
    is_refusal = isinstance(answer, Error) and answer.code in codes
    expect(is_refusal, f"ERROR {' or '.join(codes)}", answer)
    assert isinstance(answer, Error)
    expect(answer.text, "a text for people", answer, "12.1")
    return answer


@check(CHECKS, "4.2.2", "describes the session in OPENED")
def opened(agent: Agent) -> None:
    """Open a plain environment."""
    found = agent.open().opened
    names = found.limits.get("attributes")
    fine = isinstance(names, list) and all(isinstance(name, str) for name in names)
    expect(fine, 'a list of names as `limits["attributes"]`', found.limits)
    expect(isinstance(found.spec.get("id"), str), "a spec with a text as `id`", found.spec)
    expect(found.num_envs == 0, "`num_envs` 0 for a plain environment", found.num_envs)
    single = [found.single_observation_space, found.single_action_space]
    expect(single == [None, None], "nil as the single spaces of a plain environment", single)


@check(CHECKS, "4.2.1", "refuses an address that it does not offer", as_broker=True)
def other_address(agent: Agent) -> None:
    """Open another address."""
    answer = agent.ask_to_open(Open(NOWHERE, agent.request().nonce))[3]
    refused(answer, Code.ADDRESS_UNKNOWN, Code.OPEN_FAILED)


@check(CHECKS, "4.2.1", "refuses an environment that cannot be made")
def impossible(agent: Agent) -> None:
    """Open with an argument that hardly any environment has."""
    answer = agent.try_open(env_kwargs={"no_such_argument": 1})
    if not isinstance(answer, Error):
        raise Skipped("its environment takes any arguments")
    refused(answer, Code.OPEN_FAILED)


@check(CHECKS, "4.2.1", "refuses a render mode if it has none")
def no_render_mode(agent: Agent) -> None:
    """Open with a render mode."""
    if agent.open().opened.metadata.get("render_modes"):
        raise Skipped("it has render modes")
    answer = agent.try_open(render_mode=RENDER_MODE)
    if not isinstance(answer, Error):
        expect(answer.opened.render_mode is None, "ERROR open-failed, or no render mode", answer)
        raise Skipped("it ignores the render mode, and says so in OPENED")
    refused(answer, Code.OPEN_FAILED)


@check(CHECKS, "4.2.3", "refuses several agents, or describes the spaces of each")
def several_agents(agent: Agent) -> None:
    """Open an environment with several agents."""
    answer = agent.try_open(kind=EnvKind.PARALLEL)
    if isinstance(answer, Error):
        refused(answer, Code.OPEN_FAILED)
        return
    opened = answer.opened
    if capabilities.KINDS not in capabilities.common(opened.limits.get("capabilities")):
        raise Skipped("it does not announce the capability `kinds`, and ignores the kind")
    for described in (opened.observation_space, opened.action_space):
        expect(described[0][0] == "Dict", "a Dict space by agent, or ERROR open-failed", described)


@check(CHECKS, "7.4", "answers a repeated OPEN with the same OPENED")
def repeated_open(agent: Agent) -> None:
    """Repeat OPEN in the middle of an episode."""
    session = agent.open()
    session.reset()
    agent.send_frame(session.open_frame)
    header, frame = agent.next_of(-session.open_seq, "OPENED again")
    message = message_of(frame, header, PLAIN)
    expect(frame == session.opened_frame, "the same bytes as the first OPENED", message)
    session.step()
