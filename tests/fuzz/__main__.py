"""`python -m tests.fuzz --inputs N --seed S`: run mutated bytes through every parser.

No input may take more than SLOW_S. What only decodes n bytes may take 20 times the CPU time of an
ordinary message of that size, and 8 n + 16 MiB of memory, which is measured for some inputs.

Guided by coverage where that is cheap: an input after which a target has executed a line that none
had before is kept, and mutated again. An unexpected exception is printed with the bytes that caused
it, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import structlog

from gymwire.protocol import values
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import Target, targets
from tests.hostile_values import honest

GUIDED_EVERY = (
    50  # tracing makes an input ten times slower, so only one input in GUIDED_EVERY is traced
)
MAX_CORPUS = 2000
SLOW_S = 1.0
MAX_RATIO = 20  # CPU time of decoding, over that of an ordinary message
FREE_S = 0.005  # below this, the clock and the collector of garbage decide
REPEATS = 3
# How often an input that took too long is measured again. On a busy machine everything computes
# more slowly while others use the caches, for longer than an input takes.
TRIALS = 5


def cpu_budget_s(size: int) -> float:
    """Return the CPU time in seconds that decoding n bytes may take, by the speed measured now."""
    data = honest(60_000)
    return FREE_S + MAX_RATIO * cpu_s(values.decode, data) * size / len(data)


def cpu_s(run: Callable[[bytes], object], data: bytes) -> float:
    """Return the CPU time of an input in seconds, of this thread and without garbage collection.

    It is the least of REPEATS.
    """
    times = []
    gc.disable()
    try:
        for _ in range(REPEATS):
            began = time.thread_time()
            run(data)
            times.append(time.thread_time() - began)
    finally:
        gc.enable()
    return min(times)


def is_slow(target: Target, data: bytes, took_s: float, budget_s: float) -> bool:
    """Return whether an input takes too long, not only now but also compared with others now.

    `took_s`: in its first run. `budget_s`: by the speed at the start. Each trial measures the input
    and the budget at the same time.
    """
    if took_s <= budget_s:
        return False
    budget_now_s = cpu_budget_s if target.decodes else lambda _size: SLOW_S
    return all(cpu_s(target.run, data) > budget_now_s(len(data)) for _ in range(TRIALS))


def memory_of(run: Callable[[bytes], None], data: bytes) -> int:
    """Run an input; return the bytes that it took at its peak."""
    tracemalloc.start()
    try:
        run(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Coverage:
    """The lines of gymwire that have been executed."""

    def __init__(self) -> None:
        self._seen: set[tuple[CodeType, int]] = set()
        self._ours: dict[CodeType, bool] = {}

    def traced(self, run: Callable[[bytes], None], data: bytes) -> bool:
        """Run an input; return whether it executed a new line."""
        before = len(self._seen)
        sys.settrace(self._enter)
        try:
            run(data)
        finally:
            sys.settrace(None)
        return len(self._seen) > before

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            name = frame.f_globals.get("__name__", "")
            ours = self._ours[code] = name.partition(".")[0] == "gymwire"
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._seen.add((frame.f_code, frame.f_lineno))
        return self._line

    def __len__(self) -> int:
        return len(self._seen)


def fuzz(target: Target, inputs: int, rng: random.Random, findings: list[str]) -> str:
    """Run this many inputs through one target; return a line about it."""
    corpus, coverage = list(target.seeds), Coverage()
    for seed in target.seeds:
        coverage.traced(target.run, seed)
    size = 60_000
    per_byte_s = (cpu_budget_s(size) - FREE_S) / size if target.decodes else 0.0
    free_s = FREE_S if target.decodes else SLOW_S
    began, slowest_s = time.monotonic(), 0.0
    for number in range(inputs):
        data = mutate(rng.choice(corpus), rng.choice(corpus), rng)
        started = time.thread_time()
        try:
            is_plain = number % GUIDED_EVERY > 1
            if is_plain:
                target.run(data)
            elif number % GUIDED_EVERY:
                peak = memory_of(target.run, data)
                if target.decodes and peak > 8 * len(data) + (16 << 20):
                    findings.append(f"{target.name}: {peak} bytes for {data[:200].hex()}")
            elif coverage.traced(target.run, data) and len(corpus) < MAX_CORPUS:
                corpus.append(data)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            findings.append(
                f"{target.name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
                f" by {data[:200].hex()}"
            )
            if len(findings) > 50:
                break
        took_s = time.thread_time() - started
        if is_plain and is_slow(target, data, took_s, free_s + per_byte_s * len(data)):
            findings.append(f"{target.name}: {took_s:.3f} s for {data[:200].hex()}")
        slowest_s = max(slowest_s, took_s)
    rate = inputs / (time.monotonic() - began)
    return (
        f"{target.name:<28}{inputs:>10,} inputs  {rate:>8,.0f}/s  {len(corpus):>5} kept  "
        f"{len(coverage):>5} lines  slowest {slowest_s * 1000:.0f} ms"
    )


def main() -> int:
    """Fuzz all targets, the same number of inputs each."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--inputs",
        type=int,
        default=100_000,
        help="number of inputs over all targets (default 100000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    parser.add_argument("--target", action="append", help="fuzz only this target; may be repeated")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    findings: list[str] = []
    chosen = [one for one in targets() if not options.target or one.name in options.target]
    if not chosen:
        parser.error("no such target: " + ", ".join(one.name for one in targets()))
    for target in chosen:
        rng = random.Random(f"{options.seed} {target.name}")
        print(fuzz(target, -(-options.inputs // len(chosen)), rng, findings), flush=True)  # noqa: T201
    for finding in findings:
        print(finding)  # noqa: T201
    print(f"{len(findings)} findings")  # noqa: T201
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
