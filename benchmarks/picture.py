"""The figures as a picture: how far each is from its target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NO_TARGET = "–"


def draw(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a bar for each figure, in multiples of its target; the line at 1 is the target."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in reversed(figures) if row["target"] != NO_TARGET]
    lengths, colours = [], []
    for row in rows:
        sign, _, number = str(row["target"]).partition(" ")
        lengths.append(row["measured"] / float(number))
        reached = lengths[-1] <= 1 if sign == "≤" else lengths[-1] >= 1
        colours.append("#0072B2" if reached else "#D55E00")
    plot, axes = pyplot.subplots(figsize=(10, 0.4 * len(rows) + 1.2), layout="constrained")
    names = [f"{row['figure']}  ({row['target']})" for row in rows]
    bars = axes.barh(names, lengths, color=colours, height=0.6)
    axes.bar_label(bars, [f"{row['measured']:.2f}" for row in rows], padding=4, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("measured, in multiples of the target (blue: reached, orange: not)")
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(x=0.12, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    plot.savefig(path, dpi=150)
    pyplot.close(plot)
