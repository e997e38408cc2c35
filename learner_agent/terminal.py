"""What other parties wrote, made fit for a person's terminal: short, and with nothing in it that
could steer the terminal."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Box, Dict, MultiDiscrete, Tuple
from rich.text import Text

SHORT = 48  # characters of a space in a table


def printable(text: str) -> str:
    """Return `text` with every character that is neither printable nor a line end or tab replaced.

    Terminals obey escape sequences, and these texts come from strangers.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def picture(frame: str) -> Text:
    """Return an ansi frame: its colours are kept, all other escape sequences are not."""
    text = Text.from_ansi(frame)
    # Replaced one for one, so that the colours stay where they are.
    text.plain = printable(text.plain)
    return text


def short(space: gymnasium.Space[Any], width: int = SHORT) -> str:
    """Return a space in a few words, such as `Box(84, 84, 3) uint8`."""
    match space:
        case Box():
            text = f"Box({', '.join(map(str, space.shape))}) {space.dtype}"
        case MultiDiscrete(shape=(_,)):
            text = f"MultiDiscrete({', '.join(map(str, space.nvec))})"
        case Dict():
            text = f"Dict({', '.join(f'{key}: {short(part)}' for key, part in space.items())})"
        case Tuple():
            text = f"Tuple({', '.join(short(part) for part in space)})"
        case _:
            text = " ".join(repr(space).split())
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"
