"""The report of a training: a short table, and plots."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from gymwire.learner_agent.training.price_bandits import PriceAgent, beta_quantile
from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.learner_agent.training.task import TrainingResult
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_GOODS_SHOWN = 20
TITLE_PER_INCH = 9.0  # characters
MAX_DOT_AREA = 120  # of the price with the most offers, in points²


def print_report(result: TrainingResult, learner: object, console: Console) -> None:
    """Print the result: best prices, rewards at the start and at the end, steps per second."""
    if isinstance(learner, PriceAgent):
        console.print(_price_table(result, learner))
    summary = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    summary.add_column(style="dim")
    summary.add_column()
    for name, text in _summary(result, learner):
        summary.add_row(name, text)
    console.print(summary)


def _price_table(result: TrainingResult, agent: PriceAgent) -> Table:
    truth = _true_acceptance(result.reset_info, agent)
    # Fits into 80 columns with the prefix that honcho puts before each line.
    table = Table(
        title="Best price of each good and its acceptance",
        title_justify="left",
        title_style="bold",
        box=box.ROUNDED,
    )
    table.add_column("good", justify="right")
    table.add_column("offers", justify="right")
    table.add_column("price", justify="right", style="bold")
    table.add_column("estimated\nacceptance", justify="right")
    table.add_column("90%\ninterval", justify="center", style="dim")
    if truth is not None:
        table.add_column("true", justify="right")
    for number, good in enumerate(agent.goods[:MAX_GOODS_SHOWN]):
        best = good.best()
        low, high = best.interval(0.9)
        cells = [
            str(agent.first_good + number),
            f"{good.offers:,}",
            str(best.price),
            f"{best.mean:.0%}",
            f"{low:.0%} to {high:.0%}",
        ]
        if truth is not None:
            cells.append(f"{truth[number, best.price - good.first_price]:.0%}")
        table.add_row(*cells)
    hidden = len(agent.goods) - MAX_GOODS_SHOWN
    if hidden > 0:
        table.caption = f"and {hidden:,} more goods"
    return table


def _summary(result: TrainingResult, learner: object) -> list[tuple[str, str]]:
    rows = []
    returns = result.episode_returns
    if isinstance(learner, PriceAgent):
        early, late = early_and_late(result.rewards > 0)
        rows.append(("accepted", f"{early:.1%} in the first tenth, {late:.1%} in the last"))
    elif returns.size >= 2:
        early, late = early_and_late(returns)
        rows.append(("episode return", f"{early:.2f} in the first tenth, {late:.2f} in the last"))
        if result.ended_best.any():
            early, late = early_and_late(result.ended_best)
            text = f"in {early:.0%} of the episodes of the first tenth, {late:.0%} of the last"
            rows.append(("last reward is highest", text))
        early, late = early_and_late(result.episode_lengths)
        rows.append(("episode length", f"{early:.0f} steps early, {late:.0f} late"))
    else:
        early, late = early_and_late(result.rewards)
        rows.append(("reward per step", f"{early:.3f} in the first tenth, {late:.3f} in the last"))
    if isinstance(learner, QLearner):
        seen = int(np.count_nonzero(learner.visits))
        rows.append(("states seen", f"{seen:,} of {learner.visits.size:,}"))
    rows.append(("episodes", f"{returns.size:,}"))
    pace = f"in {result.seconds:.1f} s, {result.steps_per_s:,.0f} per second"
    rows.append(("steps", f"{result.rewards.size:,} {pace}"))
    return rows


def early_and_late(values: NDArray[Any]) -> tuple[float, float]:
    """Return the means of the first and the last tenth, at least one value each."""
    if values.size == 0:
        return 0.0, 0.0
    n = max(1, values.size // 10)
    return float(values[:n].mean()), float(values[-n:].mean())


def _true_acceptance(info: Mapping[str, Any], agent: PriceAgent) -> NDArray[np.float64] | None:
    """Return the acceptance probabilities in the info; None if there are none of this shape."""
    truth = info.get("acceptance_probability")
    shape = (len(agent.goods), agent.goods[0].a.size)
    if not isinstance(truth, np.ndarray) or truth.dtype != np.float64 or truth.shape != shape:
        return None
    return truth if ((truth >= 0) & (truth <= 1)).all() else None


# The palette of Okabe and Ito, which colour-blind people can distinguish.
_BLUE, _VERMILION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#8A8F98"
_INK = "#2B2F36"
_STYLE: Any = {
    "axes.edgecolor": "#C4C8CF",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#ECEEF1",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": _INK,
    "xtick.color": "#6B717B",
    "ytick.color": "#6B717B",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def plot(
    result: TrainingResult,
    learner: object,
    path: str | os.PathLike[str],
    *,
    address: str = "",
    seed: int | None = None,
) -> None:
    """Plot a training to a file.

    Args:
        result: the rewards and episodes.
        learner: the trained learner.
        path: the file; the suffix selects the format (.png, .svg, .pdf).
        address: the address of the environment, for the title.
        seed: the seed of the training, for the title.

    Raises:
        ConfigurationError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(missing("Plots need matplotlib", "plot")) from error
    # Figure instead of pyplot: opens no window and leaves no global state.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(layout="constrained", dpi=150)
        place = f" at {address}" if address else ""
        seeded = "" if seed is None else f", seed {seed}"
        title = f"{type(learner).__name__}{place}{seeded}: {result.rewards.size:,} steps"
        if isinstance(learner, PriceAgent):
            _draw_market(figure, result, learner)
        else:
            _draw_episodes(figure, result)
        lines = textwrap.fill(title, int(TITLE_PER_INCH * figure.get_figwidth()))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=12, weight="bold")
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"Cannot write a plot to {os.fspath(path)}: {error}"
            ) from error


