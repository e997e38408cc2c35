"""Whether `gymwire top` slows a relayed step down.

`./run python -m benchmarks.top` prints the p50 of a step with it over the mean of those just before
and after. It runs beside the same broker, env agent and learner: each start of these has a speed of
its own, which differs by more than what is to be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks import gateways, ours
from benchmarks.before_after import interval
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv

STEPS = 1500  # without `gymwire top`, and four times as many with it, which draws once a second
WAIT_S = 60.0  # for it to start


def p50_us(step: Callable[[], object], steps: int) -> float:
    """Return the p50 of so many steps in µs."""
    clock, times = time.perf_counter_ns, []
    for _ in range(steps):
        begun = clock()
        step()
        times.append(clock() - begun)
    return statistics.median(times) / 1000


@contextlib.contextmanager
def top(url: str) -> Iterator[None]:
    """Show `gymwire top` in a terminal that a thread reads."""
    ours_end, its_end = pty.openpty()
    command = [sys.executable, "-m", "gymwire", "top", "--broker", url]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(command, stdin=its_end, stdout=its_end, env=environment)
    os.close(its_end)
    drawn = threading.Event()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while os.read(ours_end, 65_536):
                drawn.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not drawn.wait(WAIT_S):
            raise RuntimeError("gymwire top shows nothing.")
        yield
    finally:
        process.terminate()
        process.wait()
        reader.join()
        os.close(ours_end)


def main() -> None:
    """Measure and print the median of the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.top", description=__doc__)
    parser.add_argument("--starts", type=int, default=4, help="starts of broker and env agent")
    parser.add_argument("--turns", type=int, default=6, help="turns of `gymwire top` in each")
    options = parser.parse_args()
    # All parts share one processor: waking another one costs more than a step, and varies.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ratios = []
    for _ in range(options.starts):
        served = ours.service(gateways.ENV, gateways.PATH, env_kwargs=gateways.KWARGS)
        with served as (url, _), ProxyEnv("it", url, direct="never") as env:
            step = ours.always_0(env)
            before = p50_us(step, 2 * STEPS)
            for _ in range(options.turns):
                with top(url):
                    beside = p50_us(step, 4 * STEPS)
                after = p50_us(step, STEPS)
                ratios.append(2 * beside / (before + after))
                before = after
    low, high = interval(ratios)
    print(f"{statistics.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
