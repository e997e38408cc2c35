"""The env agent of one process: its serving loops, one per thread, and its helper connections."""

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

from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.progress_reporter import ProgressReporter
from gymwire.env_agent.sessions import SessionHost
from gymwire.env_agent.transports import DirectEndpoint, DirectSettings, Transports
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.messages import AGENT_SIZE, Offer
from gymwire.protocol.process_slots import with_process_slots
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection

MAX_THREADS = 8


class Agent:
    """The env agent of one process.

    The first loop runs in the thread that calls `run`, which must be the main thread for some
    environments.

    Args:
        services: what to offer.
        make_dealer: makes a connection to the broker.
        make_liveness: makes the liveness connection of the process with this id.
        key: the agent's key pair, or None.
        direct: the settings for direct sessions; None: no direct sessions.
        threads: how many sessions can execute a step at the same time (default: one for each
            slot, at most MAX_THREADS).
        wait_s: how long to wait for the broker, in seconds.
        grace_s: how long sessions may continue after `drain`, in seconds.
    """

    def __init__(
        self,
        services: Sequence[Service],
        make_dealer: Callable[[], Dealer],
        make_liveness: Callable[[bytes], LivenessConnection],
        *,
        key: KeyPair | None = None,
        direct: DirectSettings | None = None,
        threads: int | None = None,
        wait_s: float = 2.5,
        grace_s: float = 10.0,
    ) -> None:
        self._services = services
        self._make_dealer = make_dealer
        self._make_liveness = make_liveness
        self._direct = direct
        self._wait_s = wait_s
        self._grace_s = grace_s
        self._id = secrets.token_bytes(AGENT_SIZE)
        max_slots = max(service.max_sessions for service in services)
        self._loops = [
            ServingLoop(
                partial(self._make_transports, index),
                SessionHost(services, key),
                self._id,
                logs_broker_state=index == 0,
            )
            for index in range(min(max_slots, threads or MAX_THREADS))
        ]
        self._log = structlog.get_logger()
        self._lock = threading.Lock()
        self._registered = 0  # loops whose offers the broker has confirmed
        self._failure: GymwireError | None = None
        self._signals = 0

    def run(self) -> None:
        """Offer and serve until `stop` or `drain`. Raises the GymwireError that prevents it."""
        first, *others = self._loops
        offers = self._describe(first.host.environments)
        if not first.connect(self._share(offers, 0), self._wait_s):
            return
        threads = [
            threading.Thread(target=self._run_loop, args=(i, offers), name=f"loop-{i}", daemon=True)
            for i in range(1, len(self._loops))
        ]
        reporter = ProgressReporter(self._make_dealer, self._loops, self._id)
        liveness = self._make_liveness(self._id)
        holder = threading.Thread(target=liveness.hold, name="liveness", daemon=True)
        for thread in (*threads, reporter, holder):
            thread.start()
        self._loop_registered(offers)
        try:
            first.run()
        finally:
            for loop in others:
                loop.stop.set()
            for thread in threads:
                thread.join(timeout=2.0)
            reporter.stop()
            liveness.release()
            for thread in (reporter, holder):
                thread.join(timeout=2.0)
        if self._failure is not None:
            raise self._failure

    def _make_transports(self, index: int) -> Transports:
        """Dial the broker, and listen for direct connections to the loop with this index."""
        link = BrokerLink(self._make_dealer(), eager=True)
        if self._direct is None:
            return Transports(link, None)
        try:
            endpoint = DirectEndpoint(self._direct, index, link.url)
        except ConfigurationError as error:
            if self._direct.url is None:  # the default: the operator did not ask for it
                if index == 0:
                    self._log.warning("direct sessions unavailable", why=str(error))
            elif index == 0:
                link.close()
                raise
            else:
                self._log.warning("direct sessions unavailable in a thread", why=str(error))
            endpoint = None
        return Transports(link, endpoint)

    def _describe(self, environments: Environments) -> list[Offer]:
        url = None if self._direct is None else self._direct.url
        offers = []
        for service in self._services:
            try:
                offers.append(environments.describe(service, service.max_sessions, url))
            except GymwireError:
                raise
            except Exception as error:
                raise ConfigurationError(
                    f"{service.factory.name} cannot be made: {type(error).__name__}: {error}"
                ) from error
        return offers

    def _share(self, offers: Sequence[Offer], index: int) -> list[Offer]:
        """Return the share of the slots that the loop with this index serves."""
        count = len(self._loops)
        shares = [
            replace(
                with_process_slots(offer, offer.capacity),
                capacity=(offer.capacity + count - 1 - index) // count,
            )
            for offer in offers
        ]
        return [share for share in shares if share.capacity > 0]

    def _run_loop(self, index: int, offers: Sequence[Offer]) -> None:
        """Run a loop other than the first, in its own thread."""
        loop = self._loops[index]
        try:
            if loop.connect(self._share(offers, index), max(self._wait_s, 10.0)):
                self._loop_registered(offers)
                loop.run()
        except GymwireError as error:
            self._failure = error
            self.stop()

    def _loop_registered(self, offers: Sequence[Offer]) -> None:
        """Log the offers once all loops, and so all slots, are registered."""
        with self._lock:
            self._registered += 1
            if self._registered < len(self._loops):
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
        """End all loops, each after its current request."""
        for loop in self._loops:
            loop.stop.set()

    def drain(self) -> None:
        """Accept no new sessions; stop when the open ones have ended, or after `grace_s`."""
        for loop in self._loops:
            loop.drain.set()
        threading.Thread(target=self._stop_when_idle, name="drain", daemon=True).start()

    def _stop_when_idle(self) -> None:
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline and not all(loop.idle for loop in self._loops):
            time.sleep(0.05)
        self.stop()

    def install_signals(self) -> None:
        """Drain on SIGTERM, stop on Ctrl-C; a second signal ends the process immediately."""

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
