"""What the commands of `gymwire` do; each returns its exit status."""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from gymnasium.utils.env_checker import check_env
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gymwire.learner_agent import progress
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.learner_agent.terminal import picture, printable, short
from gymwire.learner_agent.training import learners, report
from gymwire.learner_agent.training.task import TrainingResult, TrainingTask
from gymwire.protocol import spaces
from gymwire.protocol.errors import ConfigurationError, EnvironmentFailed, GymwireError, NoFreeSlot

PLOT_FORMATS = (".png", ".svg", ".pdf")
MEASURED_S = 10.0  # `check` measures each thing no longer than that, however few steps were done


def _open(options: Namespace, errors: Console, render_mode: str | None = None) -> ProxyEnv:
    """The environment at the address, with a sign of life while it is waited for."""
    try:
        with errors.status(f"opening {options.address} at {options.broker} …"):
            return ProxyEnv(
                options.address,
                options.broker,
                render_mode=render_mode,
                env_kwargs=options.env_kwargs,
                timeout_s=options.timeout,
                wait_s=options.wait,
                key=options.key,
                broker_key=options.broker_key,
            )
    except EnvironmentFailed as error:
        # Most often a wrong --env-kwargs; it can be had again, so the sentence will do.
        if error.remote_traceback and options.log_level != "debug":
            error.remote_traceback = ""
            error.args = (f"{error.args[0]} (--log-level debug shows the traceback.)",)
        raise


def _say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, coloured or taken for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# --- train ----------------------------------------------------------------------------------------


def train(options: Namespace, out: Console, errors: Console) -> int:
    """Train the learner that fits.

    What was learnt is reported, saved and drawn too when the training ends before its time.
    """
    # Said now, not after an hour of training.
    check_plot(options.plot)
    check_writable("--save", options.save)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    env = _open(options, errors)
    try:
        learner = learners.learner_for(env.observation_space, env.action_space, seed)
        if options.load is not None:
            learners.load(learner, options.load)
    except GymwireError:
        env.close()
        raise
    structlog.get_logger().info(
        "training",
        address=options.address,
        learner=type(learner).__name__,
        steps=options.steps,
        seed=seed,
    )
    meter = progress.meter(errors, options.address, options.steps)
    task = TrainingTask(env, learner, options.steps, seed, meter)
    try:
        task.run()
    finally:
        meter.close()
        result = task.result()
        if result.rewards.size:
            _conclude(result, learner, options, seed, out)
    return 0


def _conclude(
    result: TrainingResult, learner: Any, options: Namespace, seed: int, out: Console
) -> None:
    name = type(learner).__name__
    done = f"{result.rewards.size:,}"
    if result.rewards.size < options.steps:
        done = f"only {done} of {options.steps:,}"
    _say(out, f"\n{name} after {done} steps at {options.address}, seed {seed}\n")
    report.print_report(result, learner, out)
    if options.save is not None:
        learnt_at = {"address": options.address, "steps": result.rewards.size, "seed": seed}
        learners.save(learner, options.save, learnt_at)
        _say(out, f"What was learnt is in {options.save}; go on from it with --load.")
    if options.plot is not None:
        report.plot(result, learner, options.plot)
        _say(out, f"The plot is in {options.plot}.")


def check_plot(path: Path | None) -> None:
    """Raise ConfigurationError if no plot could be drawn to `path`."""
    if path is None:
        return
    if path.suffix.lower() not in PLOT_FORMATS:
        raise ConfigurationError(
            f"--plot {path}: the file's name must end with one of {', '.join(PLOT_FORMATS)}."
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "--plot needs matplotlib, which is not installed here; install it with: "
            "pip install matplotlib"
        )
    check_writable("--plot", path)


def check_writable(option: str, path: Path | None) -> None:
    """Raise ConfigurationError if the file cannot be written, and why."""
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise ConfigurationError(f"{option} {path}: there is no folder {folder}; make it first.")
    if path.is_dir():
        raise ConfigurationError(f"{option} {path}: this is a folder; name a file in it.")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{option} {path}: the folder {folder} is not yours to write to.")


# --- ls -------------------------------------------------------------------------------------------


