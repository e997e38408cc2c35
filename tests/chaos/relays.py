"""Two bad networks: one that harms whole messages, one that harms connections."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message


@dataclass(frozen=True)
class Weather:
    """Chances, per message, in each direction. Delays reorder whatever overtakes them."""

    drop: float = 0.0
    double: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.0  # the longest


FAIR = Weather()


class MessageRelay:
    """Relays messages between agents, at a ROUTER, and a broker without keys, at one DEALER each.

    When an agent's connection ends, so does the one for it: else nobody could notice its death.
    """

    def __init__(self, broker: str, seed: int) -> None:
        self.weather = FAIR
        self.done: Counter[str] = Counter()
        self._broker = broker
        self._rng = random.Random(seed)
        self._context: zmq.Context[Any] = zmq.Context()
        self._front: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._front.linger = 0
        self._front.setsockopt(zmq.ROUTER_HANDOVER, 1)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self.url = f"tcp://127.0.0.1:{port}"
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._late: list[tuple[float, int, bytes, bool, bytes]] = []
        self._tie = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        ends: zmq.Socket[bytes] = self._front.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        poller.register(ends, zmq.POLLIN)
        by_fd: dict[int, bytes] = {}
        owners: dict[zmq.Socket[bytes], bytes] = {}
        while not self._stop.is_set():
            wait_ms = 50.0
            if self._late:
                wait_ms = max(0.0, min(wait_ms, (self._late[0][0] - time.monotonic()) * 1000))
            for ready, _ in poller.poll(int(wait_ms)):
                if ready is self._front:
                    sender, received = self._front.recv_multipart(copy=False)[:2]
                    rid, frame = sender.bytes, received.bytes
                    by_fd[int(received.get(zmq.SRCFD))] = rid
                    back = self._backs.get(rid)
                    if back is None:
                        back = self._backs[rid] = self._dial()
                        owners[back] = rid
                        poller.register(back, zmq.POLLIN)
                    self._pass(rid, True, frame)
                elif ready is ends:
                    ended = by_fd.pop(int(recv_monitor_message(ends)["value"]), b"")
                    if ended in self._backs and ended not in by_fd.values():
                        back = self._backs.pop(ended)
                        poller.unregister(back)
                        del owners[back]
                        back.close(linger=0)
                elif ready in owners:
                    self._pass(owners[ready], False, ready.recv())
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, rid, inward, frame = heapq.heappop(self._late)
                self._send(rid, inward, frame)
        self._context.destroy(0)

    def _dial(self) -> zmq.Socket[bytes]:
        back: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        back.linger = 0
        back.setsockopt(zmq.ROUTING_ID, b"\x01" + os.urandom(15))
        back.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        back.connect(self._broker)
        return back

    def _pass(self, rid: bytes, inward: bool, frame: bytes) -> None:
        weather, rng = self.weather, self._rng
        if rng.random() < weather.drop:
            self.done["dropped"] += 1
            return
        copies = 1
        if rng.random() < weather.double:
            self.done["doubled"] += 1
            copies = 2
        for _ in range(copies):
            if rng.random() < weather.delay:
                self.done["delayed"] += 1
                due = time.monotonic() + rng.random() * weather.delay_s
                heapq.heappush(self._late, (due, next(self._tie), rid, inward, frame))
            else:
                self.done["passed"] += 1
                self._send(rid, inward, frame)

    def _send(self, rid: bytes, inward: bool, frame: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            if inward:
                if rid in self._backs:
                    self._backs[rid].send(frame, zmq.DONTWAIT)
            else:
                self._front.send_multipart([rid, frame], zmq.DONTWAIT)


@dataclass(eq=False)
class _Pipe:
    """A connection through a TcpRelay: two sockets, and what waits to leave each."""

    ends: tuple[socket.socket, socket.socket]
    waiting: dict[socket.socket, bytearray] = field(default_factory=dict)
    doomed: bool = False  # its bytes are swallowed for good

    def other(self, end: socket.socket) -> socket.socket:
        return self.ends[1] if end is self.ends[0] else self.ends[0]


class TcpRelay:
    """Forwards TCP connections to a local port, and harms them as `mode` says.

    `mode`: "pass"; "stall" reads nothing, so that buffers fill; "black-hole" swallows all bytes of
    all connections, which stay dead when it ends. `rate`: bytes per second in all, None: no limit.
    `largest`: a connection swallows all bytes once more than so many arrive at the same time, None:
    no limit.
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self.rate: float | None = None
        self.largest: int | None = None
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.port}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pipes: dict[socket.socket, _Pipe] = {}
        self._orders: list[str] = []
        self._lock = threading.Lock()
        self._budget = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Every connection ends with an RST at both ends."""
        self._order("reset")

    def half_open(self) -> None:
        """Close every connection on the broker's side only; the dialing side never notices."""
        self._order("half-open")

    def doom(self) -> None:
        """Every connection of now swallows all bytes for good; new ones work."""
        self._order("doom")

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _order(self, what: str) -> None:
        with self._lock:
            self._orders.append(what)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            with self._lock:
                orders, self._orders = self._orders, []
            for order in orders:
                self._obey(order)
            now = time.monotonic()
            if self.rate is not None:
                self._budget = min(self._budget + (now - last) * self.rate, self.rate / 5)
            last = now
            if self.mode == "stall" or (self.rate is not None and self._budget < 1):
                time.sleep(0.01)
                continue
            for key, _ in self._selector.select(0.02):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pipes:
                    self._forward(key.fileobj)
            self._flush()
        for pipe in list(self._all()):
            self._end(pipe)
        self._selector.close()
        self._listener.close()

    def _all(self) -> Iterator[_Pipe]:
        yield from {id(pipe): pipe for pipe in self._pipes.values()}.values()

    def _obey(self, order: str) -> None:
        for pipe in list(self._all()):
            if order == "reset":
                self._end(pipe, abruptly=True)
            else:
                pipe.doomed = True
                if order == "half-open":
                    self._drop_end(pipe.ends[1])

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._port), timeout=1.0)
        except OSError:
            client.close()
            return
        pipe = _Pipe((client, server))
        for end in pipe.ends:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pipe.waiting[end] = bytearray()
            self._pipes[end] = pipe
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, end: socket.socket) -> None:
        pipe = self._pipes[end]
        most = 65536 if self.rate is None else max(1, int(self._budget))
        try:
            data = end.recv(most)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if pipe.doomed:
                self._drop_end(end)
            else:
                self._end(pipe)
            return
        if self.rate is not None:
            self._budget -= len(data)
        if self.mode == "black-hole":
            pipe.doomed = True  # with bytes missing, nothing after them could be understood
        if self.largest is not None and len(data) > self.largest:
            pipe.doomed = True
        if not pipe.doomed:
            pipe.waiting[pipe.other(end)] += data

    def _flush(self) -> None:
        for pipe in list(self._all()):
            for end, data in pipe.waiting.items():
                if data and not pipe.doomed:
                    with contextlib.suppress(BlockingIOError, OSError):
                        del data[: end.send(data)]

    def _drop_end(self, end: socket.socket) -> None:
        if self._pipes.pop(end, None) is not None:
            self._selector.unregister(end)
        end.close()

    def _end(self, pipe: _Pipe, abruptly: bool = False) -> None:
        for end in pipe.ends:
            if abruptly and end in self._pipes:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop_end(end)
