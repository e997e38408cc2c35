"""`gymwire run`: play episodes with a policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from gymwire.cli import policies, video
from gymwire.cli.connection import SessionOptions, naming, open_env
from gymwire.cli.output import Json, Output
from gymwire.cli.policies import Policy
from gymwire.cli.terminal import counted, picture, printable
from gymwire.cli.video import Video
from gymwire.learner_agent.training.checked_env import CheckedEnv
from gymwire.protocol.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Options(SessionOptions):
    """The options of `gymwire run`."""

    episodes: int
    render: bool
    policy: str | None
    video: Path | None


def command(options: Options, output: Output) -> int:
    """Play episodes, and print a line for each. Returns the exit status."""
    mode = _render_mode(options)
    env = open_env(options, output, mode)
    checked = CheckedEnv(env, str(options.address), observations=False)
    returns: list[float] = []
    lengths: list[int] = []
    movie: Video | None = None
    start = time.monotonic()
    try:
        modes = [str(each) for each in env.metadata.get("render_modes") or []]
        if mode is not None and mode not in modes:
            has_video = options.render and video.MODE in modes
            hint = f" Use --video FILE{video.SUFFIX} to record a video." if has_video else ""
            raise ConfigurationError(
                f"{'--render' if options.render else '--video'} needs an environment with the "
                f"render mode {mode}; {options.address} offers "
                f"{printable(', '.join(modes)) or 'no render mode'}.{hint}"
            )
        if getattr(env, "is_recorded", False):
            output.say(f"The operator of {options.address} records this session.")
        if getattr(env, "is_watchable", False):
            output.say(f"The operator of {options.address} lets others watch this session.")
        with naming(options, "policy"):
            policy = policies.load(options.policy, env, options.seed)
        movie = None if options.video is None else Video(options.video, checked)
        start = time.monotonic()  # a policy may take seconds to load
        for episode in range(options.episodes):
            begin = checked.reset(seed=options.seed if episode == 0 else None)
            show = partial(_show, checked, options, movie, output)
            total, length = _play(checked, policy, begin, show)
            returns.append(total)
            lengths.append(length)
            output.say(f"episode {episode + 1:>4}   return {total:>10.2f}   steps {length:>6,}")
    finally:
        seconds = time.monotonic() - start
        if movie is not None:
            movie.close()
        env.close()
        _conclude(options, returns, lengths, seconds, output)
        if movie is not None and movie.frames:
            output.say(f"The video is in {options.video}.")
    return 0


def _render_mode(options: Options) -> str | None:
    """Return the render mode that the options need. Raises ConfigurationError."""
    if options.video is None:
        return "ansi" if options.render else None
    if options.render:
        raise ConfigurationError("Give either --render or --video, not both.")
    with naming(options, "video"):
        video.check(options.video)
    return video.MODE


def _play(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    start: tuple[Any, dict[str, Any]],
    show: Callable[[], None],
) -> tuple[float, int]:
    """Play an episode after its reset. Returns its return and its number of steps."""
    observation, info = start
    total, length, over = 0.0, 0, False
    show()
    while not over:
        action = policy(observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        total, length = total + float(reward), length + 1
        over = bool(terminated or truncated)
        show()
    return total, length


def _show(
    env: gymnasium.Env[Any, Any], options: Options, movie: Video | None, output: Output
) -> None:
    if movie is not None:
        movie.add_frame()
    elif options.render:
        frame = env.render()
        output.text.print(picture(frame if isinstance(frame, str) else ""), soft_wrap=True)


def _conclude(
    options: Options, returns: list[float], lengths: list[int], seconds: float, output: Output
) -> None:
    summary: dict[str, Json] | None = None
    if returns:
        with np.errstate(invalid="ignore"):  # infinite returns have no deviation
            mean, deviation = float(np.mean(returns)), float(np.std(returns))
        steps_per_s = sum(lengths) / seconds
        summary = {
            "mean_return": mean,
            "std_return": deviation,
            "mean_steps": float(np.mean(lengths)),
            "steps_per_s": steps_per_s,
        }
        output.say(
            f"{counted(len(returns), 'episode')}: return {mean:.2f} ± {deviation:.2f} "
            f"({min(returns):.2f} to {max(returns):.2f}), {np.mean(lengths):.1f} steps each, "
            f"{steps_per_s:,.0f} steps/s"
        )
    output.result(
        address=options.address,
        broker=options.broker,
        seed=options.seed,
        policy=options.policy,
        video=None if options.video is None else str(options.video),
        complete=len(returns) == options.episodes,
        episodes=[
            {"return": total, "steps": length}
            for total, length in zip(returns, lengths, strict=True)
        ],
        summary=summary,
    )
