"""The env agent of one process: its serving loops, one per thread, and its helper connections."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import secrets
import signal
import socket as hostsocket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

from gymnasium.error import DependencyNotInstalled

from gymwire.env_agent import failure_reports, signals
from gymwire.env_agent.crew import CLOSING, Relief
from gymwire.env_agent.environments import Environments, Service
from gymwire.env_agent.failure_reports import CodeRaised
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.env_agent.interpreter.process_watch import PROCESS_FILES
from gymwire.env_agent.loop import ServingLoop
from gymwire.env_agent.progress_reporter import ProgressReporter
from gymwire.env_agent.registration import check_offer
from gymwire.env_agent.sessions import SessionHost, Warned
from gymwire.env_agent.transports import DirectEndpoint, DirectSettings, Transports
from gymwire.env_agent.unfinished import Unfinished
from gymwire.protocol import logs
from gymwire.protocol.errors import ConfigurationError, GymwireError
from gymwire.protocol.extras import not_installed
from gymwire.protocol.messages import AGENT_SIZE, Offer
from gymwire.protocol.outside_exceptions import is_from_signal_handler
from gymwire.protocol.process_ids import session_text, with_process
from gymwire.protocol.process_slots import with_process_slots
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.transport.broker_link import BrokerLink
from gymwire.protocol.transport.dealer import Dealer, LivenessConnection
from gymwire.protocol.transport.open_files import lack_of

MAX_THREADS = 8
CLOSE_S = 1.0  # for closing sessions that are between two requests when the grace is over
MAX_NAMED = 20  # sessions in a line of the log
MAX_GRACE_S = 1e9  # timers accept no more, and not 'inf'
LAST_S = 3.0  # how much longer than the grace the process may take, with all its exit handlers


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
        threads: how many threads execute all environments; None: each session has its own.
        wait_s: how long to wait for the broker, in seconds.
        grace_s: how long running steps, closing environments, and after SIGTERM sessions may
            continue before they are cut off, in seconds.

    Attributes:
        on_stop: called with the reason if an operator of the broker stops this env agent. By
            default it ends as after SIGTERM.
        stopped: whether an operator of the broker has stopped it.
        agent_pid: the process that people started: this one, or the supervisor of this worker.
        offering: set once the broker has confirmed all offers.
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
        self._grace_s = min(grace_s, MAX_GRACE_S)
        self.offering = threading.Event()
        self._id = secrets.token_bytes(AGENT_SIZE)
        max_slots = max(service.max_sessions for service in services)
        warned: Warned = {}
        unfinished = Unfinished()
        self._loops = [
            ServingLoop(
                partial(self._make_transports, index),
                SessionHost(services, key, lambda: self._restore_signals(), warned, unfinished),
                self._id,
                logs_broker_state=index == 0,
                has_threads=threads is None,
            )
            for index in range(min(max_slots, threads or MAX_THREADS))
        ]
        self._log = logs.logger()
        self._lock = threading.Lock()
        self._registered = 0  # loops whose offers the broker has confirmed
        self._failure: GymwireError | None = None
        self._signals = 0
        self._restore_signals: Callable[..., None] = lambda **_: None
        self._ending = threading.Event()
        self._is_described = False
        self.stopped = False
        self.on_stop = self._stop_for_operator
        self._reporter: ProgressReporter | None = None
        self._ended = threading.Condition()
        self.agent_pid = self._pid = os.getpid()
        self._running = set(range(len(self._loops)))  # the indices of loops that have not ended

    def run(self) -> None:
        """Offer and serve until `stop` or a signal.

        Raises the GymwireError that prevents it. Ends the process with the status
        `signals.CUT_OFF` if a step or an environment's `close` does not end in time.
        """
        try:
            self._run()
        except Exception as error:
            if isinstance(error, GymwireError) or not _is_descriptors(error):
                raise
            raise _explained(error) from error

    def _run(self) -> None:
        first, *others = self._loops
        offers = self._describe(first.host.environments)
        _warn_of_files(self._services)
        self._restore_signals()
        self._is_described = True
        connected = False
        try:
            connected = first.connect(self._share(offers, 0), self._wait_s)
        finally:
            if not connected:
                first.host.environments.close_spares()
        if not connected:
            return
        threads = [
            threading.Thread(target=self._run_loop, args=(i, offers), name=f"loop-{i}", daemon=True)
            for i in range(1, len(self._loops))
        ]
        liveness = self._make_liveness(self._id)
        reporter = self._reporter = ProgressReporter(
            partial(self._make_followed, liveness), self._loops, self._id, self.on_stop
        )
        holder = threading.Thread(target=liveness.hold, name="liveness", daemon=True)
        relief = Relief([loop.crew for loop in self._loops])
        for thread in (*threads, reporter, holder, relief):
            thread.start()
        self._loop_registered(offers)
        try:
            self._run_first(first)
        finally:
            self._loop_ended(0)
            if not self._ending.is_set():
                for loop in others:
                    loop.stop.set()
            complete = self._wait_for_loops(self._grace_s + CLOSE_S)
            reporter.stop()
            relief.stop()
            liveness.release()
            for thread in (reporter, holder, relief):
                thread.join(timeout=2.0)
        if self._failure is not None:
            raise self._failure
        if not complete:
            self._cut_off(self._describe_running())

    def _run_first(self, loop: ServingLoop) -> None:
        """Run the first loop, in whose thread Python runs the signal handlers of environments."""
        try:
            loop.run()
        except BaseException as error:
            if not is_from_signal_handler(error):
                raise
            why = failure_reports.summary(error)[:200]
            self._log.warning("exception of a signal handler ignored", error=why)
        finally:
            self._restore_signals(at_end=True)

    def _make_followed(self, liveness: LivenessConnection) -> Dealer:
        """Dial the broker; the liveness connection follows to the address that this one reaches."""
        dealer = self._make_dealer()
        dealer.on_up = liveness.follow
        return dealer

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
        offers: list[Offer] = []
        failed: GymwireError | None = None
        for service in self._services:
            try:
                address, env = service.address, service.factory.name
                with logs.logged_if_long("making environment", address=address, env=env):
                    offer = environments.describe(service, service.max_sessions, url)
                check_offer(*self._share([offer], 0))
                offers.append(offer)
            except BaseException as error:  # noqa: BLE001 - the other offers can still be served
                end_if_forked(self._pid, error)
                environments.close_spare(service.address)
                left_out = self._left_out(service, error)
                failed = failed or left_out
        if failed is not None and not offers:
            raise failed
        return offers

    def _left_out(self, service: Service, error: BaseException) -> GymwireError:
        """Return the error that says why a service cannot be offered.

        It contains the traceback, unless the text says it all. Log both if there are others, which
        are served without this one.
        """
        failed = error
        trace: dict[str, str] = {}
        is_only = len(self._services) == 1
        if isinstance(error, failure_reports.WrongKeywords):
            failed = ConfigurationError(f"{error} Correct --env-kwargs (env_kwargs in a file).")
        elif isinstance(error, DependencyNotInstalled):
            failed = not_installed(service.factory.name, error)
        elif not isinstance(failed, GymwireError):
            raised = CodeRaised(f"{service.factory.name} cannot be made:", error)
            trace["traceback"] = raised.traceback
            failed = raised if is_only else ConfigurationError(raised.why)
            failed.__cause__ = error
        if service.source:
            failed.args = (f"{service.source}: {failed}", *failed.args[1:])
        if not is_only:
            self._log.error("offer left out", address=service.address, why=str(failed), **trace)
        return failed

    def _share(self, offers: Sequence[Offer], index: int) -> list[Offer]:
        """Return the share of the slots that the loop with this index serves."""
        count = len(self._loops)
        shares = [
            replace(
                with_process_slots(
                    with_process(offer, os.getpid(), self.agent_pid), offer.capacity
                ),
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
        except BaseException as error:  # noqa: BLE001 - `run` raises it in the main thread
            self._failure = _explained(error)
            self.stop()
        finally:
            self._loop_ended(index)

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
        self.offering.set()

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """End all loops, each after its current request."""
        for loop in self._loops:
            loop.stop.set()

    def on_signal(self, number: int) -> None:
        """End as docs/reliability.md describes.

        After SIGTERM, SIGUSR1 and SIGHUP, sessions may continue until they end or `grace_s` is
        over. After Ctrl-C each loop ends after its current request. A second SIGTERM or Ctrl-C ends
        the process immediately; a repeated SIGUSR1 or SIGHUP changes nothing.
        """
        if number in signals.DRAINING and self._ending.is_set():
            return
        if number not in signals.DRAINING:
            self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)
        if not self._ending.is_set():
            self._end_at_last()
        self.end(drain=number != signal.SIGINT)
        if number == signal.SIGINT:
            self.stop()

    def _stop_for_operator(self, why: str) -> None:
        self.stopped = True
        self._end_at_last()
        self.end(drain=True, why=why)

    def _end_at_last(self) -> None:
        """End the process when the grace is over, whatever its environments do."""
        # Not a thread of this interpreter: these end before what runs at its exit does.
        with contextlib.suppress(OSError):
            faulthandler.dump_traceback_later(
                self._grace_s + LAST_S, exit=True, file=os.open(os.devnull, os.O_WRONLY)
            )

    def end(self, *, drain: bool, why: str = "") -> None:
        """Withdraw the offers, and end within `grace_s`; for a thread other than the main one.

        Args:
            drain: whether the sessions may continue until they end or `grace_s` is over.
            why: who requested it, for the log; "" after a signal.
        """
        with self._lock:
            if self._ending.is_set():
                return
            self._ending.set()
        if not self._is_described:
            self._log.info("cut off", running=["the constructor of the first environment"])
            self._end_process()
        for loop in self._loops:
            loop.drain.set()
        running = self._describe_running("may continue" if drain else "ends now")
        if not drain:
            self.stop()
        if self._reporter is not None:
            self._reporter.withdraw([service.address for service in self._services])
        facts = {"why": why} if why else {}
        if not drain:  # after Ctrl-C
            facts["hint"] = "a second Ctrl-C ends it at once"
        self._log.info("stopping", running=running, at_most_s=self._grace_s, **facts)
        threading.Thread(target=self._end_in_time, name="ending", daemon=True).start()

    def _end_in_time(self) -> None:
        """Abandon what is still running when `grace_s` is over."""
        if not self._wait_for_loops(self._grace_s):
            why = f"its grace period of {self._grace_s:g} s is over"
            sessions = [session_text(row[0]) for one in self._loops for row in one.host.listed]
            named = sessions[:MAX_NAMED]
            if sessions:
                self._log.warning("ending sessions", why=why, count=len(sessions), sessions=named)
            for loop in self._loops:
                loop.why = why
            self.stop()
            if not self._wait_for_loops(CLOSE_S):
                if self._reporter is not None:
                    self._reporter.leave(why)
                self._cut_off(self._describe_running())

    def _wait_for_loops(self, at_most_s: float) -> bool:
        """Return whether all loops have ended, within this many seconds."""
        with self._ended:
            return self._ended.wait_for(lambda: not self._running, at_most_s)

    def _loop_ended(self, index: int) -> None:
        with self._ended:
            self._running.discard(index)
            self._ended.notify_all()

    def _describe_running(self, idle: str = "") -> list[str]:
        """Describe what the loops execute: one text for each loop that has not ended.

        `idle`: what becomes of a session between two requests; "": nothing is said about it.
        """
        now, running = time.monotonic(), []
        for index in sorted(self._running):
            loop = self._loops[index]
            requests = loop.current_requests
            for sid, seq, since in requests:
                what = "closing the environment of" if seq == CLOSING else f"request {seq} of"
                address = loop.host.address_of(sid)
                if sid in loop.host.opening:
                    what = "making the environment of"
                at = f" at {address!r}" if address else ""
                running.append(f"{what} session {session_text(sid)}{at}, for {now - since:.1f} s")
            if not requests and not loop.idle:
                running.append(f"a session between two requests{idle and f', which {idle}'}")
        return running

    def _cut_off(self, running: list[str]) -> NoReturn:
        """End the process although something still runs, with exit status 1."""
        self._log.error("cut off", running=running, grace_s=self._grace_s)
        self._end_process()

    def _end_process(self) -> NoReturn:
        """End the process with exit status 1, whatever runs in it."""
        for service in self._services:
            if service.recorder is not None:
                service.recorder.close()
        is_worker = self.agent_pid != os.getpid()
        os._exit(signals.STOPPED if self.stopped and is_worker else signals.CUT_OFF)

    def install_signals(self) -> None:
        """End on SIGTERM, SIGUSR1, SIGHUP and Ctrl-C. Call this in the main thread."""
        self._restore_signals = signals.watch(self.on_signal)


def _warn_of_files(services: Sequence[Service]) -> None:
    """Log a warning if there are fewer descriptors than the processes of all slots need."""
    slots = sum(one.max_sessions for one in services if isinstance(one.factory, ChildFactory))
    lack = lack_of(slots * PROCESS_FILES)
    if lack is not None:
        logs.logger().warning(
            "too few open files",
            limit=lack.limit,
            needed=lack.needed,
            why=f"each session with --python takes {PROCESS_FILES}, and there are {slots} slots",
            advice="raise the limit on open files (ulimit -n), or lower --max-sessions",
        )


def _is_descriptors(error: BaseException) -> bool:
    """Return whether the error is that no more files or sockets can be opened."""
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE)


def _explained(error: BaseException) -> GymwireError:
    """Return the error of an agent that cannot serve because of this error."""
    if _is_descriptors(error):
        return ConfigurationError(
            f"This env agent cannot open enough files and sockets: {error}. Raise the limit on "
            f"open files (ulimit -n), or use fewer threads (such as --threads 1) or slots "
            f"(--max-sessions)."
        )
    return GymwireError(
        f"A serving thread ended, a bug in gymwire: {failure_reports.summary(error)}. "
        f"Start the env agent again, and report the bug."
    )
