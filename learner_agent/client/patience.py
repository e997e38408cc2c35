"""How long a learner waits for a broker that says nothing, or to which nothing gets through."""

from __future__ import annotations

import math

SETTLED_S = 3.0  # the age from which what a new connection delivers renews the patience
UNWATCHED_S = 2.0  # after a longer pause of the timers, the silence of the broker counts anew


class Contact:
    """Since when the silence of the broker counts for all sessions of a connection.

    All times are readings of the connection's clock, in seconds.

    Attributes:
        last: when the broker last answered over the link, to whichever session; or when the timers
            ran again after a pause.
        watched_at: when the timers ran last.
    """

    def __init__(self) -> None:
        self.last = self.watched_at = -math.inf

    def watch(self, now: float) -> None:
        """Note that the timers run now, or that a request begins."""
        if now - self.watched_at > UNWATCHED_S:  # this process was suspended, or did not wait
            self.last = now
        self.watched_at = now


class Patience:
    """When the broker was last heard, as far as that counts for the request that waits.

    A path that swallows large packets delivers WELCOME, RESUMED and PONG over each new connection,
    and stops at the request or its reply. So what a new connection delivers does not count until
    the connection has settled.

    Args:
        timeout_s: how long the broker may be silent, in seconds.
        contact: of the connection.

    Attributes:
        heard: when the broker was last heard.
        settled_at: when the connection is old enough to have carried the request.
        losses: how often the connection was lost since the request began.
    """

    def __init__(self, timeout_s: float, contact: Contact) -> None:
        self.heard = self._began = 0.0
        self.settled_at = 0.0
        self.losses = 0
        self._timeout_s = timeout_s
        self._contact = contact

    def begin(self, now: float) -> None:
        """Begin to wait for a request."""
        self._contact.watch(now)
        self.heard = self._began = now
        self.losses = 0

    def hear(self, at: float) -> None:
        """Note that the broker was heard at this time."""
        if at >= self.settled_at:
            self.heard = max(self.heard, at)

    def reconnected(self, now: float) -> None:
        """Note that the connection was lost, and that there is another one."""
        self.hear(self._contact.last)
        self.losses += 1
        self.settled_at = now + min(SETTLED_S, self._timeout_s / 2)

    def has_heard(self) -> bool:
        """Return whether the broker was heard since the request began."""
        self.hear(self._contact.last)
        return self.heard > self._began

    def is_over(self, now: float) -> bool:
        """Return whether the broker has been silent for longer than `timeout_s`."""
        self.hear(self._contact.last)
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
