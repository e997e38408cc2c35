"""What fleet.toml says: what to run, how many, where, and how to scale."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymwire.env_agent.config import DEFAULT_SLOTS, KEYS, check_address
from gymwire.fleet.engine import PACKED, SPREAD, AgentFile, AgentPlan, Resources
from gymwire.fleet.scaling import Scale
from gymwire.fleet.toml_text import line_of, tables_text, value_text
from gymwire.protocol.address import check_url
from gymwire.protocol.errors import AddressError, ConfigurationError, UsageError
from gymwire.protocol.files import read_text
from gymwire.protocol.process_slots import MAX_SLOTS
from gymwire.protocol.security import keys

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
MOST_AGENTS = 10_000
MOST_PROCESSORS = 10_000  # of one agent
MOST_MEMORY = 2**60  # bytes of one agent
MOST_MINUTES = 1_000_000
MOST_SECONDS = 100_000_000
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)}
# Tables of single engines, with the types of their keys.
SLURM_KEYS = {
    "partition": str,
    "account": str,
    "qos": str,
    "minutes": int,
    "setup": list,
    "options": dict,
}
# Options of sbatch by which the engine finds the fleet's jobs again.
OWN_OPTIONS = {"array", "comment", "job-name"}
KUBERNETES_KEYS = {"image": str, "namespace": str, "secret": str}
TABLES = ("fleet", "agents", "offer", "slurm", "kubernetes")
FLEET_KEYS = ("name", "broker", "key", "broker_key", "grace_s")
AGENTS_KEYS = (
    "count", "min", "max", "free_slots", "idle_s", "cpus", "gpus", "memory", "place", "direct",
    "insecure", "runtime_env",
)  # fmt: skip
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a name in Kubernetes
LINE = re.compile(r"[^\x00-\x1f\x7f]+")
KINDS = {
    str: "a text of one line",
    bool: "true or false",
    dict: "a table",
    int: "a whole number",
    list: "a list",
}


def _is_line(value: object) -> bool:
    return isinstance(value, str) and LINE.fullmatch(value) is not None


def _are_lines(values: list[Any]) -> bool:
    return all(map(_is_line, values))


def _are_options(values: Mapping[str, Any]) -> bool:
    return _are_lines([*values]) and all(
        _is_line(one) or type(one) in (int, float, bool) for one in values.values()
    )


# What the values of a key must be, in addition to their type.
CHECKS: Mapping[tuple[str, str], tuple[Callable[[Any], object], str]] = {
    ("offer", "max_sessions"): (lambda value: 1 <= value <= MAX_SLOTS, f"from 1 to {MAX_SLOTS}"),
    ("offer", "expose"): (_are_lines, "a list of one-line texts"),
    ("offer", "wrap"): (_are_lines, "a list of one-line texts"),
    ("slurm", "minutes"): (lambda value: 1 <= value <= MOST_MINUTES, f"from 1 to {MOST_MINUTES}"),
    ("slurm", "setup"): (_are_lines, "a list of one-line texts"),
    ("slurm", "options"): (_are_options, "a table of one-line texts, numbers, true and false"),
    ("kubernetes", "namespace"): (LABEL.fullmatch, "at most 63 characters of a-z, 0-9 and -"),
    ("kubernetes", "secret"): (LABEL.fullmatch, "at most 63 characters of a-z, 0-9 and -"),
}


@dataclass(frozen=True)
class Fleet:
    """A fleet, as fleet.toml describes it.

    Attributes:
        path: the file. Paths in it are relative to its folder.
        name: the name by which engines find the fleet.
        broker: the URL of the broker.
        key, broker_key: the files of the agents' key and of the broker's public key, or None.
        grace_s: how long the sessions of a draining agent may continue, in seconds.
        offers: what each agent offers, with the keys of `gymwire serve --config`.
        scale: how many agents.
        resources, place, runtime_env: as in AgentPlan.
        direct, insecure: those options of `gymwire serve`.
        slurm, kubernetes: the tables for these engines.
        text: the content of the file.
    """

    path: Path
    name: str
    broker: str
    key: Path | None
    broker_key: Path | None
    grace_s: float
    offers: tuple[Mapping[str, Any], ...]
    scale: Scale
    resources: Resources = field(default_factory=Resources)
    place: str | Mapping[str, str] = SPREAD
    direct: str = "host"
    insecure: bool = False
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    kubernetes: Mapping[str, Any] = field(default_factory=dict)
    text: str = field(default="", repr=False)

    def explain(self, error: str) -> str:
        """Return an error of `gymwire serve` so that it names the line of the offer, if it is one.

        The agents have the offers in another file.
        """
        for index, offer in enumerate(self.offers, 1):
            file = rf"(?:GYMWIRE_CONFIG: )?[^\n]*?, offer {index}(?: \([^\n]*?\))?: "
            python = re.escape(f"The interpreter {offer.get('python')} ")
            starts = (
                ("python", f"(?:{file})?(?={python})"),
                ("wrap", f"{file}--wrap "),
                ("spaces", f"{file}--spaces "),
                ("env", file),
                ("env", re.escape(f"{offer['env']}: ")),
            )
            for key, start in starts:
                found = re.search(f"gymwire serve: {start}", error)
                if found:
                    before, said = error[: found.start()], error[found.end() :]
                    line = line_of(self.text, "offer", key, index)
                    for old, new in (("use --env ", "set env to "), ("--python", "python")):
                        said = said.replace(old, new)
                    return f"{before}{self.path}, line {line}, {key} in [[offer]]: {said}"
        return error

    def located(self, address: str) -> str:
        """Return an address of an offer, with the file and the line that have it."""
        index = 1 + [offer["address"] for offer in self.offers].index(address)
        return f"{address} ({self.path}, line {line_of(self.text, 'offer', 'address', index)})"

    def check_interpreters(self) -> None:
        """Check that this machine has the interpreters of the offers. Raises ConfigurationError."""
        for index, offer in enumerate(self.offers, 1):
            python = offer.get("python")
            if python is not None and shutil.which(self._program(python)) is None:
                raise _error(
                    self.path,
                    self.text,
                    ("offer", "python", index),
                    f"expected the path or the name of a program on this machine, got {python!r}",
                )

    def _program(self, python: str) -> Path | str:
        return self.path.parent / _expanded(python) if "/" in python else python

    def plan(self, number: int) -> AgentPlan:
        """Return the plan of the agent with this number. Raises ConfigurationError."""
        arguments = ["serve", "--broker", self.broker, "--grace", f"{self.grace_s:g}"]
        arguments += ["--wait", "inf", "--direct", self.direct]
        arguments += ["--insecure"] if self.insecure else []
        files = [AgentFile("GYMWIRE_CONFIG", tables_text("offer", self.offers))]
        for variable, path in (("GYMWIRE_KEY", self.key), ("GYMWIRE_BROKER_KEY", self.broker_key)):
            if path is not None:
                files.append(AgentFile(variable, read_text(path), path))
        return AgentPlan(
            name=f"{self.name}/{number}",
            arguments=tuple(arguments),
            variables={},
            files=tuple(files),
            folder=self.path.parent,
            resources=self.resources,
            place=self.place,
            grace_s=self.grace_s,
            runtime_env=self.runtime_env,
        )


def load(path: Path) -> Fleet:
    """Return the fleet that a file describes.

    Raises ConfigurationError, which names the file, the line and the key, and what is allowed.
    """
    try:
        text = read_text(path)
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no file {path}. Name the file of the fleet: gymwire fleet ACTION FILE."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None
    return _Reader(path.absolute(), text, document).fleet()


class _Reader:
    """Reads the tables of one file."""

    def __init__(self, path: Path, text: str, document: dict[str, Any]) -> None:
        self._path, self._text, self._document = path, text, document

    def fleet(self) -> Fleet:
        for name in self._document:
            if name not in TABLES:
                raise self._error(name, "", f"unknown table. Use {', '.join(TABLES)}")
        fleet = self._table("fleet", FLEET_KEYS)
        agents = self._table("agents", AGENTS_KEYS)
        key, broker_key = self._keys(fleet)
        grace_s = self._number("fleet", fleet, "grace_s", 10.0, MOST_SECONDS)
        resources = Resources(
            cpus=self._number("agents", agents, "cpus", 1.0, MOST_PROCESSORS),
            gpus=self._number("agents", agents, "gpus", 0.0, MOST_PROCESSORS),
            memory=self._memory(agents),
        )
        if resources.gpus > 1 and resources.gpus % 1:
            what = f"expected a whole number, or a part of one GPU, got {resources.gpus:g}"
            raise self._error("agents", "gpus", what)
        offers = self._offers(resources)
        return Fleet(
            path=self._path,
            name=self._name(fleet),
            broker=self._broker(fleet),
            key=key,
            broker_key=broker_key,
            grace_s=grace_s,
            offers=offers,
            scale=self._scale(agents, offers),
            resources=resources,
            place=self._place(agents),
            direct=self._direct(agents, keyed=key is not None),
            insecure=self._typed("agents", agents, "insecure", bool, False),
            runtime_env=self._typed("agents", agents, "runtime_env", dict, {}),
            slurm=self._options("slurm", SLURM_KEYS),
            kubernetes=self._options("kubernetes", KUBERNETES_KEYS),
            text=self._text,
        )

    def _error(self, table: str, key: str, what: str, index: int = 1) -> ConfigurationError:
        return _error(self._path, self._text, (table, key, index), what)

    def _table(self, name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
        table = self._document.get(name, {})
        if not isinstance(table, dict):
            raise self._error(name, "", f"expected one table [{name}]")
        for key in table:
            if key not in allowed:
                raise self._error(name, key, f"unknown key. Use {', '.join(allowed)}")
        return table

    def _options(self, name: str, kinds: Mapping[str, type]) -> Mapping[str, Any]:
        table = self._table(name, tuple(kinds))
        options = {key: self._typed(name, table, key, kinds[key], None) for key in table}
        if taken := OWN_OPTIONS & options.get("options", {}).keys():
            what = f"{min(taken)} finds the fleet's jobs again and cannot be set"
            raise self._error(name, "options", what)
        return options

    def _typed(
        self,
        table: str,
        values: Mapping[str, Any],
        key: str,
        kind: type,
        default: Any,
        index: int = 1,
    ) -> Any:
        value = values.get(key, default)
        usual = (lambda value: kind is not str or _is_line(value), KINDS[kind])
        is_right, expected = CHECKS.get((table, key), usual)
        if type(value) is not kind or not is_right(value):
            expected = KINDS[kind] if type(value) is not kind else expected
            raise self._error(table, key, f"expected {expected}, got {value!r:.100}", index)
        return value

    def _number(
        self,
        table: str,
        values: Mapping[str, Any],
        key: str,
        default: float,
        most: int,
    ) -> float:
        value = values.get(key, default)
        if type(value) not in (int, float) or not 0 <= value <= most:
            what = f"expected a number from 0 to {most}, got {value!r:.100}"
            raise self._error(table, key, what)
        return float(value)

    def _count(self, agents: Mapping[str, Any], key: str, least: int, default: int) -> int:
        value = agents.get(key, default)
        if type(value) is not int or not least <= value <= MOST_AGENTS:
            raise self._error(
                "agents",
                key,
                f"expected a whole number from {least} to {MOST_AGENTS}, got {value!r:.100}",
            )
        return value

    def _name(self, fleet: Mapping[str, Any]) -> str:
        name = fleet.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            got = "it is missing" if name is None else f"got {name!r:.100}"
            raise self._error(
                "fleet",
                "name",
                f"expected at most 40 characters of a-z, 0-9 and -, such as lab; {got}",
            )
        return name

    def _broker(self, fleet: Mapping[str, Any]) -> str:
        url = fleet.get("broker")
        try:
            return check_url(url if isinstance(url, str) else "")
        except AddressError:
            got = "it is missing" if url is None else f"got {url!r:.100}"
            raise self._error(
                "fleet", "broker", f"expected tcp://HOST:PORT or ipc://PATH; {got}"
            ) from None

    def _keys(self, fleet: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
        paths: dict[str, Path] = {}
        for key in ("key", "broker_key"):
            if key in fleet:
                path = _expanded(self._typed("fleet", fleet, key, str, ""))
                paths[key] = self._path.parent / path
                try:
                    (keys.load if key == "key" else keys.load_public)(paths[key])
                except ConfigurationError as error:
                    raise self._error("fleet", key, str(error).rstrip(".")) from None
        if len(paths) == 1:
            missing = ({"key", "broker_key"} - paths.keys()).pop()
            raise self._error(
                "fleet", next(iter(paths)), f"keys work in pairs, and {missing} is missing"
            )
        return paths.get("key"), paths.get("broker_key")

    def _offers(self, resources: Resources) -> tuple[Mapping[str, Any], ...]:
        tables = self._document.get("offer")
        if not isinstance(tables, list) or not tables:
            raise self._error(
                "offer", "", f"expected a table for each address, with {', '.join(KEYS)}"
            )
        offers = [self._offer(table, index, resources) for index, table in enumerate(tables, 1)]
        addresses = [one["address"] for one in offers]
        for index, address in enumerate(addresses, 1):
            if addresses.index(address) < index - 1:
                raise self._error("offer", "address", f"{address!r} is offered twice", index)
        return tuple(offers)

    def _offer(self, table: object, index: int, resources: Resources) -> Mapping[str, Any]:
        if not isinstance(table, dict):
            raise self._error("offer", "", "expected a table")
        for key in table:
            if key not in KEYS:
                raise self._error("offer", key, f"unknown key. Use {', '.join(KEYS)}", index)
            value = self._typed("offer", table, key, KEYS[key], None, index)
            try:
                value_text(value)
            except ValueError as error:  # a number with too many digits
                what = f"it cannot be written for the agents: {error}"
                raise self._error("offer", key, what, index) from None
        for key in ("address", "env"):
            if key not in table:
                raise self._error("offer", "", f"{key} is missing", index)
        try:
            check_address(table["address"])
        except UsageError as error:
            raise self._error("offer", "address", str(error).rstrip("."), index) from None
        if "python" in table and "wrap" in table:
            what = "works with environments of this interpreter only: leave out wrap or python"
            raise self._error("offer", "wrap", what, index)
        if "spaces" in table and "python" not in table:
            what = "belongs to an environment in another interpreter: give python, too"
            raise self._error("offer", "spaces", what, index)
        # Processes of another interpreter take a processor each.
        slots = max(1, int(resources.cpus)) if "python" in table else DEFAULT_SLOTS
        return {"max_sessions": slots, **table}

    def _scale(self, agents: Mapping[str, Any], offers: tuple[Mapping[str, Any], ...]) -> Scale:
        ranged = [key for key in ("min", "max", "free_slots", "idle_s") if key in agents]
        if "count" in agents and ranged:
            raise self._error("agents", ranged[0], "give either count, or min and max")
        if ranged and "max" not in agents:
            raise self._error("agents", ranged[0], "max is missing, the largest number of agents")
        if "max" in agents:
            least = self._count(agents, "min", 0, 1)
            most = self._count(agents, "max", 1, 1)
            if least > most:
                raise self._error("agents", "min", f"expected at most max, which is {most}")
        else:
            least = most = self._count(agents, "count", 1, 1)
        return Scale(
            least,
            most,
            free_slots=self._count(agents, "free_slots", 0, 1 if ranged else 0),
            idle_s=self._number("agents", agents, "idle_s", 60.0, MOST_SECONDS),
            slots={str(one["address"]): int(one["max_sessions"]) for one in offers},
        )

    def _direct(self, agents: Mapping[str, Any], *, keyed: bool) -> str:
        value = agents.get("direct", "tcp://*:*" if keyed else "host")
        try:
            if value in ("host", "never") or check_url(value, bind=True).startswith("tcp://"):
                return str(value)
        except AddressError:
            pass
        raise self._error(
            "agents", "direct", f"expected 'host', 'never' or tcp://HOST:PORT, got {value!r:.100}"
        )

    def _memory(self, agents: Mapping[str, Any]) -> int | None:
        value = agents.get("memory")
        if value is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B?", str(value))
        size = int(min(float(match[1]) * UNITS[match[2] or ""], MOST_MEMORY + 1)) if match else 0
        if type(value) not in (int, str) or not 1 <= size <= MOST_MEMORY:
            raise self._error(
                "agents", "memory", f"expected bytes, or a text such as '4GiB', got {value!r:.100}"
            )
        return size

    def _place(self, agents: Mapping[str, Any]) -> str | Mapping[str, str]:
        place = agents.get("place", SPREAD)
        if place in (SPREAD, PACKED):
            return str(place)
        if isinstance(place, dict) and place and _are_lines([*place, *place.values()]):
            return place
        raise self._error(
            "agents",
            "place",
            f"expected '{SPREAD}', '{PACKED}' or labels such as {{ zone = 'a' }}, "
            f"got {place!r:.100}",
        )


def _error(path: Path, text: str, key: tuple[str, str, int], what: str) -> ConfigurationError:
    """Return an error. `key`: its table, the key or "", and which table of that name."""
    table, name, _ = key
    where = f"[[{table}]]" if table == "offer" else f"[{table}]"
    where = f"{name} in {where}" if name else where
    return ConfigurationError(f"{path}, line {line_of(text, *key)}, {where}: {what}.")


def _expanded(path: str) -> Path:
    """Return a path with the home folder in the place of ~, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
