"""What a broker spends on a fleet, and from that, how large a fleet one broker can have.

    python -m benchmarks.capacity                  (two or three minutes, on a quiet machine)

All parts are told that they run on different hosts, as in a fleet, so they use ZeroMQ over tcp.
The broker has one thread of its own, which no more processors make faster, and libzmq another one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks import ours
from benchmarks.many import pss_kib
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import observe
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol.codec import PLAIN
from gymwire.protocol.messages import Ping
from gymwire.protocol.transport.broker_link import BrokerLink

ENV = "benchmarks.environments:Sleeper"
AGENTS = 6  # idle env agents, beside the one that serves
PINGS, AT_ONCE = 20_000, 40  # those that are measured, and from how many connections
PINGS_OF_AGENT = 9  # a second: from eight serving threads, and for the reports
LEARNERS = 200  # connections without a session
SESSIONS = 2000
BUSY = 400  # sessions that step at the same time, below the number from which they take turns
STEP_S = 0.4  # of a busy session
HEARTBEAT_S = 1.5  # on each connection of an env agent
STEPS = 2000  # relayed ones of one session
LOOKS = 10  # at everything that the broker knows
SETTLE_S, WATCH_S = 3.0, 10.0  # before and while the broker's CPU time is read
PAGE_ROWS = 100  # of OBSERVED, and the most of a REPORT
PAGES = "pages for Prometheus"
WIDTH = 120  # of the tables, which are those of the documentation


class Cpu(NamedTuple):
    """CPU time in µs: of the broker's own thread, and of all others, which are libzmq's."""

    own: float
    zmq: float

    def over(self, count: float) -> Cpu:
        """Return the time of one of so many."""
        return Cpu(self.own / count, self.zmq / count)

    def less(self, other: Cpu) -> Cpu:
        """Return what is more than the other, but not less than nothing."""
        return Cpu(max(0.0, self.own - other.own), max(0.0, self.zmq - other.zmq))


@dataclass(frozen=True)
class Costs:
    """What one broker spends.

    Attributes:
        ping: the PING of an env agent, when many arrive.
        agent_kib, learner_kib, session_kib: memory per env agent, connected learner, session.
        learner: per second and connected learner.
        agent_fds: connections of an env agent.
        open, close: opening and closing a session.
        report: per second and stepping session, for the reports of its steps.
        page: a page of OBSERVED.
        relayed: a relayed step.
        relayed_bytes: the frames of a relayed step: an action, and four float32.
    """

    ping: Cpu
    agent_kib: float
    agent_fds: float
    learner: Cpu
    learner_kib: float
    open: Cpu
    close: Cpu
    session_kib: float
    report: Cpu
    page: Cpu
    relayed: Cpu
    relayed_bytes: float


@dataclass(frozen=True)
class Demand:
    """A fleet, and how it is used.

    Attributes:
        agents, sessions, learners: how many there are.
        life_s: for how long a session lasts on average.
        observe_s: how often somebody, such as Prometheus, reads everything that the broker knows.
    """

    agents: int = 1_000
    sessions: int = 100_000
    learners: int = 1_000
    life_s: float = 600.0
    observe_s: float = 15.0


class Share(NamedTuple):
    """One line of the model: what for, how many a second, and the parts of a processor."""

    what: str
    per_s: float
    own: float
    zmq: float


def model(costs: Costs, demand: Demand) -> list[Share]:
    """Return what the broker spends each second on a fleet whose sessions are direct."""
    pages = (demand.sessions + demand.agents) / PAGE_ROWS / demand.observe_s
    opened = demand.sessions / demand.life_s
    # A heartbeat of libzmq costs its thread at most what a PING does.
    pings = demand.agents * PINGS_OF_AGENT
    beats = pings + demand.agents * costs.agent_fds / HEARTBEAT_S
    opening = Cpu(costs.open.own + costs.close.own, costs.open.zmq + costs.close.zmq)
    lines = [
        ("sessions that report their steps", demand.sessions, costs.report),
        ("PINGs of env agents", pings, Cpu(costs.ping.own, beats * costs.ping.zmq / pings)),
        ("sessions opened and closed", opened, opening),
        (PAGES, pages, costs.page),
        ("connected learners", demand.learners, costs.learner),
    ]
    return [
        Share(what, per_s, per_s * each.own / 1e6, per_s * each.zmq / 1e6)
        for what, per_s, each in lines
    ]


def memory_mib(costs: Costs, demand: Demand) -> float:
    """Return how much memory the broker needs for a fleet, beside its own."""
    kib = demand.agents * costs.agent_kib + demand.learners * costs.learner_kib
    return (kib + demand.sessions * costs.session_kib) / 1024


class Meter:
    """Reads the CPU time and the memory of a process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def kib(self) -> float:
        """Return its memory, without that of files."""
        return pss_kib(self._pid, "Pss_Anon")

    def fds(self) -> int:
        """Return how many descriptors it has open."""
        return len([*Path(f"/proc/{self._pid}/fd").iterdir()])

    def _cpu(self) -> Cpu:
        threads = Path(f"/proc/{self._pid}/task").iterdir()
        spent = {
            int(one.name): int((one / "schedstat").read_text().split()[0]) / 1e3 for one in threads
        }
        own = spent.pop(self._pid)
        return Cpu(own, sum(spent.values()))

    @contextlib.contextmanager
    def spent(self) -> Iterator[list[Cpu]]:
        """Yield a list that has the CPU time of the block after it."""
        found: list[Cpu] = []
        began = self._cpu()
        yield found
        found.append(self._cpu().less(began))

    def idle(self) -> Cpu:
        """Return the CPU time per second while nothing else happens."""
        time.sleep(SETTLE_S)
        with self.spent() as cpu:
            time.sleep(WATCH_S)
        return cpu[0].over(WATCH_S)


