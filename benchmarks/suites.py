"""What is measured together, and which ratios matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import local, ours, peers
from benchmarks.floors import floor
from benchmarks.harness import Result, Side

ACT_BYTES = 26  # an ACT with a Discrete action, as it travels
STILL = ((4,), "float32")  # an observation of CartPole's size, from an environment of no own time
STILL_BYTES = 24 + 3 + 16 + 12  # a PERCEPT with it

OBSERVATIONS = {
    "84×84×4 uint8": ((84, 84, 4), "uint8", 84 * 84 * 4),
    "210×160×3 uint8": ((210, 160, 3), "uint8", 210 * 160 * 3),
    "1 MiB float32": ((512, 512), "float32", 1024 * 1024),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio that counts. `target` is a text such as "≤ 1.25"; `value` reads it off a result."""

    name: str
    target: str
    value: Callable[[Result], float]


@dataclass(frozen=True, slots=True)
class Suite:
    """Sides that take turns. `pinned`: all on one processor, since a step never uses two at once.

    Unpinned, the kernel's placing of the processes decides more than what is measured.
    """

    title: str
    sides: Sequence[Side]
    figures: Sequence[Figure]
    calls: int
    pinned: bool = True


def _over_floor(side: str, over: str, target: str) -> Figure:
    return Figure(f"{side} / {over}", target, lambda result: result.ratio(side, over))


def step() -> Suite:
    """A step of an environment that takes no time itself, over the same bytes through pyzmq."""
    sides = [
        floor(shape, transport, ACT_BYTES, STILL_BYTES)
        for transport in ("tcp", "ipc")
        for shape in ("direct", "routed")
    ]
    names = {
        "relayed tcp": sides[1].name,
        "relayed ipc": sides[3].name,
        "direct tcp": sides[0].name,
        "direct, same host": sides[2].name,
    }
    ways: list[ours.Way] = ["relayed tcp", "relayed ipc", "direct tcp", "direct, same host"]
    sides += [ours.picture(way, *STILL) for way in ways]
    figures = [
        _over_floor(f"gymwire {way}", names[way], "≤ 1.25" if "relayed" in way else "≤ 1.4")
        for way in ways
    ]
    routed = names["relayed tcp"]
    figures.append(
        Figure(
            "CPU of the broker per step / of the bare ROUTER loop",
            "≤ 2",
            lambda result: (
                result.cpu_us("gymwire relayed tcp", "broker") / result.cpu_us(routed, "broker")
            ),
        )
    )
    return Suite("A step of no own time", sides, figures, 2000)


def cartpole() -> Suite:
    """One CartPole, as a user has it: here, in a subprocess, remote, and through the peers."""
    others, _ = peers.installed()
    sides = [local.in_process(), local.async_vector(1)]
    sides += [
        ours.cartpole("relayed tcp"),
        ours.cartpole("direct tcp"),
        ours.cartpole("direct, same host"),
    ]
    figures = [
        Figure(
            "AsyncVectorEnv(1) / gymwire direct, same host",
            "> 1",
            lambda result: result.ratio("AsyncVectorEnv(1)", "gymwire direct, same host"),
        )
    ]
    for peer in others:
        target = "≥ 2.5" if "rpc" in peer.name else "≥ 4"
        figures += [
            _over_floor(peer.name, f"gymwire {way}", target)
            for way in ("relayed tcp", "direct, same host")
        ]
    return Suite("CartPole", [*sides, *others], figures, 1000)


def observations(name: str) -> Suite:
    """One large observation in each reply."""
    shape, dtype, n_bytes = OBSERVATIONS[name]
    sides = [floor(kind, "tcp", ACT_BYTES, n_bytes + 64) for kind in ("direct", "routed")]
    ways: list[ours.Way] = ["relayed tcp", "direct tcp"]
    floors = {"relayed tcp": sides[1].name, "direct tcp": sides[0].name}
    sides += [ours.picture(way, shape, dtype) for way in ways]
    figures = [_over_floor(f"gymwire {way}", floors[way], "≤ 1.3") for way in ways]
    return Suite(name, sides, figures, 500)


def vectors() -> Suite:
    """64 CartPoles in a Gymnasium SyncVectorEnv, wherever it stands."""
    one = ours.vector("relayed tcp", 64)
    direct = ours.vector("direct, same host", 64)
    two = ours.vector("direct, same host", 64, sessions=2, workers=2)
    own = ours.vector("relayed tcp", 64, own=True)
    sync, asynchronous = local.sync_vector(64), local.async_vector(64)

    def speedup(side: Side, over: Side) -> Callable[[Result], float]:
        return lambda result: result.speedup(side.name, over.name)

    figures = [
        Figure(f"{one.name} / {sync.name}", "≥ 0.7", speedup(one, sync)),
        Figure(f"{direct.name} / {sync.name}", "≥ 0.8", speedup(direct, sync)),
        Figure(f"{two.name} / {sync.name}", "≥ 1", speedup(two, sync)),
        Figure(f"{one.name} / {asynchronous.name}", "≥ 7", speedup(one, asynchronous)),
        Figure(f"{own.name} / {sync.name}", "–", speedup(own, sync)),
    ]
    sides = [sync, asynchronous, one, direct, two, own]
    return Suite("64 CartPoles", sides, figures, 150, pinned=False)


def slow() -> Suite:
    """16 environments that take 5 ms a step, in one process and on four workers."""
    here = local.sleepers(16)
    env, stepper = "benchmarks.environments:Sleeper", local.vector_zeros
    there = ours.vector("relayed tcp", 16, sessions=4, workers=4, env=env, stepper=stepper)
    speedup = Figure(
        f"{there.name} / {here.name}",
        "≥ 3.5",
        lambda result: result.speedup(there.name, here.name),
    )
    return Suite("16 environments of 5 ms", [here, there], [speedup], 12, pinned=False)


def idle() -> Suite:
    """One busy learner, alone and beside a thousand idle sessions."""
    alone = ours.cartpole("relayed tcp")
    crowd = ours.one(
        "beside 1,000 idle", "relayed tcp", local.ENV_ID, local.cartpole_steps, idle=1000
    )
    bare = [floor("routed", "tcp", ACT_BYTES, STILL_BYTES, idle) for idle in (0, 1000)]

    def kib_each(result: Result, with_: str, without: str) -> float:
        more = result.memory_kib(with_, "broker") - result.memory_kib(without, "broker")
        return more / 1000

    figures = [
        _over_floor(crowd.name, alone.name, "≤ 1.1"),
        Figure(
            "KiB of broker memory per idle session, less those of a bare ROUTER's connection",
            "≤ 4",
            lambda result: (
                kib_each(result, crowd.name, alone.name)
                - kib_each(result, bare[1].name, bare[0].name)
            ),
        ),
        Figure(
            "KiB of a bare ROUTER's memory per idle connection",
            "–",
            lambda result: kib_each(result, bare[1].name, bare[0].name),
        ),
    ]
    sides = [alone, crowd, *bare]
    return Suite("A thousand idle sessions", sides, figures, 1000, pinned=False)


SUITES: dict[str, Callable[[], list[Suite]]] = {
    "step": lambda: [step()],
    "cartpole": lambda: [cartpole()],
    "observations": lambda: [observations(name) for name in OBSERVATIONS],
    "vectors": lambda: [vectors()],
    "slow": lambda: [slow()],
    "idle": lambda: [idle()],
}
