"""`gymwire top`: watch what a broker knows in a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gymwire.cli.connection import AskingOptions, connected
from gymwire.cli.observed import (
    COLUMNS,
    Column,
    amount,
    counter_line,
    offer_lines,
    session_lines,
    summary_lines,
)
from gymwire.cli.output import Output
from gymwire.cli.terminal import printable
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.observing import BrokerTotals, Observation, observe
from gymwire.protocol.errors import BrokerUnreachable, ConfigurationError, RequestTimeout

if sys.platform != "win32":
    import termios
    import tty

REFRESH_S = 1.0
ANSWER_S = 2.0  # for how long keys wait while the broker does not answer
KEYS = (
    "q quit, o offers, u reverse, ↑↓ scroll; sort by",
    " ".join(f"{one.key}:{one.heading}" for one in COLUMNS),
)


@dataclass(frozen=True, kw_only=True)
class Options(AskingOptions):
    """The options of `gymwire top`."""


@dataclass(slots=True)
class View:
    """What the terminal shows, and how keys change it.

    Attributes:
        sort: the column by which sessions are sorted.
        is_reversed: whether the order is not the usual one of that column.
        shows_offers: whether the offers are shown in the place of the sessions.
        first: how many rows are scrolled out at the top.
        is_over: whether a key has ended it.
    """

    url: str
    sort: Column = field(default=COLUMNS[0])
    is_reversed: bool = False
    shows_offers: bool = False
    first: int = 0
    is_over: bool = False
    trouble: str = ""
    found: Observation | None = None
    _before: tuple[float, BrokerTotals] | None = None
    _rates: str = ""

    def press(self, key: str) -> None:
        """Do what a key means; ignore others."""
        column = next((one for one in COLUMNS if one.key == key), None)
        match key:
            case "q" | "\x03" | "\x04":
                self.is_over = True
            case "o":
                self.shows_offers, self.first = not self.shows_offers, 0
            case "u":
                self.is_reversed = not self.is_reversed
            case "\x1b[A" | "k":
                self.first = max(0, self.first - 1)
            case "\x1b[B" | "j":
                self.first += 1
            case _ if column is not None:
                self.sort, self.is_reversed, self.shows_offers, self.first = column, False, False, 0

    def update(self, found: Observation, now: float) -> None:
        """Take over a new observation. `now`: in seconds."""
        self.trouble = ""
        if self._before is not None:
            then, before = self._before
            passed_s = max(now - then, 1e-3)
            frames = max(0, found.broker.frames - before.frames) / passed_s
            size = max(0, found.broker.bytes - before.bytes) / passed_s
            self._rates = f", relaying {amount(frames)} frames/s, {amount(size)}B/s"
        self._before, self.found = (now, found.broker), found

    def lines(self, width: int, height: int) -> list[Text]:
        """Return the lines that fill a terminal of this size."""
        if self.found is None:
            return [Text(self.trouble or f"asking the broker at {self.url} …")]
        first, second = summary_lines(self.found, self.url)
        head = [Text(first, style="bold"), Text(second + self._rates)]
        head.append(Text(counter_line(self.found.broker), style="dim"))
        head.append(Text(self.trouble, style="bold red"))
        room = max(1, height - len(head) - len(KEYS) - 1)
        table = self._offers(width, room) if self.shows_offers else self._sessions(width, room)
        filling = [Text("")] * (room + 1 - len(table))
        lines = [*head, *table, *filling, *(Text(line, style="dim") for line in KEYS)]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _sessions(self, width: int, room: int) -> list[Text]:
        assert self.found is not None
        sessions = sorted(self.found.sessions, key=self.sort.order)
        if self.sort.is_number is not self.is_reversed:
            sessions.reverse()
        self._scroll(len(sessions), room)
        return session_lines(sessions[self.first : self.first + room], width, self.sort)

    def _offers(self, width: int, room: int) -> list[Text]:
        assert self.found is not None
        self._scroll(len(self.found.offers), room)
        return offer_lines(self.found.offers[self.first : self.first + room], width)

    def _scroll(self, rows: int, room: int) -> None:
        self.first = max(0, min(self.first, rows - room))


def command(options: Options, output: Output) -> int:
    """Show the broker until a key ends it. Returns the exit status."""
    console = output.text
    if not console.is_terminal:
        raise ConfigurationError(
            "`gymwire top` needs a terminal, and its output is not one. `gymwire ps` prints the "
            "same once."
        )
    view = View(options.broker)
    with connected(options) as connection, keyboard() as keys:
        view.update(observe(connection), time.monotonic())  # what prevents it is an error message
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not view.is_over:
                _show(live, console, view)
                _wait(live, console, view, keys)
                if not view.is_over:
                    _observe(connection, view)
    return 0


def _observe(connection: BrokerConnection, view: View) -> None:
    try:
        view.update(observe(connection, ANSWER_S), time.monotonic())
    except (RequestTimeout, BrokerUnreachable) as error:
        view.trouble = printable(str(error))


def _show(live: Live, console: Console, view: View) -> None:
    width, height = console.size
    live.update(Group(*view.lines(width, height)), refresh=True)


def _wait(live: Live, console: Console, view: View, keys: int | None) -> None:
    """Wait until the next refresh is due; do what keys mean meanwhile."""
    until = time.monotonic() + REFRESH_S
    while not view.is_over and (left_s := until - time.monotonic()) > 0:
        if keys is None:
            time.sleep(left_s)
            return
        if select.select([keys], [], [], left_s)[0]:
            for key in read_keys(keys):
                view.press(key)
            _show(live, console, view)


def read_keys(keys: int) -> Sequence[str]:
    """Return the keys that were pressed, each as its character or escape sequence."""
    text = os.read(keys, 256).decode(errors="replace")
    if not text:  # the terminal has gone
        return ["q"]
    return [text] if text.startswith("\x1b") else list(text)


@contextlib.contextmanager
def keyboard() -> Iterator[int | None]:
    """Let the terminal deliver each key at once; restore it afterwards.

    Yields the descriptor of the keyboard, or None if there is none.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield None
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    # A suspended program would leave the terminal as it is.
    suspend = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(number)
        yield number
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTSTP, suspend)
