"""`gymwire ls`: list the addresses on offer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.text import Text

from gymwire.cli.connection import LearnerOptions, connected
from gymwire.cli.output import Json, Output
from gymwire.cli.terminal import SHORT, columns, one_line, short
from gymwire.protocol import spaces
from gymwire.protocol.errors import GymwireError

Entry = dict[str, Any]  # of FOUND: one for each address and process (docs/protocol.md §6.3)
HEADINGS = (
    "address", "environment", "observation", "action", "used", "host", "identity", "state",
)  # fmt: skip
SHORTENED = range(1, 4)  # of these columns
STATES = ("ready", "draining", "silent")  # the best first


@dataclass(frozen=True, kw_only=True)
class Options(LearnerOptions):
    """The options of `gymwire ls`."""

    verbose: bool


@dataclass(frozen=True)
class Listing:
    """An address, and the processes that offer it.

    Attributes:
        processes: their entries, at least one; each process is an env agent or one of its workers.
    """

    address: str
    processes: Sequence[Entry]

    @property
    def state(self) -> str:
        """The state of the process in the best state."""
        return min((str(entry["state"]) for entry in self.processes), key=_rank)

    @property
    def used(self) -> int:
        """The number of sessions."""
        return sum(int(entry["used"]) for entry in self._counted)

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return sum(int(entry["capacity"]) for entry in self._counted)

    @property
    def stuck(self) -> int:
        """The number of sessions that have ended while their environment is still busy."""
        return sum(int(entry.get("stuck", 0)) for entry in self.processes)

    @property
    def _counted(self) -> list[Entry]:
        # The slots of a process that does not answer are of no use, unless there are no others.
        connected = [entry for entry in self.processes if entry["state"] != "silent"]
        return connected or list(self.processes)

    def values(self, key: str) -> list[str]:
        """Return the different values that the processes have for a key, sorted."""
        return sorted({str(entry[key]) for entry in self.processes if entry[key]})


def command(options: Options, output: Output) -> int:
    """Print the addresses on offer. Returns the exit status."""
    with connected(options) as connection:
        listings = group(connection.find())
    output.result(broker=options.broker, offers=[as_json(listing) for listing in listings])
    if not listings:
        output.say(
            f"Nothing is on offer at {options.broker}. Start an env agent, for example: "
            f"gymwire serve cartpole CartPole-v1"
        )
        return 0
    console = output.text
    width = console.width if console.is_terminal else None
    for line in table(listings, verbose=options.verbose, width=width):
        console.print(line, soft_wrap=True)
    return 0


def group(entries: Iterable[Entry]) -> list[Listing]:
    """Return one listing for each address, sorted by address."""
    by_address = sorted(entries, key=lambda entry: str(entry["address"]))
    return [
        Listing(address, list(processes))
        for address, processes in groupby(by_address, lambda entry: str(entry["address"]))
    ]


def table(
    listings: Sequence[Listing], *, verbose: bool = False, width: int | None = None
) -> list[Text]:
    """Return the lines of a table with one row for each address.

    `verbose` adds a row for each env agent and worker. `width`: the columns in SHORTENED are
    shortened to fit into this width if they can; None: nothing is shortened.
    """
    with_identity = any(listing.values("identity") for listing in listings)
    styles, rows = ["bold"], [list(HEADINGS)]
    for listing in listings:
        first = listing.processes[0]
        styles.append("")
        rows.append(
            [
                listing.address,
                str(first["env_id"]),
                _space(first["observation_space"], SHORT),
                _space(first["action_space"], SHORT),
                f"{listing.used}/{listing.capacity}",
                _one_or_number(listing.values("host"), "hosts"),
                _one_or_number(listing.values("identity"), "identities"),
                _with_stuck(listing.state, listing.stuck),
            ]
        )
        for name, entry in _below(listing) if verbose else ():
            direct = f"direct: {entry['direct']}" if entry["direct"] else ""
            slots = f"{entry['used']}/{entry['capacity']}"
            styles.append("dim")
            rows.append(
                [name, entry["software"], direct, "", slots]
                + [entry[key] for key in ("host", "identity")]
                + [_with_stuck(entry["state"], entry.get("stuck", 0))]
            )
    if not with_identity:
        for row in rows:
            del row[HEADINGS.index("identity")]
    rows = [[one_line(str(cell)) for cell in row] for row in rows]
    lines = columns(rows, width=width, shortened=SHORTENED)
    return [Text(line, style=style) for line, style in zip(lines, styles, strict=True)]


def _below(listing: Listing) -> Iterator[tuple[str, Entry]]:
    """Return what offers the address, each with its name: env agents, below them their workers."""
    agents: dict[object, list[Entry]] = {}
    for number, entry in enumerate(listing.processes):
        pid = entry.get("agent_pid")  # an env agent of release 0.1.0 does not say
        of = number if pid is None else (entry["host"], entry["identity"], pid)
        agents.setdefault(of, []).append(entry)
    for number, processes in enumerate(agents.values(), 1):
        first = processes[0]
        pid, agent_pid = first.get("pid"), first.get("agent_pid")
        if agent_pid is None:
            yield f"  process {number}", first
        elif pid == agent_pid and len(processes) == 1:
            yield f"  agent {number} (pid {pid})", first
        else:
            whole = Listing(listing.address, processes)
            summary = {
                name: getattr(whole, name) for name in ("used", "capacity", "state", "stuck")
            }
            yield f"  agent {number} (pid {agent_pid})", {**first, **summary, "direct": None}
            for index, entry in enumerate(processes, 1):
                yield f"    worker {index} (pid {entry.get('pid')})", entry


def _one_or_number(values: Sequence[str], name: str) -> str:
    if len(values) > 1:
        return f"{len(values)} {name}"
    return values[0] if values else ""


def _with_stuck(state: str, stuck: int) -> str:
    return f"{state}, {stuck} stuck" if stuck else state


def _rank(state: str) -> int:
    return STATES.index(state) if state in STATES else len(STATES)


def _space(description: Any, width: int | None = None) -> str:
    try:
        return short(spaces.build(description), width)
    except GymwireError:  # an agent of a later version may have spaces that this one does not know
        return "?"


def as_json(listing: Listing) -> dict[str, Json]:
    """Return the listing as docs/reference/command.md describes it."""
    first = listing.processes[0]
    keys = ("host", "software", "identity", "direct", "used", "capacity", "state")
    return {
        "address": listing.address,
        "env_id": str(first["env_id"]),
        "observation_space": _space(first["observation_space"]),
        "action_space": _space(first["action_space"]),
        "used": listing.used,
        "capacity": listing.capacity,
        "stuck": listing.stuck,
        "state": listing.state,
        "processes": [
            {key: entry[key] for key in keys}
            | {"direct": entry["direct"] or None}
            | {key: entry.get(key) for key in ("pid", "agent_pid")}
            | {"stuck": entry.get("stuck", 0)}
            for entry in listing.processes
        ],
    }
