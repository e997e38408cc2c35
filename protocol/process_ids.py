"""The names of processes and sessions for people (docs/protocol.md §6.1).

In which process a serving loop runs, and to which env agent it belongs, is an entry of
`Offer.spec`, like the slots of the process. A broker without this feature ignores it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from gymwire.protocol.messages import Offer

KEY = "gymwire.process"  # in `Offer.spec`
MAX_PID = 2**31
ID_BYTES = 5  # of an env agent's name
AGENT_ID = 2 * ID_BYTES  # characters of that name,
SESSION_ID = 16  # and of the id of a session


def with_process(offer: Offer, pid: int, agent_pid: int) -> Offer:
    """Return the offer with the process id of its loop, and that of its env agent.

    `agent_pid`: of a worker's supervisor; otherwise `pid` itself.
    """
    return replace(offer, spec={**offer.spec, KEY: [pid, agent_pid]})


def process_of(offer: Offer) -> tuple[int, int] | tuple[None, None]:
    """Return the two process ids; None if the env agent does not say, as one of release 0.1.0."""
    match offer.spec.get(KEY):
        case [int(pid), int(agent_pid)] if 0 < pid < MAX_PID and 0 < agent_pid < MAX_PID:
            return int(pid), int(agent_pid)
    return None, None


def agent_id(agent: bytes, key: bytes | None, host: str, offer: Offer) -> str:
    """Return the name of the env agent that makes an offer; its workers all have the same.

    `agent`: the secret id of the process, `key`: its public key, `host`: its host.
    """
    _, agent_pid = process_of(offer)
    parts = [agent if agent_pid is None else agent_pid, key or b"", host]
    return hashlib.blake2b(repr(parts).encode(), digest_size=ID_BYTES).hexdigest()


def session_text(sid: int) -> str:
    """Return a session's id as people see it: in logs, `gymwire ps` and `gymwire stop`."""
    return f"{sid:0{SESSION_ID}x}"
