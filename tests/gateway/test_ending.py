"""How the gateway ends while an environment never answers."""

from __future__ import annotations

import json
import urllib.request

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from websockets.exceptions import ConnectionClosedError
from websockets.frames import CloseCode
from websockets.sync.client import connect

from tests.gateway.sockets import gateway, until
from tests.processes import PATIENCE_S, Programs


def is_in_step(line: bytes) -> bool:
    """Return whether a line of /events says that a session is in a step."""
    if not line.startswith(b"data:"):
        return False
    return any(one["in_step_s"] for one in json.loads(line[5:])["sessions"])


def test_a_step_that_never_returns_does_not_keep_the_gateway(programs: Programs) -> None:
    _, broker = programs.broker()
    programs.env_agent(broker, "--address", "stuck", "--env", "tests.odd_envs:Endless")
    program, url = gateway(programs, broker)
    target = f"{url.replace('http', 'ws', 1)}/play?address=stuck"
    with connect(target, proxy=None, open_timeout=PATIENCE_S) as socket:
        assert "action" in json.loads(socket.recv(PATIENCE_S))
        socket.send('{"reset": {}}')
        socket.recv(PATIENCE_S)
        socket.send('{"act": 0}')
        with urllib.request.urlopen(f"{url}/events") as events:
            until(lambda: is_in_step(events.readline()))
        program.process.terminate()
        assert program.wait() == 0
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(PATIENCE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART
    assert not [line for line in program.output if '"error"' in line or "Traceback" in line]
