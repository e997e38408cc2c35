"""`python -m tests.chaos.greedy URL`: send requests as fast as possible until standard input ends.

With `--no-reading` it never reads a reply, so that the replies fill its connection.
"""

from __future__ import annotations

import os
import sys
import threading

import zmq

from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Find, Hello, Role


def wait_for_the_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    url, reads = sys.argv[1], "--no-reading" not in sys.argv
    stop = threading.Event()
    threading.Thread(target=wait_for_the_end, args=(stop,), daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
    socket.linger = 0
    socket.rcvhwm = 10
    socket.sndtimeo = 100
    socket.connect(url)
    socket.send(PLAIN.encode(Hello(Role.LEARNER, os.urandom(16), "greedy", "nowhere")))
    frame = PLAIN.encode(Find(""), 0, 1)
    print("floods", flush=True)  # noqa: T201 - the parent process waits for this
    while not stop.is_set():
        try:
            for _ in range(100):
                socket.send(frame)
        except zmq.Again:
            continue
        finally:
            while reads and socket.poll(0):
                socket.recv()
    context.destroy(0)


if __name__ == "__main__":
    main()
