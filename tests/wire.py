"""A network in memory, with its own clock: the real broker core, serving loops and connections.

Only sockets and clock are replaced. Frames can be dropped, doubled and delayed (and so reordered),
connections cut, and brokers restarted. Everything follows from one seed, and nothing waits.

    with Network(seed=1) as network:
        network.env_agent(service("cartpole", "CartPole-v1"))
        session = network.connection().open("cartpole")
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import structlog.testing

from gymwire.broker.core import Core
from gymwire.broker.events import Send, Sender
from gymwire.broker.rate_limit import Admission
from gymwire.env_agent.environments import Service
from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.slot import Slot
from gymwire.env_agent.space_watch import SpaceWatch
from gymwire.env_agent.transports import Transports
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol import stamps
from gymwire.protocol.codec import TIMED, Frame
from gymwire.protocol.messages import Open
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.interface import LinkEvent

BROKER = "tcp://memory:1"
TICK_S = 0.1
LATENCY_S = 0.001
Entry = tuple[str, Any]


@dataclass(frozen=True)
class Faults:
    """What happens to frames: probabilities, and the longest delay in seconds."""

    drop: float = 0.0
    double: float = 0.0
    late: float = 0.0
    late_s: float = 0.0


class Dealer:
    """Stand in for `gymwire.protocol.transport.dealer.Dealer`, without a socket."""

    url = "memory://broker"
    has_buffered = has_frame = False
    handshake_hint = ""
    waitable = None  # nobody could wait for it

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self.rid = b"\x01" + number.to_bytes(15)
        self.fd = 1000 + number
        self.up = True
        self.generation = 0  # of its connection: frames in flight on an earlier one are lost
        self.loop: ServingLoop | None = None  # the loop to wake when something arrives
        self.inbox: deque[bytes] = deque()
        self.news: list[LinkEvent] = []
        self.dialed_again = 0

    def dial_again(self) -> None:
        self.dialed_again += 1

    def send(self, frame: bytes | bytearray, wait: bool = False) -> bool:
        if not self.up:
            if wait:
                self._network.pass_time(TICK_S)
            return False
        self._network.carry(self, lambda: self._network.at_broker(self, bytes(frame)))
        return True

    def send_all(self, frames: Sequence[bytes | bytearray], wait: bool = False) -> bool:
        return False not in [self.send(frame) for frame in frames]

    def receive(self) -> bytes | None:
        self.poll(TICK_S)
        return self.inbox.popleft() if self.inbox else None

    def poll(self, timeout_s: float = 0.0) -> bool:
        if self.loop is None:  # a serving loop is woken, and never waits
            self._network.pass_time(timeout_s, until=lambda: bool(self.inbox))
        return bool(self.inbox)

    def link_events(self) -> list[LinkEvent]:
        news, self.news = self.news, []
        return news

    def arrived(self, frame: bytes) -> None:
        self.inbox.append(frame)
        self.wake()

    def wake(self) -> None:
        if self.loop is not None:
            self.loop.turn()

    def close(self, linger_s: float = 0.0) -> None:
        self._network.pass_time(10 * LATENCY_S)  # what was sent last arrives
        self._network.cut(self, for_s=None)


class Ledger(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records the calls that its environment executes."""

    def __init__(self, env: gymnasium.Env[Any, Any], entries: list[Entry]) -> None:
        super().__init__(env)
        self.entries = entries

    def step(self, action: Any) -> Any:
        self.entries.append(("step", action))
        return self.env.step(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.entries.append(("reset", seed))
        return self.env.reset(seed=seed, options=options)


class LedgerHost(SessionHost):
    """Keeps a ledger for each session of one environment, even after the session has ended."""

    def __init__(self, services: Sequence[Service]) -> None:
        super().__init__(services)
        self.ledgers: dict[int, list[Entry]] = {}

    def make(
        self, sid: int, seq: int, request: Open, direct: dict[str, Any] | None, **options: bool
    ) -> tuple[Slot | None, Frame]:
        known = sid in self.slots
        slot, frame = super().make(sid, seq, request, direct, **options)
        if slot is not None and not known and isinstance(slot.runner.env, gymnasium.Env):
            ledger = Ledger(slot.runner.env, self.ledgers.setdefault(sid, []))
            slot.runner.env, slot.runner.step = ledger, ledger.step
            slot.runner.spaces = SpaceWatch(ledger)
        return slot, frame


def close_all(host: SessionHost) -> None:
    """Close all sessions and environments of a host, in this thread."""
    for slot in list(host.slots.values()):
        host.remove(slot)
        host.close(slot)
    host.environments.close_spares()


class Network:
    """One broker, and any number of agents. Only events move `now`, in seconds."""

    def __init__(self, seed: int = 0, *, lease_s: float = 30.0) -> None:
        self.now = 1000.0
        self.faults = Faults()
        self.rng = random.Random(seed)
        self.hosts: list[LedgerHost] = []
        self.loops: list[ServingLoop] = []
        self.floods = 0  # how often the broker has cut a connection off
        self._lease_s = lease_s
        self._epochs = itertools.count(1)
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._dealers: dict[bytes, Dealer] = {}
        self._undo = contextlib.ExitStack()
        self.core = self._new_core()
        self._timers()

    def __enter__(self) -> Network:
        self._undo.enter_context(structlog.testing.capture_logs())
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        for host in self.hosts:
            close_all(host)

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now

    def monotonic_ns(self) -> int:
        """Return the time in nanoseconds."""
        return round(self.now * 1e9)

    # --- participants -----------------------------------------------------------------------------

    def env_agent(self, *services: Service) -> ServingLoop:
        """Return a serving loop that offers these services; its host keeps ledgers."""
        host = LedgerHost(services)
        dealer = self.dealer()
        link = BrokerLink(cast(Any, dealer), eager=True)
        loop = ServingLoop(
            lambda: Transports(link, None),
            host,
            self.rng.randbytes(16),
            has_threads=False,
            clock=self.monotonic,
            clock_ns=self.monotonic_ns,
        )
        offers = [host.environments.describe(one, one.max_sessions, None) for one in services]
        loop.connect(offers, wait_s=60.0)
        dealer.loop = loop
        self.hosts.append(host)
        self.loops.append(loop)
        return loop

    def connection(self, timeout_s: float = 60.0, wait_s: float = 0.0) -> BrokerConnection:
        """Return a learner agent's connection."""
        return BrokerConnection(
            BROKER,
            timeout_s=timeout_s,
            wait_s=wait_s,
            clock=self.monotonic,
            clock_ns=self.monotonic_ns,
            dial=lambda *_, **__: self.dealer(),
        )

    def dealer(self) -> Dealer:
        """Return a new connection to the broker."""
        made = Dealer(self, next(self._numbers))
        self._dealers[made.rid] = made
        return made

    def _new_core(self) -> Core:
        return Core(
            epoch=next(self._epochs),
            now=self.now,
            rng=random.Random(self.rng.random()),
            software="memory",
            lease_s=self._lease_s,
        )

    # --- time -------------------------------------------------------------------------------------

    def pass_time(self, for_s: float, until: Callable[[], bool] = lambda: False) -> None:
        """Run the events of the next `for_s` seconds, or until the condition holds."""
        end = self.now + for_s
        while not until():
            if not self._events or self._events[0][0] > end:
                self.now = max(self.now, end)
                return
            at, _, action = heapq.heappop(self._events)
            self.now = max(self.now, at)
            action()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run an action `delay_s` seconds from now."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), action))

    def _timers(self) -> None:
        self.after(TICK_S, self._timers)
        self._deliver(self.core.take_over(self.now))
        self._deliver(self.core.expire(self.now))
        for loop in self.loops:
            loop.turn()

    # --- frames -----------------------------------------------------------------------------------

    def carry(self, dealer: Dealer, deliver: Callable[[], None]) -> None:
        """Deliver a frame over a connection later, with the faults that are set."""
        generation = dealer.generation
        faults, rng = self.faults, self.rng

        def arrive() -> None:
            if dealer.generation == generation:
                deliver()

        if rng.random() < faults.drop:
            return
        for _ in range(2 if rng.random() < faults.double else 1):
            late_s = rng.random() * faults.late_s if rng.random() < faults.late else 0.0
            self.after(LATENCY_S + late_s, arrive)

    def at_broker(self, dealer: Dealer, frame: bytes) -> None:
        """Handle a frame at the broker, as its server does."""
        to = self.core.relay(dealer.rid, frame, None)
        if to is not None and frame[3] & TIMED:
            frame = bytes(stamps.stamp_relay(frame, self.monotonic_ns(), self.monotonic_ns))
        if to is None:
            self._receive(dealer, frame)
        elif not self._send(to, frame):
            self._deliver(self.core.undelivered(to, frame, dealer.rid, False, self.now))

    def _receive(self, dealer: Dealer, frame: bytes) -> None:
        match self.core.admit(dealer.rid, frame, None, self.now):
            case Admission.PASS | Admission.WAIT | Admission.DEMANDING:
                sender = Sender(dealer.rid, dealer.fd, None, "", on_host=True)
                self._deliver(self.core.receive(sender, frame, self.now))
            case Admission.THROTTLE:
                self._deliver(self.core.throttle(dealer.rid, frame))
            case Admission.CUT_OFF:
                self.floods += 1
                self.cut(dealer, 2.0)

    def _deliver(self, sends: list[Send]) -> None:
        for send in sends:
            if not self._send(send.rid, bytes(send.frame)):
                self.core.unreachable(send.rid, self.now)
            else:
                self.core.reachable(send.rid)

    def _send(self, rid: bytes, frame: bytes) -> bool:
        dealer = self._dealers.get(rid)
        if dealer is None or not dealer.up:
            return False
        self.carry(dealer, lambda: dealer.arrived(frame))
        return True

    # --- connections ------------------------------------------------------------------------------

    def cut(self, dealer: Dealer, for_s: float | None) -> None:
        """Break a connection and lose its frames; `for_s`: for how long, None: for ever."""
        if not dealer.up:
            return
        dealer.up = False
        dealer.generation += 1
        dealer.news.append(LinkEvent(up=False, fd=dealer.fd))
        self.core.link_down(dealer.fd)
        if for_s is not None:
            self.after(for_s, lambda: self._mend(dealer))
            dealer.wake()

    def _mend(self, dealer: Dealer) -> None:
        dealer.up = True
        dealer.fd += 100_000
        dealer.news.append(LinkEvent(up=True, fd=dealer.fd))
        dealer.wake()

    def restart_broker(self, for_s: float = 0.5) -> None:
        """Replace the broker by a new one, which is reachable `for_s` seconds later."""
        for dealer in self._dealers.values():
            self.cut(dealer, for_s)
        self.core = self._new_core()

    def connections(self) -> list[Dealer]:
        """Return the connections that are up, the oldest first."""
        return [dealer for dealer in self._dealers.values() if dealer.up]

    @property
    def ledgers(self) -> dict[int, list[Entry]]:
        """Each sid with the calls that its environments executed, at any agent."""
        found: dict[int, list[Entry]] = {}
        for host in self.hosts:
            for sid, entries in host.ledgers.items():
                found.setdefault(sid, []).extend(entries)
        return found