def _draw_market(figure: Figure, result: TrainingResult, agent: PriceAgent) -> None:
    goods = agent.goods[:MAX_GOODS_SHOWN]
    columns = min(5, len(goods))
    rows = -(-len(goods) // columns)
    figure.set_size_inches(max(6.0, 2.3 * columns), 1.75 * rows + 2.9)
    layout = figure.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [1.25])
    truth = _true_acceptance(result.reset_info, agent)
    most_offers = max(float((good.a + good.b - 2).max()) for good in goods)
    first: Axes | None = None
    for number, good in enumerate(goods):
        axes = figure.add_subplot(layout[divmod(number, columns)], sharex=first, sharey=first)
        first = first or axes
        prices = np.arange(good.first_price, good.first_price + good.a.size)
        low, high = (beta_quantile(good.a, good.b, q) for q in (0.05, 0.95))
        axes.vlines(prices, low, high, color=_BLUE, alpha=0.17, lw=1.3, label="90% interval")
        # The area of a dot grows with the offers, so that tried prices stand out from priors.
        areas = 1 + (good.a + good.b - 2) * min(1.0, MAX_DOT_AREA / max(1.0, most_offers))
        means = good.a / (good.a + good.b)
        on_top: Any = {"zorder": 3, "clip_on": False}  # dots at the border are not cut off
        axes.scatter(
            prices, means, s=areas, color=_BLUE, lw=0, label="estimated acceptance", **on_top
        )
        if truth is not None:
            axes.plot(prices, truth[number], color=_VERMILION, lw=1.5, label="true", zorder=2)
        best = good.best()
        axes.plot(
            best.price, best.mean, "o", mfc="none", mec=_INK, ms=8, label="best price", **on_top
        )
        axes.set_title(f"good {agent.first_good + number}: price {best.price}")
        axes.set_ylim(-0.04, 1.08)
        axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        axes.set_xlim(prices[0] - 2, prices[-1] + 2)
        leftmost, lowest = number % columns == 0, number + columns >= len(goods)
        axes.set(ylabel="accepted" if leftmost else "", xlabel="price" if lowest else "")
        axes.tick_params(labelleft=leftmost, labelbottom=lowest)
        _use_integer_ticks(axes)
    assert first is not None
    below = figure.add_subplot(layout[rows, :])
    _draw_moving_mean(below, result.rewards > 0, _BLUE, "offers", percent=True)
    below.set(title="Accepted offers", xlabel="offer")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))


def _draw_episodes(figure: Figure, result: TrainingResult) -> None:
    returns = result.episode_returns
    panels: list[tuple[str, NDArray[Any], str, bool]] = []
    unit = "episode" if returns.size >= 2 else "step"
    if unit == "step":
        panels.append(("Reward per step", result.rewards, _BLUE, False))
    else:
        ended_best = result.ended_best.astype(float)
        # If the last reward is the only one, one panel suffices.
        if not (ended_best.any() and np.array_equal(returns, ended_best)):
            panels.append(("Episode return", returns, _BLUE, False))
        if ended_best.any():
            title = "Episodes whose last reward is the highest"
            panels.append((title, ended_best, _GREEN, True))
        if not np.array_equal(returns, result.episode_lengths):  # as with a reward of 1 per step
            panels.append(("Episode length in steps", result.episode_lengths, _VERMILION, False))
    figure.set_size_inches(8.0, 0.8 + 2.1 * len(panels))
    for number, (title, values, color, percent) in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, number)
        _draw_moving_mean(axes, values, color, f"{unit}s", percent=percent)
        axes.set(title=title, xlabel=unit if number == len(panels) else "")
        axes.tick_params(labelbottom=number == len(panels))


def _use_integer_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")


def _draw_moving_mean(
    axes: Axes, values: NDArray[Any], color: str, unit: str, *, percent: bool
) -> None:
    """Draw the mean over a twentieth of all values, and the values themselves in the background."""
    values = values[np.isfinite(values)]
    axes.set_xlim(0, 1.01 * max(1, values.size))
    _use_integer_ticks(axes)
    if not values.size:
        return
    window = max(1, values.size // 20)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    at = np.arange(1, values.size + 1)
    start = np.maximum(0, at - window)
    mean = (sums[at] - sums[start]) / (at - start)
    # The first means are of too few values to be meaningful.
    shown = slice(min(values.size - 1, window // 4), None)
    # Limit the number of points, or a vector file of a long run would be huge.
    every = max(1, values.size // 4000)
    if percent:
        axes.set_ylim(-0.02, 1.03)  # room for the width of the line
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.fill_between(at[shown][::every], 0, mean[shown][::every], color=color, alpha=0.1, lw=0)
    else:
        low, high = np.percentile(values, [1, 99])
        dots = np.where((values >= low) & (values <= high), values, np.nan)  # no cut-off outliers
        axes.plot(at[::every], dots[::every], ".", color=_GREY, ms=2, alpha=0.35, rasterized=True)
        axes.set_ylim(*_limits(min(low, mean[shown].min()), max(high, mean[shown].max())))
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.plot(at[shown][::every], mean[shown][::every], color=color, lw=1.8)
    if window > 1:
        axes.annotate(
            f"mean of {window:,} {unit}",
            (1, 1),
            xycoords="axes fraction",
            ha="right",
            va="bottom",
            color=_GREY,
            fontsize=8,
        )


def _limits(low: float, high: float) -> tuple[float, float]:
    """Return the limits of an axis for values from `low` to `high`, with room for dots."""
    size = max(abs(low), abs(high))
    span = high - low
    margin = 0.08 * span if span > 1e-6 * size else 0.1 * (size or 1.0)
    return low - margin, high + margin
