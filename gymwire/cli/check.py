"""`gymwire check`: run Gymnasium's environment checker, and measure steps."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from gymwire.cli.connection import SessionOptions, open_env
from gymwire.cli.output import Json, Output
from gymwire.cli.terminal import counted, printable
from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.training.checked_env import naming_method
from gymwire.protocol.errors import EnvironmentFailed, GymwireError, NoFreeSlot
from gymwire.protocol.extras import install_line

MEASURED_S = 10.0  # each measurement ends after this time, whatever --steps says
UNCHECKED = "not checked: "
NO_GENERATOR = f"{UNCHECKED}the random generator, since the environment exposes none"
MISSING_PACKAGE = "DependencyNotInstalled"  # Gymnasium's error

PARTS = {
    "network": "sockets, kernels, wires",
    "broker": "its code",
    "queue": "waiting for the env agent",
    "environment": "its step",
    "codec": "both agents' code",
    "total": "",
}

Env = gymnasium.Env[Any, Any]
Step = tuple[Any, Any, bool, bool, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """The options of `gymwire check`."""

    steps: int


@dataclass(frozen=True)
class Verdict:
    """What Gymnasium's checker says about an environment.

    Attributes:
        failure: what it raised, None if the environment passed.
        warnings: its warnings, each once.
        unchecked: what was not checked, and why; "" if everything was.
    """

    failure: Exception | None
    warnings: Sequence[str]
    unchecked: str


def command(options: Options, output: Output) -> int:
    """Check the environment, then measure its steps. Returns the exit status."""
    # The checker tries the render mode "human" as well, which must not open a window.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    env = open_env(options, output)
    output.result(address=options.address, broker=options.broker)
    try:
        with output.errors.status("Gymnasium's checker …"):
            verdict = judge(env)
        _print_verdict(verdict, output)
        if verdict.failure is not None:
            return 1
        with output.errors.status(f"measuring {options.steps:,} steps …"):
            seconds, timings = measure(env, options.steps, options.seed or 0, str(options.address))
        _print_times(seconds, timings, output)
    finally:
        env.close()
    return 0


class WithGenerator(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment without a random generator, with one for Gymnasium's checker.

    The checker demands a generator of numpy. Those in other languages have none.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._generator = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; seed the generator, too."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)

    @property
    def unwrapped(self) -> Env:
        """This wrapper: the checker looks for the generator in it."""
        return self

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The spec of the environment alone."""
        return self.env.spec

    @property
    def _np_random(self) -> np.random.Generator:  # type: ignore[override]
        return self._generator


# --- the checker ----------------------------------------------------------------------------------


def judge(env: Env) -> Verdict:
    """Run Gymnasium's checker. Raises GymwireError if the connection or the agent fails."""
    failure: Exception | None = None
    unchecked = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if _has_generator(env):
                unchecked = _check(env)
            else:
                rest = _check(WithGenerator(env)).removeprefix(UNCHECKED)
                unchecked = f"{NO_GENERATOR}; {rest}" if rest else NO_GENERATOR
        except EnvironmentFailed as error:
            failure = error
        except GymwireError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a checker raises is its verdict
            failure = error
    plain = (Text.from_ansi(str(warning.message)).plain for warning in caught)
    complaints = dict.fromkeys(printable(text).removeprefix("WARN: ") for text in plain)
    return Verdict(failure, list(complaints), unchecked)


def _has_generator(env: Env) -> bool:
    """Return whether the environment has a random generator that the env agent exposes."""
    try:
        return isinstance(env.unwrapped.np_random, np.random.Generator)
    except AttributeError:  # AttributeDenied, too
        return False


def _check(env: Env) -> str:
    """Run the checker. Returns what it could not check."""
    if env.spec is None:
        # The checker would only warn, and advise the learner to make the environment otherwise.
        check_env(env, skip_render_check=True, skip_close_check=True)
        return "not checked: render modes and closing, which need a registered environment"
    if env.spec.kwargs.get("wait_s"):
        env.spec.kwargs["wait_s"] = 0.0  # the checker's environments must not wait for our own slot
    try:
        check_env(env)
    except NoFreeSlot:
        check_env(env, skip_render_check=True, skip_close_check=True)
        return "not checked: render modes and closing, which need a second free slot"
    except EnvironmentFailed as error:
        if not error.remote_type.endswith(MISSING_PACKAGE):
            raise
        why = (
            "which need a package that is missing in the Python of the environment, at the env "
            "agent. Install it there; for Gymnasium's own environments: pip install "
            "'gymnasium[classic-control,toy-text]'"
        )
    except DependencyNotInstalled:
        # Gymnasium's window for the render mode "human" needs pygame at the learner agent, too.
        why = (
            f"which need pygame in the Python of this command, {sys.executable}. Run: "
            f"{install_line('render')}"
        )
    else:
        return ""
    check_env(env, skip_render_check=True)
    return f"not checked: render modes, {why}"


