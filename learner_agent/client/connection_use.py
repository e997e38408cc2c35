"""Who uses a connection now: its thread, and the call that is under way."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

from gymwire.learner_agent.client.threads import stay
from gymwire.protocol.errors import EnvironmentClosed

AT_EXIT = object()


class ConnectionUse:
    """The use of a connection by one thread, and by the call of one proxy at a time.

    Attributes:
        thread_id: the number of the thread that uses the connection. After the end of a thread,
            another one may get its number.
        thread: returns the thread, or None if it was dropped. A reference to it could be part of a
            circle: a thread may hold the last reference to a proxy.
        caller: what the call that is under way belongs to, if that is known.
        ended: which waits must end. None: none. A caller: those of that caller. True: all. AT_EXIT:
            all, but a daemon thread stops where it is until the process ends.
        left: what the thread has to do for sessions whose proxies do not use the connection
            anymore. Other threads may add to it, at any time.
    """

    def __init__(self) -> None:
        self.begin()
        self.caller: object = None
        self.ended: object = None
        self.left: deque[Callable[[], object]] = deque()

    def begin(self) -> None:
        """Let the connection belong to the thread that calls this."""
        self.thread_id = threading.get_ident()
        self.thread = weakref.ref(threading.current_thread())

    def check(self) -> None:
        """Do what is left to do. Raises EnvironmentClosed if the caller's wait must end."""
        if self.ended is not None:
            if self.ended is AT_EXIT and threading.current_thread().daemon:
                stay()
            if self.ended in (True, AT_EXIT) or self.ended is self.caller:
                raise closed_elsewhere()
        while self.left:
            try:
                finish = self.left.popleft()
            except IndexError:  # a destructor or a signal handler has done it meanwhile
                return
            finish()


def closed_elsewhere() -> EnvironmentClosed:
    """Return the error of a call whose proxy another thread has closed."""
    return EnvironmentClosed("Another thread has closed this environment. Make a new one.")
