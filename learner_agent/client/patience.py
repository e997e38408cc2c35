"""How long a learner waits for a broker that says nothing, or to which nothing gets through."""

from __future__ import annotations

import math

SETTLED_S = 3.0  # how long a request must have been under way over a new connection; see Patience
# After a longer pause of the timers, the silence of the broker counts anew; with a short
# `timeout_s` after half of it, so that a PING before the pause and its answer after it have time.
UNWATCHED_S = 2.0
LEAST_TIMEOUT_S = 0.5  # the timers run every 0.1 s, and an answer needs time
PING_S = 1.0  # the pause between two PINGs, or a quarter of `timeout_s`, if that is less


class Contact:
    """Since when the silence of the broker counts for all sessions of a connection.

    All times are readings of the connection's clock, in seconds.

    Args:
        timeout_s: how long the broker may be silent, in seconds.

    Attributes:
        timeout_s: the same.
        ping_s: the pause between two PINGs, in seconds.
        last: when the broker last answered over the link, to whichever session; or when the timers
            ran again after a pause.
        watched_at: when the timers ran last.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.ping_s = min(PING_S, timeout_s / 4)
        self.last = self.watched_at = -math.inf
        self._unwatched_s = min(UNWATCHED_S, timeout_s / 2)

    def watch(self, now: float) -> None:
        """Note that the timers run now, or that a request begins."""
        if now - self.watched_at > self._unwatched_s:  # suspended, or did not wait
            self.last = now
        self.watched_at = now


class Patience:
    """When the broker was last heard, as far as that counts for the request that waits.

    A path that swallows large packets delivers WELCOME, RESUMED and PONG over each new connection,
    and stops at the request or its reply. So nothing that a new connection delivers counts until
    the request was sent over it and has had the time to pass.

    Thousands of sessions send their requests again one after the other. While the broker answers
    others over the connection, a request that has waited for `timeout_s` gets its turn, and the
    time to pass. If the connection is lost as well, the next one gives no more time.

    Args:
        contact: of the connection.

    Attributes:
        heard: when the broker was last heard.
        losses: how often the connection was lost since the request began.
    """

    def __init__(self, contact: Contact) -> None:
        self.heard = self._began = 0.0
        self.losses = 0
        self._contact = contact
        self._settles_s = min(SETTLED_S, contact.timeout_s / 2)
        self._connected_at = -math.inf
        self._settled_at = 0.0  # when the request had the time to pass; inf: it was not sent yet

    def begin(self, now: float) -> None:
        """Begin to wait for a request, which is sent over the current connection."""
        self._contact.watch(now)
        self.heard = self._began = self._settled_at = now
        self.losses = 0

    def hear(self, at: float) -> None:
        """Note that the broker was heard at this time."""
        if at >= self._settled_at:
            self.heard = max(self.heard, at)

    def reconnected(self, now: float) -> None:
        """Note that the connection was lost, and that there is another one."""
        if self._settled_at < math.inf:
            self.losses += 1
        else:  # the request was not sent over it, so it is no reason for the loss
            self._settled_at = self._connected_at
        self.hear(self._contact.last)
        self._connected_at = now
        self._settled_at = math.inf

    def sent_again(self, now: float) -> None:
        """Note that the request was sent again."""
        self._settled_at = min(self._settled_at, now + self._settles_s)

    def has_heard(self) -> bool:
        """Return whether the broker was heard since the request began."""
        self.hear(self._contact.last)
        return self.heard > self._began

    def is_over(self, now: float) -> bool:
        """Return whether the broker has been silent for longer than `timeout_s`."""
        contact = self._contact
        self.hear(last := contact.last)
        end = self.heard + contact.timeout_s
        if now <= end:
            return False
        # The time to pass, and another half of a pause for the answer to the next PING.
        passed_at = last + self._settles_s + 1.5 * contact.ping_s
        may_pass = last >= self._connected_at and now <= passed_at
        return not (may_pass and self._connected_at <= end)

    def lost_again(self, what: str, size: int) -> str | None:
        """Return the text of an error if new connections carry messages, but not the request.

        `what` was under way meanwhile, a request of `size` bytes. Else return None.
        """
        is_reachable = self._contact.last >= self._connected_at
        if self.losses < (1 if is_reachable else 2):
            return None
        times = "once" if self.losses == 1 else f"{self.losses} times"
        return (
            f"The connection to the broker was lost {times} while {what} was under way. "
            f"The broker can be reached, but the request ({size} bytes) or its reply does not "
            f"get through: the path may lose large packets, as behind a tunnel with a wrong MTU."
        )
