"""Compare the step of this checkout with that of another one, in pairs of fresh starts.

`./run python -m benchmarks.before_after OTHER_CHECKOUT` starts broker, env agents and learner of
both checkouts, pair after pair, and prints for each case the median of the ratios (this checkout /
the other) of the p50 of a step, with a 95 % confidence interval. Each pair starts all processes
again, because a process keeps the speed of its memory placement for life. The two learners of a
pair step in turns of some tenths of a second, because the speed of a shared machine varies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[1]
CASES = {
    "relayed, CartPole": ("cartpole", "never"),
    "direct, CartPole": ("cartpole", "always"),
    "relayed, uint8 (84, 84, 4)": ("picture", "never"),
    "direct, uint8 (84, 84, 4)": ("picture", "always"),
}
TURNS = 20  # of a learner, per case
PICTURE = "benchmarks.environments:Picture"
PICTURE_KWARGS = json.dumps({"shape": [84, 84, 4], "dtype": "uint8"})

# Runs in the interpreter of this checkout, with the modules of the checkout to be measured.
LEARNER = """
import importlib, json, os, sys, time

# Not whichever can be imported: the interpreter has this checkout installed, too.
ProxyEnv = importlib.import_module(sys.argv[5]).ProxyEnv
assert os.path.realpath(sys.modules[ProxyEnv.__module__].__file__).startswith(os.getcwd() + os.sep)
broker, turns, steps, cases = sys.argv[1], *(json.loads(text) for text in sys.argv[2:5])

def p50_us(env, steps):
    clock, times = time.perf_counter_ns, []
    for i in range(steps):
        begun = clock()
        _, _, terminated, truncated, _ = env.step(0)
        times.append(clock() - begun)
        if terminated or truncated:
            env.reset()
    times.sort()
    return times[len(times) // 2] / 1000

for address, direct in cases:
    with ProxyEnv(address, broker, direct=direct, wait_s=30) as env:
        env.reset(seed=1)
        p50_us(env, 200)
        for _ in range(turns):
            sys.stdin.readline()
            print(p50_us(env, steps), flush=True)
"""


@contextlib.contextmanager
def learner(
    checkout: Path, steps: int, cases: Sequence[tuple[str, str]]
) -> Iterator[subprocess.Popen[str]]:
    """Start all parts of a checkout; yield the learner, which measures once per line it reads."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    is_new = (checkout / "gymwire").exists()  # since 0.2
    prefix, package = ("gymwire.", "gymwire") if is_new else ("", "learner_agent")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    agent = [f"{prefix}env_agent", "--broker", url, "--wait", "20", "--address"]
    with contextlib.ExitStack() as stack:
        for arguments in (
            [f"{prefix}broker", "--bind", url],
            [*agent, "cartpole", "--env", "CartPole-v1"],
            [*agent, "picture", "--env", PICTURE, "--env-kwargs", PICTURE_KWARGS],
        ):
            quiet = [sys.executable, "-m", *arguments, "--log-level", "error"]
            stack.enter_context(_running(quiet, checkout, environment))
        numbers = [str(TURNS), str(-(-steps // TURNS)), json.dumps(cases)]
        program = [sys.executable, "-c", LEARNER, url, *numbers, package]
        yield stack.enter_context(_running(program, checkout, environment, subprocess.PIPE))


@contextlib.contextmanager
def _running(
    arguments: Sequence[str], checkout: Path, environment: dict[str, str], pipe: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def measure(
    sides: Sequence[Path], steps: int, cases: Sequence[tuple[str, str]]
) -> list[list[float]]:
    """Let the learners of these checkouts step in turns.

    Returns for each case the p50 of a step in µs of each checkout.
    """
    with contextlib.ExitStack() as stack:
        learners = [stack.enter_context(learner(side, steps, cases)) for side in sides]
        measured = []
        for _ in cases:
            turns = [[_turn(process) for process in learners] for _ in range(TURNS)]
            measured.append([statistics.median(p50s) for p50s in zip(*turns, strict=True)])
    return measured


def _turn(process: subprocess.Popen[str]) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    p50 = process.stdout.readline()
    if not p50:
        raise SystemExit("A learner has ended; its error is above.")
    return float(p50)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median of these ratios."""
    rng = np.random.default_rng(1)
    drawn = rng.choice(np.asarray(ratios), (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure the pairs and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description=__doc__)
    parser.add_argument("other", type=Path, help="the other checkout of gymwire")
    parser.add_argument("--pairs", type=int, default=20, help="fresh starts of each side")
    parser.add_argument("--steps", type=int, default=3000, help="steps measured per case")
    parser.add_argument("--only", default="", help="measure the cases whose name contains this")
    options = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if options.only in name}
    # All parts share one processor: waking another one costs more than a step, and varies.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sides = [HERE, options.other.resolve()]
    pairs: list[list[list[float]]] = []
    for i in range(options.pairs):
        order = 1 if i % 2 == 0 else -1
        measured = measure(sides[::order], options.steps, [*cases.values()])
        pairs.append([p50s[::order] for p50s in measured])
        print(f"pair {i + 1} of {options.pairs}", file=sys.stderr)
    print(f"{'case':30} {'this, µs':>9} {'other, µs':>10} {'ratio':>6}  95 % interval")
    for i, name in enumerate(cases):
        ours, others = zip(*(pair[i] for pair in pairs), strict=True)
        ratios = [a / b for a, b in zip(ours, others, strict=True)]
        low, high = interval(ratios)
        print(
            f"{name:30} {statistics.median(ours):9.1f} {statistics.median(others):10.1f} "
            f"{statistics.median(ratios):6.3f}  {low:.3f} to {high:.3f}"
        )


if __name__ == "__main__":
    main()
