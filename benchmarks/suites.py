"""What is measured together, and which ratios matter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks import envpool_floor, gateways, local, ours, peers, socket_floor
from benchmarks.floors import floor
from benchmarks.harness import Result, Side
from benchmarks.picture import NO_TARGET

ACT_BYTES = 26  # the frame of an ACT with a Discrete action
STILL = ((4,), "float32")  # an observation of CartPole's size, from an instant environment
STILL_BYTES = 24 + 3 + 16 + 12  # a PERCEPT with it

OBSERVATIONS = {
    "84×84×4 uint8": ((84, 84, 4), "uint8", 84 * 84 * 4),
    "210×160×3 uint8": ((210, 160, 3), "uint8", 210 * 160 * 3),
    "1 MiB float32": ((512, 512), "float32", 1024 * 1024),
}

ENVPOOL = ((64, "≥ 0.65"), (256, "≥ 0.85"), (1024, "≥ 0.92"))  # numbers of environments

PATHS: list[ours.SessionPath] = [
    "relayed, same host",
    "relayed, between hosts",
    "direct, same host",
    "direct, between hosts",
]
SAME_HOST = PATHS[::2]


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


def _speedup(side: Side, over: Side, target: str) -> Figure:
    def value(result: Result) -> float:
        return result.speedup(side.name, over.name)

    return Figure(f"{side.name} / {over.name}", target, value)


def step() -> Suite:
    """Compare a step of an instant environment with the same bytes through pyzmq."""
    sides = [
        floor(shape, transport, ACT_BYTES, STILL_BYTES)
        for transport in ("tcp", "ipc")
        for shape in ("direct", "routed")
    ]
    direct_tcp, routed_tcp, direct_ipc, routed_ipc = (side.name for side in sides)
    floors: list[tuple[ours.SessionPath, str]] = [
        ("relayed, same host", routed_tcp),
        ("relayed, same host", routed_ipc),
        ("relayed, between hosts", routed_tcp),
        ("direct, same host", direct_tcp),
        ("direct, same host", direct_ipc),
        ("direct, between hosts", direct_tcp),
    ]
    sides += [ours.picture(path, *STILL) for path in PATHS]
    figures = [
        _over_floor(f"gymwire {path}", over, "≤ 1.25" if "relayed" in path else "≤ 1.4")
        for path, over in floors
    ]

    def cpu(path: ours.SessionPath) -> Callable[[Result], float]:
        return lambda result: (
            result.cpu_us(f"gymwire {path}", "broker") / result.cpu_us(routed_tcp, "broker")
        )

    figures += [
        Figure(f"CPU of the broker per step, {path} / of the bare ROUTER loop", "≤ 2", cpu(path))
        for path in PATHS[:2]
    ]
    return Suite("A step of an instant environment", sides, figures, 2000)


def cartpole() -> Suite:
    """Compare one CartPole in this process, in a subprocess, remote, and through the peers."""
    others, _ = peers.installed()
    sides = [local.in_process(), local.async_vector(1)]
    sides += [ours.cartpole(path) for path in PATHS]
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
            _over_floor(peer.name, f"gymwire {path}", target)
            for path in ("relayed, same host", "direct, same host")
        ]
    return Suite("CartPole", [*sides, *others], figures, 1000)


def observations(name: str) -> Suite:
    """One large observation in each reply."""
    shape, dtype, n_bytes = OBSERVATIONS[name]
    sides = [floor(kind, "tcp", ACT_BYTES, n_bytes + 64) for kind in ("direct", "routed")]
    direct, routed = (side.name for side in sides)
    sides += [ours.picture(path, shape, dtype) for path in PATHS]
    figures = [
        _over_floor(f"gymwire {path}", routed if "relayed" in path else direct, "≤ 1.3")
        for path in PATHS
    ]
    return Suite(name, sides, figures, 500)


def one_session() -> Suite:
    """64 CartPoles in one session: in a SyncVectorEnv, and as an env agent serves them by itself.

    By itself it takes the vector that CartPole registers, where the autoreset mode allows.
    """
    sync = local.sync_vector(64)
    paths: list[tuple[ours.SessionPath, str]] = [
        ("relayed, same host", "≥ 0.7"),
        ("direct, same host", "≥ 0.8"),
    ]
    sides, figures = [sync], []
    for own in (False, True):
        for path, target in paths:
            side = ours.vector(path, 64, own=own)
            sides.append(side)
            figures.append(_speedup(side, sync, target))
    return Suite("64 CartPoles in one session", sides, figures, 150)


def vectors() -> Suite:
    """64 CartPoles over several processes, which may run at once."""
    sync, asynchronous = local.sync_vector(64), local.async_vector(64)
    path: ours.SessionPath = "relayed, same host"
    one, own = ours.vector(path, 64), ours.vector(path, 64, own=True)
    two = ours.vector("direct, same host", 64, sessions=2, workers=2)
    figures = [
        _speedup(two, sync, "≥ 1"),
        _speedup(one, asynchronous, "≥ 7"),
        _speedup(own, asynchronous, "≥ 7"),
    ]
    return Suite("64 CartPoles", [sync, asynchronous, one, own, two], figures, 150, pinned=False)


def interpreter() -> Suite:
    """One CartPole in the serving loop's thread, and in a process with its own interpreter."""
    path: ours.SessionPath = "direct, same host"
    here = ours.cartpole(path)
    options = ("--python", sys.executable)
    there = ours.one("with --python", path, local.ENV_ID, local.cartpole_steps, options=options)
    figures = [_over_floor(there.name, here.name, "≤ 2")]
    return Suite("CartPole in another interpreter", [here, there], figures, 1000)


