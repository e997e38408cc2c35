"""Compare the step of this checkout with that of another one, in pairs of fresh starts.

`./run python -m benchmarks.before_after OTHER_CHECKOUT` starts broker, env agent and learner of
both checkouts in turn, pair after pair, and prints for each case the median of the ratios
(this checkout / the other) of the p50 of a step, with a 95 % confidence interval. Each pair starts
all processes again, because a process keeps the speed of its memory placement for life.
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
PICTURE = "benchmarks.environments:Picture"
PICTURE_KWARGS = json.dumps({"shape": [84, 84, 4], "dtype": "uint8"})

# Runs in the interpreter of this checkout, with the modules of the checkout to be measured.
LEARNER = """
import importlib, json, os, sys, time

# Not whichever can be imported: the interpreter has this checkout installed, too.
ProxyEnv = importlib.import_module(sys.argv[4]).ProxyEnv
assert os.path.realpath(sys.modules[ProxyEnv.__module__].__file__).startswith(os.getcwd() + os.sep)
broker, steps, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])

def p50_us(address, direct):
    clock, times = time.perf_counter_ns, []
    with ProxyEnv(address, broker, direct=direct, wait_s=30) as env:
        env.reset(seed=1)
        for i in range(steps + 200):
            begun = clock()
            _, _, terminated, truncated, _ = env.step(0)
            if i >= 200:
                times.append(clock() - begun)
            if terminated or truncated:
                env.reset()
    times.sort()
    return times[len(times) // 2] / 1000

print(json.dumps([p50_us(*case) for case in cases]))
"""


def measure(checkout: Path, steps: int, cases: Sequence[tuple[str, str]]) -> list[float]:
    """Start all parts of a checkout, and return the p50 of a step in µs for each case."""
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
            quiet = [*arguments, "--log-level", "error"]
            stack.enter_context(_running(quiet, checkout, environment))
        done = subprocess.run(
            [sys.executable, "-c", LEARNER, url, str(steps), json.dumps(cases), package],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return [float(value) for value in json.loads(done.stdout)]


@contextlib.contextmanager
def _running(
    arguments: Sequence[str], checkout: Path, environment: dict[str, str]
) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=checkout, env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


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
    pairs: list[tuple[list[float], list[float]]] = []
    for i in range(options.pairs):
        first, second = sides if i % 2 == 0 else sides[::-1]
        measured = {first: measure(first, options.steps, [*cases.values()])}
        measured[second] = measure(second, options.steps, [*cases.values()])
        pairs.append((measured[sides[0]], measured[sides[1]]))
        print(f"pair {i + 1} of {options.pairs}", file=sys.stderr)
    print(f"{'case':30} {'this, µs':>9} {'other, µs':>10} {'ratio':>6}  95 % interval")
    for i, name in enumerate(cases):
        ours, others = [pair[0][i] for pair in pairs], [pair[1][i] for pair in pairs]
        ratios = [a / b for a, b in zip(ours, others, strict=True)]
        low, high = interval(ratios)
        print(
            f"{name:30} {statistics.median(ours):9.1f} {statistics.median(others):10.1f} "
            f"{statistics.median(ratios):6.3f}  {low:.3f} to {high:.3f}"
        )


if __name__ == "__main__":
    main()
