"""How long a learner waits for a broker that says nothing, or to which nothing gets through."""

from __future__ import annotations

SETTLED_S = 3.0  # the age from which what a new connection delivers renews the patience


class Patience:
    """When the broker was last heard, as far as that counts for the request that waits.

    A path that swallows large packets delivers WELCOME, RESUMED and PONG over each new connection,
    and stops at the request or its reply. So what a new connection delivers does not count until
    the connection has settled.

    Args:
        timeout_s: how long the broker may be silent, in seconds.

    Attributes:
        heard: when the broker was last heard.
        settled_at: when the connection is old enough to have carried the request.
        losses: how often the connection was lost since the request began.
    """

    def __init__(self, timeout_s: float) -> None:
        self.heard = 0.0
        self.settled_at = 0.0
        self.losses = 0
        self._timeout_s = timeout_s

    def begin(self, now: float) -> None:
        """Begin to wait for a request."""
        self.heard = now
        self.losses = 0

    def hear(self, now: float) -> None:
        """Note that the broker was heard."""
        if now >= self.settled_at:
            self.heard = now

    def reconnected(self, now: float) -> None:
        """Note that the connection was lost, and that there is another one."""
        self.losses += 1
        self.settled_at = now + min(SETTLED_S, self._timeout_s / 2)

    def is_over(self, now: float) -> bool:
        """Return whether the broker has been silent for longer than `timeout_s`."""
        return now - self.heard > self._timeout_s

    def lost_again(self, what: str, size: int) -> str | None:
        """Return the text of an error if the connection was lost repeatedly, else None.

        `what` was under way meanwhile, a request of `size` bytes.
        """
        if self.losses < 2:
            return None
        return (
            f"The connection to the broker was lost {self.losses} times while {what} was under "
            f"way. The broker can be reached, but the request ({size} bytes) or its reply does not "
            f"get through: the path may lose large packets, as behind a tunnel with a wrong MTU."
        )