def infos() -> Suite:
    """Compare the overhead of HalfCheetah, which has infos, with that of CartPole, which has none.

    The overhead is the p50 of a step less that in the learner's process. MuJoCo itself is slower
    where other code runs between its steps, as the floors show. So HalfCheetah's values are
    measured without MuJoCo, too.
    """
    cartpole = local.Kind("CartPole", local.ENV_ID, local.cartpole_steps)
    kinds = [
        local.Kind(
            "HalfCheetah's values", "benchmarks.environments:LikeHalfCheetah", local.sampled_steps
        )
    ]
    if find_spec("mujoco"):
        kinds.append(local.Kind("HalfCheetah", "HalfCheetah-v5", local.sampled_steps))
    sides, figures = [], []
    for kind in (cartpole, *kinds):
        sides += [local.one(kind), socket_floor.floor(kind)]
        sides += [ours.one(f"{kind.name}, {one}", one, kind.env, kind.stepper) for one in SAME_HOST]

    def overhead(name: str, path: str) -> Callable[[Result], float]:
        return lambda result: result.overhead_ratio(
            f"{name}, {path}", f"{name}, in process", f"CartPole, {path}", "CartPole, in process"
        )

    for kind in kinds:
        for path, target in [*((one, "≤ 1.25") for one in SAME_HOST), ("floor", NO_TARGET)]:
            name = f"overhead of {kind.name} / of CartPole, {path}"
            figures.append(Figure(name, target, overhead(kind.name, path)))
    return Suite("Infos", sides, figures, 500)


def envpool(num_envs: int, target: str) -> Suite:
    """EnvPool's CartPoles in this process, in another one, and in a session of an env agent."""
    inside, least = local.envpool_vector(num_envs), envpool_floor.floor(num_envs)
    outside = ours.vector(
        "direct, same host", num_envs, env="benchmarks.environments:envpool_cartpoles"
    )
    with_codec = envpool_floor.floor_with_codec(num_envs)
    figures = [
        _speedup(outside, inside, target),
        _speedup(with_codec, inside, NO_TARGET),
        _speedup(least, inside, NO_TARGET),
    ]
    sides = [inside, least, with_codec, outside]
    return Suite(f"EnvPool's {num_envs} CartPoles", sides, figures, 500, pinned=False)


def slow() -> Suite:
    """16 environments that take 5 ms a step, in one process and on four workers."""
    in_process = local.sleepers(16)
    env, stepper = "benchmarks.environments:Sleeper", local.vector_zeros
    remote = ours.vector("relayed, same host", 16, sessions=4, workers=4, env=env, stepper=stepper)
    speedup = _speedup(remote, in_process, "≥ 3.5")
    return Suite("16 environments of 5 ms", [in_process, remote], [speedup], 12, pinned=False)


def idle() -> Suite:
    """One busy learner, alone and beside a thousand idle sessions."""
    path: ours.SessionPath = "relayed, same host"
    alone = ours.cartpole(path)
    crowd = ours.one("beside 1,000 idle", path, local.ENV_ID, local.cartpole_steps, idle=1000)
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
            NO_TARGET,
            lambda result: kib_each(result, bare[1].name, bare[0].name),
        ),
    ]
    sides = [alone, crowd, *bare]
    return Suite("A thousand idle sessions", sides, figures, 1000, pinned=False)


def beside_thousands() -> Suite:
    """100 CartPoles, alone and beside 9,900 idle sessions of the same env agent."""
    sides, figures = [], []
    for path in PATHS[2], PATHS[0]:
        alone, among = (
            ours.crowd(path, 100, idle, local.ENV_ID, local.vector_steps) for idle in (0, 9900)
        )
        sides += [alone, among]
        figures.append(_over_floor(among.name, alone.name, "≤ 1.2"))
    return Suite("100 CartPoles among thousands", sides, figures, 200, pinned=False)


def slow_among_thousands() -> Suite:
    """1,000 of 10,000 sessions in steps of 1 s."""
    side = ours.crowd(
        PATHS[0],
        1000,
        9000,
        "benchmarks.environments:Sleeper",
        local.vector_zeros,
        {"sleep_s": 1.0},
    )
    median = Figure(
        f"seconds of a round, {side.name}", "≤ 1.2", lambda result: result.p50_us(side.name) / 1e6
    )
    return Suite("1,000 steps of 1 s among thousands", [side], [median], 3, pinned=False)


def through_gateway() -> Suite:
    """Compare a relayed step over ZeroMQ with one through the WebSocket gateway."""
    alone, gateway = ours.picture(PATHS[0], *STILL), gateways.through_gateway()
    figures = [_over_floor(gateway.name, alone.name, NO_TARGET)]
    return Suite("A step through the WebSocket gateway", [alone, gateway], figures, 2000, True)


SUITES: dict[str, Callable[[], list[Suite]]] = {
    "step": lambda: [step()],
    "cartpole": lambda: [cartpole()],
    "observations": lambda: [observations(name) for name in OBSERVATIONS],
    "vectors": lambda: [one_session(), vectors()],
    "interpreter": lambda: [interpreter()],
    "infos": lambda: [infos()],
    "envpool": lambda: [envpool(*one) for one in ENVPOOL] if find_spec("envpool") else [],
    "slow": lambda: [slow()],
    "idle": lambda: [idle()],
    "gateway": lambda: [through_gateway()],
    "crowd": lambda: [beside_thousands(), slow_among_thousands()],
}
