"""The simple agent of the documentation, in a thread of the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from examples import env_agent_from_scratch as scratch
from gymwire.protocol.codec import KIND_AT
from gymwire.protocol.messages import Kind


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