def ls(options: Namespace, out: Console, errors: Console) -> int:
    """Show what is on offer."""
    channel = BrokerConnection(
        options.broker,
        timeout_s=options.timeout,
        wait_s=options.wait,
        key=options.key,
        broker_key=options.broker_key,
    )
    try:
        offers = channel.find()
    finally:
        channel.close()
    if not offers:
        _say(
            out,
            f"Nothing is on offer at {options.broker}. Start an env agent, for example: "
            f"gymwire serve --address cartpole --env CartPole-v1",
        )
        return 0
    if not out.is_terminal:
        out.width = 1000  # in a pipe each offer stays on its line
    out.print(offers_table(offers))
    return 0


def offers_table(offers: list[dict[str, Any]]) -> Table:
    """Return a table of what `BrokerConnection.find` returned."""
    with_identity = any(offer["identity"] for offer in offers)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("address", style="bold")
    table.add_column("environment")
    table.add_column("observation")
    table.add_column("action")
    table.add_column("used", justify="right")
    table.add_column("host")
    if with_identity:
        table.add_column("identity", no_wrap=True)
    table.add_column("state")
    for offer in offers:
        cells = [
            offer["address"],
            offer["env_id"],
            _space(offer["observation_space"]),
            _space(offer["action_space"]),
            f"{offer['used']}/{offer['capacity']}",
            offer["host"],
            *([offer["identity"]] if with_identity else []),
            offer["state"],
        ]
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    return table


def _space(description: Any) -> str:
    try:
        return short(spaces.build(description))
    except GymwireError:  # of an agent with other ideas of spaces; the rest is worth showing
        return "?"


# --- check ----------------------------------------------------------------------------------------


def check(options: Namespace, out: Console, errors: Console) -> int:
    """Let Gymnasium check the environment through the wire, then measure its steps."""
    # The checker tries render mode "human" too: no window shall flash up, or be missed, for that.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    env = _open(options, errors)
    try:
        unchecked = ""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with errors.status("Gymnasium's checker …"):
                    unchecked = _check(env)
            except GymwireError as error:
                if not isinstance(error, EnvironmentFailed):
                    raise
                fault: Exception | None = error
            except Exception as error:  # noqa: BLE001 - whatever a checker raises is its verdict
                fault = error
            else:
                fault = None
        plain = (Text.from_ansi(str(warning.message)).plain for warning in caught)
        complaints = list(dict.fromkeys(printable(text).removeprefix("WARN: ") for text in plain))
        if fault is None:
            count = f"{len(complaints)} warnings" if len(complaints) != 1 else "1 warning"
            _say(out, f"Gymnasium's checker: passed, {count if complaints else 'no warnings'}")
        else:
            _say(out, f"Gymnasium's checker: failed\n  {type(fault).__name__}: {_text(fault)}")
        for complaint in complaints:
            _say(out, f"  warning: {complaint}")
        if unchecked:
            _say(out, f"  {unchecked}")
        if fault is not None:
            return 1
        with errors.status(f"measuring {options.steps:,} steps …"):
            took_s, timings = measure(env, options.steps, options.seed or 0)
        p50, p99 = np.percentile(took_s, [50, 99]) * 1e6
        _say(out, f"Latency of {took_s.size:,} steps of a random policy:")
        _say(out, f"  p50 {p50:,.0f} µs, p99 {p99:,.0f} µs, {1 / took_s.mean():,.0f} steps/s")
        free = [timing for timing in timings if not timing.throttled]
        if free:
            out.print(timings_table(free))
        if len(free) < len(timings):
            _say(
                out,
                f"  {len(timings) - len(free):,} steps had to wait, and are left out of where the "
                f"time goes: the broker's policy\n  limits this key (steps_per_s, "
                f"requests_in_flight); its operator may raise that.",
            )
        if not timings:
            _say(out, "  where the time goes: not known, this session has no time stamps")
    finally:
        env.close()
    return 0


def _check(env: ProxyEnv) -> str:
    """Run the checker. Returns what it could not check."""
    if env.spec is None:
        # The checker would only warn, and advise the learner to make the environment otherwise.
        check_env(env, skip_render_check=True, skip_close_check=True)
        return "not checked: render modes and closing, which need a registered environment"
    if env.spec.kwargs.get("wait_s"):
        env.spec.kwargs["wait_s"] = 0.0  # what the checker makes must not wait for this one's slot
    try:
        check_env(env)
    except NoFreeSlot:
        check_env(env, skip_render_check=True, skip_close_check=True)
        return "not checked: render modes and closing, which need a second free slot"
    return ""


