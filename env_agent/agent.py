"""The env agent: serving loops, one a thread, and the pulse; what an operator starts and stops."""

from __future__ import annotations

import os
import secrets
import signal
import socket as hostsocket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog

from gymwire.env_agent.host import Host, Service
from gymwire.env_agent.loop import Loop
from gymwire.env_agent.progress_reporter import Pulse
from gymwire.env_agent.transports import DirectEndpoint, DirectSettings, Paths
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.messages import Offer
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection

MAX_THREADS = 8


class Agent:
    """One process's env agent. `threads`: how many sessions can be in a step at the same time.

    The first loop runs in the thread that calls `run`, the main thread: some environments need it.
    """

    def __init__(
        self,
        services: Sequence[Service],
        make_dealer: Callable[[], Dealer],
        make_presence: Callable[[bytes], LivenessConnection],
        *,
        key: KeyPair | None = None,
        direct: DirectSettings | None = None,
        threads: int | None = None,
        wait_s: float = 2.5,
        grace_s: float = 10.0,
    ) -> None:
        self._services = services
        self._make_dealer = make_dealer
        self._make_presence = make_presence
        self._wait_s = wait_s
        self._grace_s = grace_s
        self._token = secrets.token_bytes(16)
        most = max(service.max_sessions for service in services)
        count = min(most, threads or MAX_THREADS)
        self._direct = direct
        self._loops = [
            Loop(
                partial(self._make_paths, index),
                Host(services, key),
                self._token,
                tells=index == 0,
            )
            for index in range(count)
        ]
        self._log = structlog.get_logger()
        self._lock = threading.Lock()
        self._standing = 0  # loops whose part of the offers stands
        self._failed: GymwireError | None = None
        self._signals = 0

    def run(self) -> None:
        """Offer and serve until told to stop. Raises what kept it from offering."""
        first, *others = self._loops
        offers = self._describe(first.host)
        if not first.connect(self._share(offers, 0), self._wait_s):
            return
        threads = [
            threading.Thread(target=self._run_loop, args=(i, offers), name=f"loop-{i}", daemon=True)
            for i in range(1, len(self._loops))
        ]
        pulse = Pulse(self._make_dealer, self._loops, self._token)
        presence = self._make_presence(self._token)
        holding = threading.Thread(target=presence.hold, name="presence", daemon=True)
        for thread in (*threads, pulse, holding):
            thread.start()
        self._stands(offers)
        try:
            first.run()
        finally:
            for loop in others:
                loop.stop.set()
            for thread in threads:
                thread.join(timeout=2.0)
            pulse.stop()
            presence.release()
            for thread in (pulse, holding):
                thread.join(timeout=2.0)
        if self._failed is not None:
            raise self._failed

    def _make_paths(self, index: int) -> Paths:
        """Dial the broker and listen for direct connections."""
        dealer = BrokerLink(self._make_dealer(), eager=True)
        if self._direct is None:
            return Paths(dealer, None)
        try:
            endpoint = DirectEndpoint(self._direct, index, dealer.url)
        except ConfigurationError as error:
            if self._direct.url is None:  # nobody has asked for it
                if index == 0:
                    self._log.warning("no direct sessions within this host", why=str(error))
            elif index == 0:
                dealer.close()
                raise
            else:
                self._log.warning("a thread takes no direct sessions", why=str(error))
            endpoint = None
        return Paths(dealer, endpoint)

    def _describe(self, host: Host) -> list[Offer]:
        offers = []
        for service in self._services:
            try:
                url = None if self._direct is None else self._direct.url
                offers.append(host.describe(service, service.max_sessions, url))
            except GymwireError:
                raise
            except Exception as error:
                raise ConfigurationError(
                    f"{service.factory.name} cannot be made: {type(error).__name__}: {error}"
                ) from error
        return offers

    def _share(self, offers: Sequence[Offer], index: int) -> list[Offer]:
        """The part of the slots that the loop of this index serves."""
        count = len(self._loops)
        shares = [
            replace(offer, capacity=(offer.capacity + count - 1 - index) // count)
            for offer in offers
        ]
        return [share for share in shares if share.capacity > 0]

    def _run_loop(self, index: int, offers: Sequence[Offer]) -> None:
        loop = self._loops[index]
        try:
            if loop.connect(self._share(offers, index), max(self._wait_s, 10.0)):
                self._stands(offers)
                loop.run()
        except GymwireError as error:
            self._failed = error
            self.stop()

    def _stands(self, offers: Sequence[Offer]) -> None:
        """What one of the loops offers stands; that of the last makes the offers whole."""
        with self._lock:
            self._standing += 1
            if self._standing < len(self._loops):
                return
        for offer in offers:
            self._log.info(
                "offering",
                address=offer.address,
                env=offer.env_id,
                slots=offer.capacity,
                host=hostsocket.gethostname(),
                pid=os.getpid(),
            )

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """End all loops; what they are executing is finished first."""
        for loop in self._loops:
            loop.stop.set()

    def drain(self) -> None:
        """Take no new sessions; end when the running ones have ended, or after the grace period."""
        for loop in self._loops:
            loop.drain.set()
        watch = threading.Thread(target=self._watch_drain, name="drain", daemon=True)
        watch.start()

    def _watch_drain(self) -> None:
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline and not all(loop.idle for loop in self._loops):
            time.sleep(0.05)
        self.stop()

    def install_signals(self) -> None:
        """SIGTERM drains, Ctrl-C stops; a second signal ends the process where it stands."""

        def on_signal(number: int, frame: object) -> None:
            self._signals += 1
            if self._signals > 1:
                os._exit(128 + number)
            if number == signal.SIGTERM:
                self.drain()
            else:
                self.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