def _print_verdict(verdict: Verdict, output: Output) -> None:
    failure, complaints = verdict.failure, verdict.warnings
    facts: Json = None
    if failure is not None:
        facts = {"type": type(failure).__name__, "message": str(failure)}
    output.result(
        passed=failure is None,
        failure=facts,
        warnings=list(complaints),
        not_checked=verdict.unchecked.removeprefix(UNCHECKED) or None,
    )
    if failure is None:
        number = counted(len(complaints), "warning") if complaints else "no warnings"
        output.say(f"Gymnasium's checker: passed, {number}")
    else:
        text = printable(str(failure)).replace("\n", "\n  ")
        output.say(f"Gymnasium's checker: failed\n  {type(failure).__name__}: {text}")
    for complaint in complaints:
        output.say(f"  warning: {complaint}")
    if verdict.unchecked:
        output.say(f"  {verdict.unchecked}")


# --- the measurement ------------------------------------------------------------------------------


def measure(
    env: Any, steps: int, seed: int, address: str
) -> tuple[NDArray[np.float64], list[Timings]]:
    """Measure the steps of a random policy. `address`: of the environment, for errors.

    Returns the seconds that each step took, float64 (n,) with n <= `steps`; and, of as many steps
    more, where the time went. The second is empty if the environment cannot time its steps.
    """
    timings: list[Timings] = []

    def timed_step(action: Any) -> Step:
        step, timing = env.timed_step(action)
        if timing is not None:
            timings.append(timing)
        return step  # type: ignore[no-any-return]

    seconds = _walk(env, env.step, steps, seed, address)
    if getattr(env, "is_timed", False):
        _walk(env, timed_step, steps, seed, address)
    return seconds, timings


def _walk(
    env: Env, do_step: Callable[[Any], Step], steps: int, seed: int, address: str
) -> NDArray[np.float64]:
    env.action_space.seed(seed)
    with naming_method(address, "reset"):
        env.reset(seed=seed)
    seconds = np.empty(steps)
    end = time.monotonic() + MEASURED_S
    for step in range(steps):
        action = env.action_space.sample()
        with naming_method(address, "step"):
            start = time.perf_counter()
            _, _, terminated, truncated, _ = do_step(action)
            seconds[step] = time.perf_counter() - start
        if time.monotonic() > end:
            return seconds[: step + 1]
        if terminated or truncated:
            with naming_method(address, "reset"):
                env.reset()
    return seconds


def _print_times(seconds: NDArray[np.float64], timings: Sequence[Timings], output: Output) -> None:
    p50, p99 = (float(value) for value in np.percentile(seconds, [50, 99]) * 1e6)
    steps_per_s = float(1 / seconds.mean())
    output.say(f"Latency of {seconds.size:,} steps of a random policy:")
    output.say(f"  p50 {p50:,.0f} µs, p99 {p99:,.0f} µs, {steps_per_s:,.0f} steps/s")
    free = [timing for timing in timings if not timing.throttled]
    output.result(
        latency={
            "steps": int(seconds.size), "p50_us": p50, "p99_us": p99, "steps_per_s": steps_per_s,
        },
        timings=timings_json(free, len(timings) - len(free)) if timings else None,
    )  # fmt: skip
    if free:
        output.text.print(timings_table(free))
    if len(free) < len(timings):
        output.say(
            f"  {len(timings) - len(free):,} steps had to wait and are left out of this table: the "
            f"broker's policy\n  limits this key (steps_per_s, requests_in_flight); its operator "
            f"may raise the limit."
        )
    if not timings:
        output.say("  where the time goes: unknown, since this session has no time stamps")


def _figures(timings: Sequence[Timings], part: str) -> tuple[float, float, float, float]:
    """Return p50, p99, mean (all in µs) and share of a part of these steps."""
    total = sum(timing.total_us for timing in timings) or 1.0
    took_us = np.array([getattr(timing, f"{part}_us") for timing in timings])
    p50, p99 = np.percentile(took_us, [50, 99])
    return float(p50), float(p99), float(took_us.mean()), float(took_us.sum() / total)


def timings_table(timings: Sequence[Timings]) -> Table:
    """Return a table of where the time of these steps went."""
    paths = Counter("direct" if timing.is_direct else "relayed" for timing in timings)
    path = " and ".join(f"{n:,} {name}" for name, n in paths.most_common())
    table = Table(box=box.SIMPLE_HEAD, title=f"Where the time goes ({path} steps)")
    table.title_justify, table.title_style = "left", ""
    table.add_column("part", style="bold")
    for heading in ("p50 µs", "p99 µs", "mean µs", "share"):
        table.add_column(heading, justify="right")
    table.add_column("what it is")
    for part, what in PARTS.items():
        *figures_us, share = _figures(timings, part)
        cells = [f"{figure:,.1f}" for figure in figures_us]
        table.add_row(part, *cells, f"{share:.0%}", what, end_section=part == "codec")
    table.caption = "Timing adds overhead; the latency above is measured without it."
    table.caption_justify, table.caption_style = "left", ""
    return table


def timings_json(timings: Sequence[Timings], throttled: int) -> dict[str, Json]:
    """Return the same as an object; `throttled`: the number of steps that are left out."""
    names = ("p50_us", "p99_us", "mean_us", "share")
    return {
        "relayed": sum(not timing.is_direct for timing in timings),
        "direct": sum(timing.is_direct for timing in timings),
        "throttled": throttled,
        "parts": {part: dict(zip(names, _figures(timings, part), strict=True)) for part in PARTS}
        if timings
        else {},
    }
