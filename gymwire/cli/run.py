"""`gymwire run`: play episodes with a random policy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from gymwire.cli.connection import SessionOptions, open_env
from gymwire.cli.output import Json, Output
from gymwire.cli.terminal import picture, printable
from gymwire.protocol.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """The options of `gymwire run`."""

    episodes: int
    render: bool


def command(options: Options, output: Output) -> int:
    """Play episodes, and print a line for each. Returns the exit status."""
    env = open_env(options, output, "ansi" if options.render else None)
    returns: list[float] = []
    lengths: list[int] = []
    start = time.monotonic()
    try:
        modes = [str(mode) for mode in env.metadata.get("render_modes") or []]
        if options.render and "ansi" not in modes:
            raise ConfigurationError(
                f"--render needs an environment with the render mode ansi; {options.address} "
                f"offers {printable(', '.join(modes)) or 'no render mode'}."
            )
        env.action_space.seed(options.seed)
        for episode in range(options.episodes):
            env.reset(seed=options.seed if episode == 0 else None)
            total, length = _play(env, options, output)
            returns.append(total)
            lengths.append(length)
            output.say(f"episode {episode + 1:>4}   return {total:>10.2f}   steps {length:>6,}")
    finally:
        seconds = time.monotonic() - start
        env.close()
        _conclude(options, returns, lengths, seconds, output)
    return 0


def _play(env: gymnasium.Env[Any, Any], options: Options, output: Output) -> tuple[float, int]:
    """Play an episode after its reset. Returns its return and its number of steps."""
    total, length, over = 0.0, 0, False
    _render(env, options, output)
    while not over:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total, length = total + float(reward), length + 1
        over = bool(terminated or truncated)
        _render(env, options, output)
    return total, length


def _render(env: gymnasium.Env[Any, Any], options: Options, output: Output) -> None:
    if options.render:
        frame = env.render()
        output.text.print(picture(frame if isinstance(frame, str) else ""), soft_wrap=True)


def _conclude(
    options: Options, returns: list[float], lengths: list[int], seconds: float, output: Output
) -> None:
    summary: dict[str, Json] | None = None
    if returns:
        mean, deviation = float(np.mean(returns)), float(np.std(returns))
        steps_per_s = sum(lengths) / seconds
        summary = {
            "mean_return": mean,
            "std_return": deviation,
            "mean_steps": float(np.mean(lengths)),
            "steps_per_s": steps_per_s,
        }
        number = f"{len(returns)} episodes" if len(returns) != 1 else "1 episode"
        output.say(
            f"{number}: return {mean:.2f} ± {deviation:.2f} ({min(returns):.2f} to "
            f"{max(returns):.2f}), {np.mean(lengths):.1f} steps each, {steps_per_s:,.0f} steps/s"
        )
    output.result(
        address=options.address,
        broker=options.broker,
        seed=options.seed,
        complete=len(returns) == options.episodes,
        episodes=[
            {"return": total, "steps": length}
            for total, length in zip(returns, lengths, strict=True)
        ],
        summary=summary,
    )
