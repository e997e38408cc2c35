"""How long a learner waits for a broker that says nothing, or to which nothing gets through."""

from __future__ import annotations

import math

from gymwire.protocol.errors import ConfigurationError

SETTLED_S = 3.0  # how long a request must have been under way over a new connection; see Patience
# After a longer pause of the timers, the silence of the broker counts from then on; with a short
# `timeout_s` after half of it, so that a PING before the pause and its answer after it have time.
UNWATCHED_S = 2.0
# A connection that carries nothing counts as lost after 5.5 s. If it was silent for longer, and is
# not lost, a loss before it is no sign of a path that loses large packets.
NEXT_LOSS_S = 7.0
LEAST_TIMEOUT_S = 0.5  # the timers run every 0.1 s, and an answer needs time
PING_S = 1.0  # the pause between two PINGs, or a quarter of `timeout_s`, if that is less


class Contact:
    """Since when the silence of the broker counts for all sessions of a connection.

    All times are readings of the connection's clock, in seconds.

    Args:
        timeout_s: how long the broker may be silent, in seconds.

    Raises ConfigurationError if `timeout_s` is less than LEAST_TIMEOUT_S.

    Attributes:
        timeout_s: the same.
        ping_s: the pause between two PINGs, in seconds.
        last: when the broker last answered over the link, to whichever session; or when the timers
            ran again after a pause.
        watched_at: when the timers ran last.
    """

    def __init__(self, timeout_s: float) -> None:
        if not timeout_s >= LEAST_TIMEOUT_S:
            raise ConfigurationError(
                f"timeout_s must be at least {LEAST_TIMEOUT_S:g} s, not {timeout_s!r}."
            )
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
    others over the connection, the wait for the turn is no silence, but only over the first
    connection after the last sign. Over the next one, a request that has waited for `timeout_s`
    still gets its turn, and the time to pass. After a further loss, there is no more time.

    Args:
        contact: of the connection.

    Attributes:
        heard: when the broker was last heard.
        losses: how often the connection was lost since then.
    """

    def __init__(self, contact: Contact) -> None:
        self.heard = self._began = 0.0
        self.losses = 0
        self._contact = contact
        self._settles_s = min(SETTLED_S, contact.timeout_s / 2)
        self._connected_at = -math.inf
        self._settled_at = 0.0  # when the request had the time to pass; inf: it was not sent yet
        self._turn_s = 0.0  # how long it has waited for its turn since `heard`

    def begin(self, now: float) -> None:
        """Begin to wait for a request, which is sent now."""
        self._contact.watch(now)
        self._began = self._settled_at = now
        self.renew(now)

    def renew(self, now: float) -> None:
        """Let the silence count from now."""
        self.heard, self.losses, self._turn_s = now, 0, 0.0

    def _hear(self, at: float) -> None:
        """Note that the broker was heard at this time."""
        if at >= self._settled_at and at > self.heard:
            self.renew(at)

    def reconnected(self, now: float) -> None:
        """Note that the connection was lost, and that there is another one."""
        was_sent = self._settled_at < math.inf
        if not was_sent:  # so the request cannot have caused the loss
            self._settled_at = self._connected_at
        self._hear(self._contact.last)
        self.losses += was_sent
        self._connected_at = now
        self._settled_at = math.inf

    def sent_again(self, now: float) -> None:
        """Note that the request was sent again, perhaps for the first time over a connection."""
        if self._settled_at == math.inf:
            self._settled_at = now + self._settles_s
            if self.losses < 2 and self._contact.last >= self._connected_at:
                self._turn_s += now - self._connected_at

    def has_heard(self) -> bool:
        """Return whether the broker was heard since the request began."""
        self._hear(self._contact.last)
        return self.heard > self._began

    def is_over(self, now: float) -> bool:
        """Return whether the broker has been silent for longer than `timeout_s`."""
        last = self._contact.last
        self._hear(last)
        end = self.heard + self._turn_s + self._contact.timeout_s
        if now <= end:
            return False
        if last < self._connected_at or self._connected_at > end:
            return True
        # Leave time for the request to pass, and one and a half pauses for the next PING and its
        # answer.
        return now > last + self._settles_s + 1.5 * self._contact.ping_s

    def lost_again(self, what: str, size: int) -> str | None:
        """Return the text of an error if new connections carry messages, but not the request.

        `what` was under way meanwhile, a request of `size` bytes. Else return None.
        """
        last = self._contact.last
        may_be_lost = self._connected_at <= last >= self._contact.watched_at - NEXT_LOSS_S
        if self.losses < (1 if may_be_lost else 2):
            return None
        times = "once" if self.losses == 1 else f"{self.losses} times"
        return (
            f"The connection to the broker was lost {times} while {what} was under way. "
            f"The broker can be reached, but the request ({size} bytes) or its reply does not "
            f"get through: the path may lose large packets, as behind a tunnel with a wrong MTU."
        )
