"""The long run: a whole fleet trains while one fault after the other is injected."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.chain import judge
from tests.chaos.fleet import Fleet, Part, fleet, until
from tests.chaos.relays import FAIR, MessageRelay, TcpRelay, Weather
from tests.chaos.schedule import Fault, Kind, faults

RECOVER_S = 40.0  # within which all learners must continue after a fault has ended
PAUSE_S = 1.0

HOST = ("--direct", "host")
WEATHERS = {
    "dropped": Weather(drop=0.02),
    "doubled": Weather(double=0.3),
    "delayed and reordered": Weather(delay=0.3, delay_s=0.1),
}


@dataclass
class Tally:
    """The results of one kind of fault."""

    times: int = 0
    lost: int = 0
    noticed_s: list[float] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)


class Storm:
    """A fleet, and the faults to inject into it."""

    def __init__(self, fleet: Fleet, seed: int, keys: bool, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._say = say
        self.tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
        self.failures: list[str] = []
        self._replaced = 0
        self.broker = fleet.broker("--lease", "30", full_disk=True)
        self.agents_link = TcpRelay(fleet.port)
        self.learners_link = TcpRelay(fleet.port)
        self.messages = MessageRelay(fleet.url, seed)
        # Under CURVE every frame is numbered and encrypted: whole messages cannot be harmed there.
        rainy = fleet.url if keys else self.messages.url
        self.workers = fleet.env_agent("--workers", "2", "--max-sessions", "100", *HOST)
        self.agents = [
            fleet.env_agent("--max-sessions", "100", "--threads", "4"),
            fleet.env_agent("--max-sessions", "100", "--direct", "tcp://127.0.0.1:*"),
            fleet.env_agent("--max-sessions", "100", "--threads", "2", url=self.agents_link.url),
            fleet.env_agent("--max-sessions", "100", "--threads", "2", url=rainy),
            fleet.env_agent("--max-sessions", "100", "--threads", "1", full_disk=True),
        ]
        self.learners = [
            fleet.learner("near", "--envs", "20", seed=seed),
            fleet.learner("far", "--envs", "20", url=self.learners_link.url, seed=seed),
            fleet.learner("rainy", "--envs", "6", url=rainy, seed=seed),
            fleet.learner("crowd", "--envs", "200", "--pause", "0.002", seed=seed),
        ]
        self.mortal = self._mortal()

    def _mortal(self) -> Part:
        self._replaced += 1
        return self._fleet.learner(f"mortal{self._replaced}", "--envs", "6", seed=self._replaced)

    # --- one fault --------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """Inject a fault, end it, and wait until all learners continue."""
        kind = fault.kind
        tally = self.tallies[kind.target, kind.name]
        tally.times += 1
        before = self._losses()
        at = time.monotonic()
        lift = self._harm(fault)
        time.sleep(fault.lasts_s)
        lift()
        lifted = time.monotonic()
        try:
            self._all_go_on()
        except AssertionError as error:
            self.failures.append(f"{kind.target} {kind.name}: {error}")
        recovered_s = time.monotonic() - lifted
        tally.recovered_s.append(recovered_s)
        time.sleep(PAUSE_S)
        lost = [row for row in self._losses() if row not in before]
        tally.lost += len(lost)
        first: dict[str, float] = {}
        for name, lost_at in lost:
            process = name.split(".")[0]
            first[process] = min(first.get(process, lost_at), lost_at)
        noticed = max((lost_at - at for lost_at in first.values()), default=None)
        if noticed is not None:
            tally.noticed_s.append(noticed)
        if lost and not kind.loses:
            self.failures.append(f"{kind.target} {kind.name}: {len(lost)} sessions were lost.")
        self._say(
            f"{kind.target}: {kind.name} for {fault.lasts_s:.1f} s: all go on "
            f"{recovered_s:.1f} s later, {len(lost)} sessions lost"
            + (f", noticed after {noticed:.1f} s" if noticed else "")
        )

    def _harm(self, fault: Fault) -> Callable[[], None]:
        kind = fault.kind
        match kind.target:
            case "broker":
                return self._harm_broker(kind)
            case "learner":
                return self._harm_learner(fault)
            case "env agent":
                return self._harm_agent(fault)
            case "worker":
                os.kill(self.workers.children()[int(fault.pick * 2)], signal.SIGKILL)
                return _nothing
            case "messages":
                self.messages.weather = WEATHERS[kind.name]
                return self._calm
            case "learner's link":
                return _harm_link(self.learners_link, kind.name)
            case _:
                return _harm_link(self.agents_link, kind.name)

    def _harm_broker(self, kind: Kind) -> Callable[[], None]:
        broker = self.broker
        match kind.name:
            case "frozen":
                broker.freeze()
                return broker.thaw
            case "restarted ten times":
                for _ in range(9):
                    broker.kill()
                    broker.start()
                    time.sleep(0.3)
        broker.kill()
        return broker.start

    def _harm_learner(self, fault: Fault) -> Callable[[], None]:
        if fault.kind.name == "killed":
            self.mortal.kill()
            self.mortal = self._mortal()
            return _nothing
        learner = self.learners[int(fault.pick * len(self.learners))]
        learner.freeze()
        return learner.thaw

    def _harm_agent(self, fault: Fault) -> Callable[[], None]:
        agent = self.agents[int(fault.pick * len(self.agents))]
        if fault.kind.name == "killed":
            agent.kill()
            return agent.start
        agent.freeze()
        return agent.thaw

    def _calm(self) -> None:
        self.messages.weather = FAIR

    # --- what is seen -----------------------------------------------------------------------------

    def _all_go_on(self) -> None:
        parts = [*self.learners, self.mortal]
        counts = {part.log: part.text().count('"goes on"') for part in parts}
        for part in parts:
            until(
                lambda part=part: (  # type: ignore[misc]
                    part.text().count('"goes on"') > counts[part.log] + 1 or not part.alive
                ),
                f"{part.log.name} goes on",
                RECOVER_S,
            )
            assert part.alive, f"{part.log.name} died:\n{part.text()[-1500:]}"

    def _losses(self) -> set[tuple[str, float]]:
        return {
            (row["course"], row["lost_at"])
            for part in self._fleet.parts
            for row in rows(part)
            if row["event"] == "lost"
        }

    def end(self) -> tuple[int, int, Counter[str]]:
        """End all processes; return the requests executed, the sessions, and what relays did."""
        for part in [*self.learners, self.mortal]:
            assert part.process.stdin is not None
            part.process.stdin.close()
        answered: dict[str, int] = {}
        lost: dict[str, int] = {}
        for part in [*self.learners, self.mortal]:
            status = part.process.wait(30.0)
            if status != 0:
                self.failures.append(f"{part.log.name} ended with {status}: {part.text()[-500:]}")
            for row in rows(part):
                if row["event"] == "done":
                    answered.update(row["answered"])
                    lost.update(row["lost"])
        for part in (*self.agents, self.workers, self.broker):
            try:
                part.end()
            except Exception as error:  # noqa: BLE001 - a finding, reported with the others
                self.failures.append(f"{part.log.name} does not leave: {error}")
        for relay in (self.agents_link, self.learners_link, self.messages):
            relay.close()
        verdict = judge(self._fleet.ledger, answered, lost)
        self.failures += verdict.faults
        return verdict.executed, verdict.instances, self.messages.done


def rows(part: Part) -> Iterator[dict[str, Any]]:
    """Yield the entries of a learner's diary."""
    for line in part.text().splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _nothing() -> None:
    return