def _text(error: Exception) -> str:
    return printable(str(error)).replace("\n", "\n  ")


def measure(env: Any, steps: int, seed: int) -> tuple[Any, list[Timings]]:
    """Return the seconds that each step of a random policy took, float64 (n,), n <= `steps`.

    And, of as many steps more, where the time went, if the environment can tell.
    """
    timings: list[Timings] = []

    def timed_step(action: Any) -> Any:
        step, timing = env.timed_step(action)
        if timing is not None:
            timings.append(timing)
        return step

    took_s = _walk(env, env.step, steps, seed)
    if getattr(env, "is_timed", False):
        _walk(env, timed_step, steps, seed)
    return took_s, timings


def _walk(env: Any, do_step: Callable[[Any], Any], steps: int, seed: int) -> Any:
    env.action_space.seed(seed)
    env.reset(seed=seed)
    took_s = np.empty(steps)
    end = time.monotonic() + MEASURED_S
    for step in range(steps):
        action = env.action_space.sample()
        start = time.perf_counter()
        _, _, terminated, truncated, _ = do_step(action)
        took_s[step] = time.perf_counter() - start
        if time.monotonic() > end:
            return took_s[: step + 1]
        if terminated or truncated:
            env.reset()
    return took_s


PARTS = {
    "network": "sockets, kernels, wires",
    "broker": "its code",
    "queue": "waiting for the env agent",
    "environment": "its step",
    "codec": "both agents' code",
    "total": "",
}


def timings_table(timings: list[Timings]) -> Table:
    """Return a table of where the time of these steps went."""
    ways = Counter("direct" if timing.is_direct else "relayed" for timing in timings)
    way = " and ".join(f"{n:,} {name}" for name, n in ways.most_common())
    table = Table(box=box.SIMPLE_HEAD, title=f"Where the time goes ({way} steps)")
    table.title_justify, table.title_style = "left", ""
    table.add_column("part", style="bold")
    for heading in ("p50 µs", "p99 µs", "mean µs", "share"):
        table.add_column(heading, justify="right")
    table.add_column("of what")
    total = sum(timing.total_us for timing in timings) or 1.0
    for part, what in PARTS.items():
        took_us = np.array([getattr(timing, f"{part}_us") for timing in timings])
        figures = (*np.percentile(took_us, [50, 99]), took_us.mean())
        cells = [f"{figure:,.1f}" for figure in figures]
        table.add_row(
            part, *cells, f"{took_us.sum() / total:.0%}", what, end_section=part == "codec"
        )
    table.caption = "To take the times makes a step longer: the latency above is the true one."
    table.caption_justify, table.caption_style = "left", ""
    return table


# --- run ------------------------------------------------------------------------------------------


def run(options: Namespace, out: Console, errors: Console) -> int:
    """Play episodes with a random policy, a line for each."""
    env = _open(options, errors, "ansi" if options.render else None)
    returns: list[float] = []
    lengths: list[int] = []
    start = time.monotonic()
    try:
        modes = [str(mode) for mode in env.metadata.get("render_modes") or []]
        if options.render and "ansi" not in modes:
            raise ConfigurationError(
                f"--render shows environments that draw themselves as text (render mode ansi); "
                f"{options.address} offers {printable(', '.join(modes)) or 'no render mode'}."
            )
        env.action_space.seed(options.seed)
        for episode in range(options.episodes):
            env.reset(seed=options.seed if episode == 0 else None)
            total, length, over = 0.0, 0, False
            _render(env, options, out)
            while not over:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, length = total + float(reward), length + 1
                over = bool(terminated or truncated)
                _render(env, options, out)
            returns.append(total)
            lengths.append(length)
            _say(out, f"episode {episode + 1:>4}   return {total:>10.2f}   steps {length:>6,}")
    finally:
        seconds = time.monotonic() - start
        env.close()
        if returns:
            _say(
                out,
                f"{len(returns)} played: return {np.mean(returns):.2f} ± {np.std(returns):.2f} "
                f"({min(returns):.2f} to {max(returns):.2f}), {np.mean(lengths):.1f} steps each, "
                f"{sum(lengths) / seconds:,.0f} steps/s",
            )
    return 0


def _render(env: ProxyEnv, options: Namespace, out: Console) -> None:
    if options.render:
        frame = env.render()
        out.print(picture(frame if isinstance(frame, str) else ""), soft_wrap=True)
