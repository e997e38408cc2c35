"""Texts of other parties, made safe and short for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Dict, MultiDiscrete, Tuple
from rich.cells import cell_len, set_cell_size
from rich.text import Text

GAP = "  "  # between columns
SHORTEST = 11  # characters of a column that is shortened
SHORT = 48  # characters of a space in the table of `ls`


def printable(text: str) -> str:
    """Return `text` with a replacement for each control character but newline and tab.

    Terminals obey escape sequences, and the text comes from an untrusted party.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def one_line(text: str) -> str:
    """Return `text` as `printable` does, without newlines and tabs."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number and what it counts, such as "1 session" or "2 sessions"."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def picture(frame: str) -> Text:
    """Return an ansi frame with its colours, but without other escape sequences."""
    text = Text.from_ansi(frame)
    # Each character is replaced by one, so that the colours keep their positions.
    text.plain = printable(text.plain)
    return text


def short(space: gymnasium.Space[Any], width: int | None = SHORT) -> str:
    """Return a short text for a space, such as `Box(84, 84, 3) uint8`, of at most `width`."""
    match space:
        case Box():
            text = f"Box({', '.join(map(str, space.shape))}) {space.dtype}"
        case MultiDiscrete(shape=(_,)):
            text = f"MultiDiscrete({', '.join(map(str, space.nvec))})"
        case Dict():
            text = (
                f"Dict({', '.join(f'{key}: {short(part, None)}' for key, part in space.items())})"
            )
        case Tuple():
            text = f"Tuple({', '.join(short(part, None) for part in space)})"
        case _:
            text = " ".join(repr(space).split())
    text = printable(text)
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def columns(
    rows: Sequence[Sequence[str]], *, width: int | None, shortened: Collection[int]
) -> list[str]:
    """Return one line for each row, with the cells in columns.

    `width`: if the lines are longer, the widest of the columns in `shortened` is shortened, again
    and again, but to no less than SHORTEST. Other cells are never shortened.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    excess = 0 if width is None else sum(widths) + len(GAP) * (len(widths) - 1) - width
    for _ in range(excess):
        widest = max(shortened, key=lambda column: widths[column])
        if widths[widest] <= SHORTEST:
            break
        widths[widest] -= 1
    return [
        GAP.join(_cell(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cell(text: str, width: int) -> str:
    if cell_len(text) > width:
        return f"{set_cell_size(text, width - 1)}…"
    return set_cell_size(text, width)
