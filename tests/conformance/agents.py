"""Env agents to check: the simple one of the documentation, in a thread, and our own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from examples import env_agent_from_scratch as scratch
from gymwire.conformance import suite
from gymwire.conformance.as_broker import BrokersAgent
from gymwire.protocol.codec import KIND_AT
from gymwire.protocol.messages import Kind
from tests.processes import PATIENCE_S, programs

ADDRESS, ENV = "lab/rich", "tests.conformance.rich_env:Rich"
EXPOSED = [text for name in ("level", "lock", "add", "np_random") for text in ("--expose", name)]


@contextlib.contextmanager
def rich_agent() -> Iterator[BrokersAgent]:
    """Run our own env agent, which every check applies to, with the suite as its broker."""
    agent, url = suite.as_broker("tcp://127.0.0.1:*", ADDRESS, PATIENCE_S)
    options = ("--broker", url, "--grace", "0", "--threads", "1")
    with programs() as started:
        started.start("gymwire", "serve", ADDRESS, ENV, *options, *EXPOSED)
        agent.greet(PATIENCE_S)
        yield agent
    agent.wire.close()


class RightAgent(scratch.Agent):
    """The simple agent, which the wrong ones change."""

    def _send(self, frame: bytes) -> None:
        changed = self.changed(Kind(frame[KIND_AT]), frame)
        if changed is not None:
            super()._send(changed)

    def changed(self, kind: Kind, frame: bytes) -> bytes | None:
        """Return what to send instead; None: nothing."""
        return frame


@contextlib.contextmanager
def serving(agent_type: type[scratch.Agent], url: str) -> Iterator[None]:
    """Run such an agent while the block runs."""
    stopped = threading.Event()

    def serve() -> None:
        agent = agent_type(url)
        with contextlib.suppress(SystemExit):  # as in its own process
            while not stopped.is_set():
                agent.receive()
        agent.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
