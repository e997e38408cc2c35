"""The commands of the learner's command line, with local environments in place of remote ones."""

from __future__ import annotations

import importlib.util
import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymwire.learner_agent.progress import LineMeter
from gymwire.learner_agent.terminal import picture, printable, short
from rich.console import Console

from gymwire.learner_agent import commands
from gymwire.learner_agent.__main__ import Interrupted, parser
from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.training.task import Progress
from gymwire.protocol.errors import (
    ConfigurationError,
    EnvironmentFailed,
    EnvironmentLost,
    NoFreeSlot,
    NoLearnerFits,
)
from gymwire.protocol.spaces import describe


class Line(gymnasium.Env[Any, Any]):
    """Walk to the right end of four places: reward 1 there. Fails at a step, if so told."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}  # noqa: RUF012 - as gymnasium.Env declares it

    def __init__(self, fail_at: int = -1, failure: BaseException | None = None) -> None:
        self.observation_space, self.action_space = spaces.Discrete(4), spaces.Discrete(2)
        self.render_mode = "ansi"
        self.place = self.steps = self.closed = 0
        self.fail_at, self.failure = fail_at, failure

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == self.fail_at:
            assert self.failure is not None
            raise self.failure
        self.steps += 1
        self.place = max(0, self.place + (1 if action else -1))
        return self.place, float(self.place == 3), self.place == 3, False, {}

    def render(self) -> Any:
        return f"\x1b[41m{self.place}\x1b[0m\x1b]0;owned\x07"

    def close(self) -> None:
        self.closed += 1


Offer = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Has the commands find this environment at every address."""

    def offer(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        monkeypatch.setattr(commands, "ProxyEnv", lambda *args, **kwargs: env)
        return env

    return offer


@pytest.fixture
def nothing_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(commands, "ProxyEnv", refuse)


class Screen:
    """What a command has printed."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=100, color_system=None)

    @property
    def text(self) -> str:
        return self.file.getvalue()


@pytest.fixture
def screen() -> Screen:
    return Screen()


def call(screen: Screen, *arguments: str) -> int:
    options = parser().parse_args(arguments)
    status = options.command(options, screen.console, Console(file=io.StringIO()))
    assert isinstance(status, int)
    return status


def learnt(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name].tolist() for name in file.files}


# --- train ----------------------------------------------------------------------------------------


def test_train_reports_and_closes(offer: Offer, screen: Screen) -> None:
    env = offer(Line())
    assert call(screen, "train", "line", "--steps", "300", "--seed", "1") == 0
    assert "QLearner after 300 steps at line, seed 1" in screen.text
    assert "episodes won" in screen.text
    assert isinstance(env, Line)
    assert env.closed == 1


def test_the_same_seed_learns_the_same(offer: Offer, screen: Screen, tmp_path: Path) -> None:
    for name, seed in (("one", "7"), ("two", "7"), ("other", "8")):
        offer(Line())
        path = str(tmp_path / name)
        call(screen, "train", "line", "--steps", "200", "--seed", seed, "--save", path)
    assert learnt(tmp_path / "one") == learnt(tmp_path / "two")
    assert learnt(tmp_path / "one")["values"] != learnt(tmp_path / "other")["values"]


def test_training_goes_on_from_what_was_saved(offer: Offer, screen: Screen, tmp_path: Path) -> None:
    path = str(tmp_path / "learnt.npz")
    for option in ("--save", "--load"):
        offer(Line())
        again = ("--save", path) if option == "--load" else ()
        call(screen, "train", "line", "--steps", "50", option, path, *again)
    assert learnt(Path(path))["steps"] == 100
    assert f"What was learnt is in {path}" in screen.text


def test_the_plot_is_drawn_and_its_place_told(offer: Offer, screen: Screen, tmp_path: Path) -> None:
    offer(Line())
    path = tmp_path / "curves.png"
    call(screen, "train", "line", "--steps", "50", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"The plot is in {path}." in screen.text


@pytest.mark.usefixtures("nothing_offered")
@pytest.mark.parametrize("option", ["--plot", "--save"])
def test_a_folder_that_is_not_there_is_told_before_training(
    option: str, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="there is no folder"):
        call(screen, "train", "line", option, str(tmp_path / "nowhere" / "file.png"))


@pytest.mark.usefixtures("nothing_offered")
def test_a_missing_matplotlib_is_told_before_training(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install matplotlib"):
        call(screen, "train", "line", "--plot", str(tmp_path / "file.png"))


@pytest.mark.usefixtures("nothing_offered")
def test_a_plot_of_unknown_format_is_told_before_training(screen: Screen) -> None:
    with pytest.raises(ConfigurationError, match=r"\.png, \.svg, \.pdf"):
        call(screen, "train", "line", "--plot", "curves.doc")


@pytest.mark.parametrize(
    "failure", [EnvironmentLost("gone"), Interrupted(signal.SIGTERM), Interrupted(signal.SIGINT)]
)
def test_what_was_learnt_until_the_end_came_early_is_reported_and_kept(
    failure: BaseException, offer: Offer, screen: Screen, tmp_path: Path
) -> None:
    env = offer(Line(fail_at=120, failure=failure))
    path = tmp_path / "learnt.npz"
    with pytest.raises(type(failure)):
        call(screen, "train", "line", "--steps", "1000", "--save", str(path))
    assert "QLearner after only 120 of 1,000 steps" in screen.text
    assert learnt(path)["steps"] == 120
    assert isinstance(env, Line)
    assert env.closed == 1


def test_without_a_fitting_learner_the_session_is_closed(offer: Offer, screen: Screen) -> None:
    env = Line()
    env.observation_space = spaces.Box(0, 1, (2,))
    offer(env)
    with pytest.raises(NoLearnerFits):
        call(screen, "train", "line")
    assert env.closed == 1


@pytest.mark.parametrize(
    ("step", "now", "due"),
    [(5, 5.0, False), (10, 1.9, False), (10, 2.0, True), (5, 60.0, True), (100, 60.0, False)],
)
def test_a_log_line_comes_for_a_tenth_but_not_too_often_nor_too_rarely(
    step: int, now: float, due: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gymwire.learner_agent.progress.time.monotonic", lambda: 0.0)
    assert LineMeter().due(Progress(step, 100, 0, 0.0, 1.0), now) is due


# --- ls -------------------------------------------------------------------------------------------


def an_offer(**changes: Any) -> dict[str, Any]:
    return {
        "address": "line",
        "env_id": "Line-v0",
        "observation_space": describe(spaces.Discrete(4)),
        "action_space": describe(spaces.MultiDiscrete([10, 100])),
        "metadata": {},
        "capacity": 8,
        "used": 3,
        "host": "lab",
        "software": "gymwire",
        "identity": "",
        "direct": "",
        "state": "ready",
        **changes,
    }


def table(screen: Screen, *offers: dict[str, Any]) -> str:
    screen.console.print(commands.offers_table(list(offers)))
    return screen.text


def test_an_offer_is_one_line_with_its_spaces_in_short(screen: Screen) -> None:
    line = table(screen, an_offer()).splitlines()[-2]
    cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
    assert cells == [
        "line", "Line-v0", "Discrete(4)", "MultiDiscrete(10, 100)", "3/8", "lab", "ready",
    ]  # fmt: skip


def test_identities_have_a_column_only_if_there_are_any(screen: Screen) -> None:
    assert "identity" not in table(screen, an_offer())
    assert "abcdefghij234567" in table(screen, an_offer(identity="abcdefghij234567"))


def test_what_strangers_call_their_environments_cannot_steer_the_terminal(screen: Screen) -> None:
    text = table(screen, an_offer(env_id="\x1b[2Jx[red]y"))
    assert "\x1b" not in text
    assert "x[red]y" in text


def test_an_offer_whose_space_is_not_understood_is_still_listed(screen: Screen) -> None:
    assert "?" in table(screen, an_offer(observation_space={"type": "Riddle"}))


# --- check ----------------------------------------------------------------------------------------


def test_check_shows_the_checkers_warnings_and_the_latency(offer: Offer, screen: Screen) -> None:
    offer(gymnasium.make("CartPole-v1").unwrapped)
    assert call(screen, "check", "cartpole", "--steps", "20") == 0
    assert "Gymnasium's checker: passed, 2 warnings" in screen.text
    assert "warning: A Box observation space minimum value is -infinity." in screen.text
    assert "Latency of 20 steps" in screen.text
    assert "this session has no time stamps" in screen.text  # as this environment is local


def test_the_parts_of_steps_are_a_table_with_their_percentiles(screen: Screen) -> None:
    relayed = Timings(60.0, 5.0, 0.0, 25.0, 10.0, 100.0, is_direct=False)
    direct = Timings(70.0, 0.0, 0.0, 20.0, 10.0, 100.0, is_direct=True)
    screen.console.print(commands.timings_table([relayed] * 3 + [direct]))
    assert "Where the time goes (3 relayed and 1 direct steps)" in screen.text
    rows = {line.split()[0]: line.split()[1:5] for line in screen.text.splitlines() if line.split()}
    assert rows["network"] == ["60.0", "69.7", "62.5", "62%"]
    assert rows["total"] == ["100.0", "100.0", "100.0", "100%"]


def test_check_fails_with_the_checkers_own_words(offer: Offer, screen: Screen) -> None:
    class Wrong(Line):
        def reset(self, **kwargs: Any) -> Any:
            super().reset(**kwargs)
            return 9, {}

    offer(Wrong())
    assert call(screen, "check", "line") == 1
    assert "Gymnasium's checker: failed\n  AssertionError: " in screen.text


def test_check_shows_what_the_environment_raised(offer: Offer, screen: Screen) -> None:
    offer(Line(fail_at=0, failure=EnvironmentFailed("ValueError: ouch", remote_traceback="Tr")))
    assert call(screen, "check", "line") == 1
    assert "ValueError: ouch" in screen.text


def test_check_says_what_a_lack_of_slots_left_unchecked(
    offer: Offer, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checker(env: Any, **skips: bool) -> None:
        if not skips:
            raise NoFreeSlot("all in use")

    monkeypatch.setattr(commands, "check_env", checker)
    offer(gymnasium.make("CartPole-v1").unwrapped)
    assert call(screen, "check", "cartpole", "--steps", "5") == 0
    assert "not checked: render modes and closing, which need a second free slot" in screen.text


def test_check_of_an_unregistered_environment_advises_nothing_that_a_learner_cannot_do(
    offer: Offer, screen: Screen
) -> None:
    offer(Line())
    assert call(screen, "check", "line", "--steps", "5") == 0
    assert "passed, no warnings" in screen.text
    assert "not checked: render modes and closing, which need a registered environ" in screen.text


# --- run ------------------------------------------------------------------------------------------


def test_run_tells_each_episode_and_sums_up(offer: Offer, screen: Screen) -> None:
    offer(Line())
    assert call(screen, "run", "line", "--episodes", "3", "--seed", "1") == 0
    lines = screen.text.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["episode", str(n)] for n in (1, 2, 3)]
    assert lines[3].startswith("3 played: return 1.00 ± 0.00 (1.00 to 1.00)")


def test_run_renders_text_without_what_could_steer_the_terminal(
    offer: Offer, screen: Screen
) -> None:
    offer(Line())
    call(screen, "run", "line", "--episodes", "1", "--seed", "1", "--render")
    assert screen.text.startswith("0")
    assert printable(screen.text) == screen.text


def test_run_cannot_render_pictures_as_text(offer: Offer, screen: Screen) -> None:
    offer(gymnasium.make("CartPole-v1").unwrapped)
    with pytest.raises(ConfigurationError, match="cartpole offers human, rgb_array"):
        call(screen, "run", "cartpole", "--render")


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["check"], "required: ADDRESS"),
        (["train", "Not An Address"], "is not an address"),
        (["train", "--steps", "0"], "1 or more"),
        (["train", "--steps", "many"], "1 or more"),
        (["train", "--seed", "-1"], "0 or more"),
        (["train", "--timeout", "0"], "more than 0"),
        (["train", "--wait", "nan"], "0 or more"),
        (["train", "--env-kwargs", "{"], "not JSON"),
        (["train", "--env-kwargs", "[]"], "a JSON object"),
        (["ls", "--broker", "localhost:5555"], "is not a broker URL"),
        (["run", "line", "--episodes", "0"], "1 or more"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GYMWIRE_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("learner_agent: ")
    assert said in text
    assert text.count("\n") == 1


def test_address_and_broker_fall_back_to_the_environment_then_to_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GYMWIRE_ADDRESS", raising=False)
    monkeypatch.delenv("GYMWIRE_BROKER", raising=False)
    options = parser().parse_args(["train"])
    assert (options.address, options.broker) == ("price-market", "tcp://127.0.0.1:5555")
    monkeypatch.setenv("GYMWIRE_ADDRESS", "lab/arm")
    monkeypatch.setenv("GYMWIRE_BROKER", "ipc:///tmp/x")
    for command in ("train", "check", "run"):
        options = parser().parse_args([command])
        assert (options.address, options.broker) == ("lab/arm", "ipc:///tmp/x")


# --- on the terminal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), "Box(84, 84, 3) uint8"),
        (spaces.Discrete(3, start=1), "Discrete(3, start=1)"),
        (spaces.MultiBinary(4), "MultiBinary(4)"),
        (
            spaces.Dict({"at": spaces.Discrete(2), "on": spaces.MultiBinary(1)}),
            "Dict(at: Discrete(2), on: MultiBinary(1))",
        ),
        (
            spaces.Tuple([spaces.Discrete(n) for n in range(1, 9)]),
            "Tuple(Discrete(1), Discrete(2), Discrete(3), Di…",
        ),
    ],
)
def test_spaces_are_told_in_a_few_words(space: gymnasium.Space[Any], text: str) -> None:
    assert short(space) == text


def test_a_picture_keeps_its_colours_and_nothing_else_that_a_terminal_obeys() -> None:
    text = picture("a\x1b[41mb\x1b[0m\n\x1b[2Jc\x07\x1b]0;owned\x07")
    assert text.plain.startswith("ab\nc")
    assert [(span.start, span.end) for span in text.spans] == [(1, 2)]
    assert printable(text.plain) == text.plain
