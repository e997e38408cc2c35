"""`gymwire ps`, `gymwire stop`, and `gymwire top` in a real terminal, with a real broker."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from subprocess import Popen

import pytest

from gymwire import ProxyEnv
from gymwire.errors import EnvironmentLost, Refused
from tests.cli.reading import Screen, call
from tests.processes import PATIENCE_S, ROOT, Programs, programs

CARTPOLE = ("--address", "cartpole", "--env", "CartPole-v1")


@pytest.fixture
def started() -> Iterator[Programs]:
    with programs() as running:
        yield running


def test_ps_lists_sessions_and_stop_ends_one(started: Programs) -> None:
    _, url = started.broker()
    started.env_agent(url, *CARTPOLE)
    with ProxyEnv("cartpole", url) as env:
        env.reset(seed=1)
        screen = Screen()
        assert call(screen, "ps", "--broker", url, "--json") == 0
        [session] = screen.json["sessions"]
        assert (session["address"], session["learner_pid"]) == ("cartpole", os.getpid())
        screen = Screen()
        assert call(screen, "ps", "--broker", url) == 0
        assert session["id"][:8] in screen.text
        with pytest.raises(Refused, match="No session and no env agent"):
            call(Screen(), "stop", "--broker", url, "ffff")
        with (
            ProxyEnv("cartpole", url),
            pytest.raises(Refused, match=r"2 sessions and (0 env agents|1 env agent) begin"),
        ):
            call(Screen(), "stop", "--broker", url, "00")
        screen = Screen()
        assert call(screen, "stop", "--broker", url, session["id"][:8]) == 0
        assert screen.text == f"session {session['id']} stopped\n"
        with pytest.raises(EnvironmentLost, match="an operator"):
            env.step(0)


def test_stop_lets_an_env_agent_drain(started: Programs) -> None:
    _, url = started.broker()
    agent = started.env_agent(url, *CARTPOLE)
    screen = Screen()
    call(screen, "ps", "--broker", url, "--json")
    [offer] = screen.json["offers"]
    screen = Screen()
    assert call(screen, "stop", "--broker", url, offer["agent"], "--json") == 0
    assert screen.json == {
        "session": None, "agent": offer["agent"], "processes": 1, "sessions": 0,
    }  # fmt: skip
    assert agent.wait() == 0


class Terminal:
    """`gymwire top` in a terminal of its own."""

    def __init__(self, url: str) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (24, 80))
        self.before = termios.tcgetattr(self.slave)
        self.process = Popen(
            [sys.executable, "-m", "gymwire", "top", "--broker", url],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self.output = ""

    def shows(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.output:
            assert time.monotonic() < deadline, self.output
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def end(self) -> int:
        """Return the exit status once it has restored the terminal."""
        self.shows("\x1b[?1049l")
        status = self.process.wait(PATIENCE_S)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for number in (self.master, self.slave):
            os.close(number)


@pytest.fixture
def terminal(started: Programs) -> Iterator[Terminal]:
    _, url = started.broker()
    started.env_agent(url, *CARTPOLE)
    shown = Terminal(url)
    yield shown
    shown.close()


def test_top_shows_the_broker_and_a_key_ends_it(terminal: Terminal) -> None:
    terminal.shows("1 env agent, 0 sessions")
    terminal.press(b"o")
    terminal.shows("CartPole-v1")
    terminal.press(b"q")
    assert terminal.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_top_and_restores_the_terminal(
    terminal: Terminal, number: signal.Signals
) -> None:
    terminal.shows("1 env agent,")
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number


def test_top_goes_on_without_its_broker(started: Programs) -> None:
    broker, url = started.broker()
    shown = Terminal(url)
    try:
        shown.shows("0 sessions")
        broker.stop()
        shown.shows("no answer")
        shown.press(b"q")
        assert shown.end() == 0
    finally:
        shown.close()


def test_top_needs_a_terminal(started: Programs) -> None:
    program = started.start("gymwire", "top")
    assert program.wait() == 2
    assert "gymwire top: `gymwire top` needs a terminal" in "".join(program.output)
