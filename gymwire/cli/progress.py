"""Progress of a training: a bar on a terminal, a few log lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gymwire.learner_agent.training.task import TrainingProgress

# A line for every tenth, but not faster than a person can read, and often enough to show that the
# training is not stuck.
LINE_AT_LEAST_S = 2.0
LINE_AT_MOST_S = 60.0


class Meter(Protocol):
    """Shows progress until it is closed."""

    def __call__(self, progress: TrainingProgress) -> None:
        """Show this progress."""

    def close(self) -> None:
        """Stop showing progress."""


def meter(console: Console, title: str, steps: int) -> Meter:
    """Return a bar if `console` is a terminal, else a meter that writes log lines."""
    return BarMeter(console, title, steps) if console.is_terminal else LineMeter()


class BarMeter:
    """A progress bar with the rate of steps and the mean return of recent episodes."""

    def __init__(self, console: Console, title: str, steps: int) -> None:
        self._bar = Bar(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[result]}", style="cyan"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._row = self._bar.add_task(title, total=steps, rate="", result="")
        self._bar.start()

    def __call__(self, progress: TrainingProgress) -> None:
        """Move the bar."""
        self._bar.update(
            self._row,
            completed=progress.step,
            rate=f"{progress.steps_per_s:,.0f}/s",
            result=" ".join(map(str, _recent(progress))).replace("_", " "),
        )

    def close(self) -> None:
        """Stop updating the bar."""
        self._bar.stop()


class LineMeter:
    """A log line for about each tenth of the training."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = structlog.get_logger()
        self._clock = clock
        self._last = clock()
        self._tenth = 0

    def __call__(self, progress: TrainingProgress) -> None:
        """Write a line if one is due."""
        if self.due(progress, self._clock()):
            self._log.info(
                "training progress",
                done=f"{progress.step / progress.steps:.0%}",
                step=progress.step,
                **dict([_recent(progress)]),
                steps_per_s=round(progress.steps_per_s),
            )

    def due(self, progress: TrainingProgress, now: float) -> bool:
        """Return whether to write a line now. The last step gets none: the report follows it."""
        since_last_s = now - self._last
        tenth = 10 * progress.step // progress.steps
        if (
            progress.step == progress.steps
            or since_last_s < LINE_AT_LEAST_S
            or (tenth == self._tenth and since_last_s < LINE_AT_MOST_S)
        ):
            return False
        self._last, self._tenth = now, tenth
        return True

    def close(self) -> None:
        """Do nothing: log lines need no end."""


def _recent(progress: TrainingProgress) -> tuple[str, float]:
    """Return how well the recent episodes went; before the end of the first, the recent steps."""
    if progress.recent_return is None:
        return "reward_per_step", round(progress.recent_reward, 3)
    return "mean_return", round(progress.recent_return, 2)