def measure() -> Costs:
    """Measure everything."""
    return Costs(**_agents(), **_sessions(), **_relayed())


def _agents() -> dict[str, Any]:
    """Measure what env agents and learners cost that do nothing."""
    path: ours.SessionPath = "relayed, between hosts"
    with contextlib.ExitStack() as stack:
        url, pids = stack.enter_context(ours.service(ENV, path))
        meter = Meter(pids["broker"])

        few = meter.kib(), meter.fds()
        for number in range(AGENTS):
            arguments = ["--address", f"idle-{number}", "--env", ENV, "--broker", url]
            arguments += ["--wait", "60"]
            stack.enter_context(ours.program("gymwire.env_agent", *arguments))
        ours.until_offered(url, *(f"idle-{number}" for number in range(AGENTS)))
        agents = meter.idle(), meter.kib(), meter.fds()
        connections = [
            stack.enter_context(contextlib.closing(BrokerConnection(url))) for _ in range(LEARNERS)
        ]
        learners = meter.idle(), meter.kib()
        with meter.spent() as pinging:
            for _ in range(PINGS // AT_ONCE):
                _ping([connection.link for connection in connections[:AT_ONCE]])
    return {
        "ping": pinging[0].over(PINGS),
        "agent_kib": (agents[1] - few[0]) / AGENTS,
        "agent_fds": (agents[2] - few[1]) / AGENTS,
        "learner": learners[0].less(agents[0]).over(LEARNERS),
        "learner_kib": (learners[1] - agents[1]) / LEARNERS,
    }


def _ping(links: Sequence[BrokerLink]) -> None:
    """Send a PING over each connection, then receive the answers."""
    for link in links:
        link.send(PLAIN.encode(Ping()))
    for link in links:
        while link.receive() is None:
            continue


def _sessions() -> dict[str, Any]:
    """Measure what sessions cost whose steps the broker does not see."""
    path: ours.SessionPath = "direct, between hosts"
    kwargs = {"sleep_s": STEP_S}
    half = SESSIONS // 2
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours.on_host_of(path))
        slots = SESSIONS + BUSY
        url, pids = stack.enter_context(ours.service(ENV, path, slots=slots, env_kwargs=kwargs))
        meter = Meter(pids["broker"])
        busy = stack.enter_context(contextlib.closing(ours.crowded(url, BUSY, path)))
        busy.reset(seed=1)
        idle, kib = meter.idle(), meter.kib()
        with meter.spent() as stepping:
            began = time.perf_counter()
            while time.perf_counter() - began < WATCH_S:
                busy.step(np.zeros(BUSY, np.int64))
            took_s = time.perf_counter() - began
        with contextlib.closing(ours.crowded(url, half, path)):
            with meter.spent() as opening:
                more = ours.crowded(url, half, path)
            grown = meter.kib()
            connection = stack.enter_context(contextlib.closing(BrokerConnection(url)))
            with meter.spent() as observing:
                for _ in range(LOOKS):
                    observe(connection)
            with meter.spent() as closing:
                more.close()
    return {
        "report": stepping[0].over(took_s).less(idle).over(BUSY),
        "open": opening[0].over(half),
        "close": closing[0].over(half),
        "session_kib": (grown - kib) / SESSIONS,
        # The offers are a page of their own.
        "page": observing[0].over(LOOKS * (1 + (SESSIONS + BUSY) / PAGE_ROWS)),
    }