def _harm_link(link: TcpRelay, name: str) -> Callable[[], None]:
    def calm() -> None:
        link.mode, link.rate = "pass", None

    match name:
        case "reset":
            link.reset()
        case "half-open":
            link.half_open()
        case "throttled":
            link.rate = 20_000.0
        case "stalled":
            link.mode = "stall"
        case _:
            link.mode = "black-hole"
    return calm


def run(folder: Path, *, seconds: float, seed: int, keys: bool, say: Callable[[str], None]) -> bool:
    """Run for about `seconds`, and print the result. Returns whether all survived."""
    start = time.monotonic()
    with fleet(folder, keys=keys) as made:
        storm = Storm(
            made, seed, keys, lambda text: say(f"{time.monotonic() - start:7.1f} s  {text}")
        )
        storm._all_go_on()
        for fault in faults(seed):
            if time.monotonic() - start > seconds or storm.failures:
                break
            if not (keys and fault.kind.target == "messages"):
                storm.inject(fault)
        executed, sessions, relayed = storm.end()
    say("")
    say(f"{'what':42} {'times':>5} {'lost':>5} {'noticed, worst':>14} {'all go on, worst':>17}")
    for (target, name), tally in sorted(storm.tallies.items()):
        noticed = f"{max(tally.noticed_s):.1f} s" if tally.noticed_s else "–"
        again = f"{max(tally.recovered_s):.1f} s"
        say(f"{target + ': ' + name:42} {tally.times:5} {tally.lost:5} {noticed:>14} {again:>17}")
    say("")
    say(
        f"{executed} requests executed in {sessions} environments, each exactly once, in order, and"
    )
    say("answered as the local copy answers" if not storm.failures else "with failures:")
    say(f"messages through the bad network: {dict(relayed)}")
    for failure in storm.failures:
        say(f"FAILED: {failure}")
    return not storm.failures
