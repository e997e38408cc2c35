"""`gymwire stop`: end a session, or let an env agent drain."""

from __future__ import annotations

from dataclasses import dataclass

from gymwire.cli.connection import LearnerOptions, connected
from gymwire.cli.output import Output
from gymwire.cli.terminal import counted
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import observe, stop_agent, stop_session
from gymwire.protocol.errors import ConfigurationError, Denied, Refused
from gymwire.protocol.process_ids import AGENT_ID, SESSION_ID


@dataclass(frozen=True, kw_only=True)
class Options(LearnerOptions):
    """The options of `gymwire stop`."""

    target: str | None


def command(options: Options, output: Output) -> int:
    """Stop what the target names. Returns the exit status."""
    if not options.target:
        raise ConfigurationError(
            "No target given: pass TARGET, the id of a session or of an env agent, or its "
            "beginning. `gymwire ps` lists them."
        )
    target = options.target.lower()
    if not set(target) <= set("0123456789abcdef") or len(target) > SESSION_ID:
        raise ConfigurationError(
            f"{options.origins.get('target', 'TARGET')}: expected the id of a session or of an env "
            f"agent, or its beginning, got {options.target!r:.50}. `gymwire ps` lists them."
        )
    with connected(options) as connection:
        session, agent = find(connection, target)
        if session is not None:
            stopped = stop_session(connection, int.from_bytes(bytes.fromhex(session)))
            output.result(session=session, agent=None, processes=0, sessions=int(stopped))
            output.say(f"session {session} {'stopped' if stopped else 'had ended already'}")
        elif agent is not None:
            answer = stop_agent(connection, agent)
            counts = {"processes": answer.processes, "sessions": answer.sessions}
            output.result(session=None, agent=agent, **counts)
            output.say(
                f"env agent {agent} ({counted(answer.processes, 'process', 'processes')}) is "
                f"draining: {counted(answer.sessions, 'session')} may continue for --grace"
            )
    return 0


def find(connection: BrokerConnection, target: str) -> tuple[str | None, str | None]:
    """Return the ids of the session, or of the env agent, that begins with `target`.

    Raises Refused if there are none or several, and Denied if the key may not observe and `target`
    is not a whole id.
    """
    try:
        found = observe(connection)
    except Denied:  # the right to stop is enough for a whole id
        if len(target) == SESSION_ID:
            return target, None
        if len(target) == AGENT_ID:
            return None, target
        raise
    sessions = {one.id for one in found.sessions if one.id.startswith(target)}
    agents = {one.agent for one in found.offers if one.agent.startswith(target)}
    if len(sessions) + len(agents) > 1:
        raise Refused(
            f"{counted(len(sessions), 'session')} and {counted(len(agents), 'env agent')} begin "
            f"with {target!r}. Give more characters."
        )
    if not sessions and not agents:
        raise Refused(
            f"No session and no env agent that you may see begins with {target!r}. `gymwire ps` "
            f"lists them."
        )
    return next(iter(sessions), None), next(iter(agents), None)