def _relayed() -> dict[str, Any]:
    """Measure what a relayed step costs."""
    path: ours.SessionPath = "relayed, between hosts"
    with contextlib.ExitStack() as stack:
        url, pids = stack.enter_context(ours.service(ENV, path, env_kwargs={"sleep_s": 0.0}))
        env = stack.enter_context(ProxyEnv("it", url, direct="never"))
        env.reset(seed=1)
        connection = stack.enter_context(contextlib.closing(BrokerConnection(url)))
        before = observe(connection).broker
        with Meter(pids["broker"]).spent() as stepping:
            for _ in range(STEPS):
                env.step(np.int64(0))
        after = observe(connection).broker
    return {
        "relayed": stepping[0].over(STEPS),
        "relayed_bytes": (after.bytes - before.bytes) / STEPS,
    }


def tables(costs: Costs, demand: Demand) -> Iterator[Table]:
    """Yield what was measured, and the model, as docs/capacity.md has them."""
    spent = {
        "a PING of an env agent (nine a second)": costs.ping,
        "a connected learner, each second": costs.learner,
        "an OPEN, with its answer": costs.open,
        "a CLOSE, with its answer": costs.close,
        "a session that steps, each second, for the report of its steps": costs.report,
        "a page of OBSERVE, 100 rows": costs.page,
        "a relayed step": costs.relayed,
    }
    rows: list[Sequence[str]] = [
        (what, f"{cpu.own:,.1f} µs", f"{cpu.zmq:,.1f} µs") for what, cpu in spent.items()
    ]
    yield _table(("for", "the broker's thread", "libzmq's thread"), rows)
    yield _table(
        ("for", "memory of the broker", "connections"),
        [
            (
                "an env agent with eight serving loops",
                _kib(costs.agent_kib),
                f"{costs.agent_fds:.0f}",
            ),
            ("a connected learner", _kib(costs.learner_kib), "1"),
            ("a session", _kib(costs.session_kib), "–"),
        ],
    )
    lines = sorted(model(costs, demand), key=lambda line: -line.own)
    rows = [(one.what, f"{one.per_s:,.0f}", f"{one.own:.0%}", f"{one.zmq:.0%}") for one in lines]
    own, zmq = sum(line.own for line in lines), sum(line.zmq for line in lines)
    rows.append(("together", "", f"{own:.0%}", f"{zmq:.0%}"))
    yield _table(("for", "each second", "of the broker's thread", "of libzmq's"), rows)
    rows = [(str(brokers), f"{own / brokers:.0%}") for brokers in (1, 2, 4)]
    yield _table(("brokers", "load of each broker's thread"), rows)
    fewer = model(costs, replace(demand, sessions=demand.sessions // 10))
    seldom = model(costs, replace(demand, observe_s=60.0))
    texts = {
        "memory of the broker": f"{memory_mib(costs, demand):,.0f} MiB",
        "… of which for env agents": f"{demand.agents * costs.agent_kib / 1024:,.0f} MiB",
        "connections": f"{demand.agents * costs.agent_fds + demand.learners:,.0f}",
        "to open all sessions at once": f"{demand.sessions * costs.open.own / 1e6:.0f} s",
        "relayed steps a second, at most": f"{1e6 / max(costs.relayed):,.0f}",
        "bytes of a relayed step": f"{costs.relayed_bytes:.0f}",
        "vectors of ten environments": f"{sum(line.own for line in fewer):.0%} of one thread",
        "pages every 60 s": f"{sum(line.own for line in seldom if line.what == PAGES):.0%}",
    }
    yield _table(("in the text", ""), [*texts.items()])


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headings, box=MARKDOWN)
    for row in rows:
        table.add_row(*row)
    return table


def _kib(kib: float) -> str:
    return f"{kib:,.1f} KiB"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    for name, default in asdict(Demand()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, metavar="N")
    options = vars(parser.parse_args())
    file = options.pop("json")
    demand, costs = Demand(**options), measure()
    console = Console(width=WIDTH)
    for table in tables(costs, demand):
        console.print(table)
    if file is not None:
        document = {"demand": asdict(demand), "costs": asdict(costs)}
        file.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
