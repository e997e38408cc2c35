"""The commands of a learner, with local environments in place of remote ones."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from gymwire.cli import check, policies, run
from gymwire.cli.interruption import Interrupted
from gymwire.cli.progress import LineMeter
from gymwire.cli.terminal import picture, printable, short
from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.training import ppo
from gymwire.learner_agent.training.checked_env import CheckedEnv
from gymwire.learner_agent.training.task import TrainingProgress
from gymwire.protocol.errors import (
    ConfigurationError,
    EnvironmentFailed,
    EnvironmentLost,
    NoFreeSlot,
    NoLearnerFits,
)
from tests.cli.reading import Screen, call

PROXY = "gymwire.learner_agent.proxies.proxy_env.ProxyEnv"


class Line(gymnasium.Env[Any, Any]):
    """A walk to the right end of four places, with reward 1 at the end. May fail at a step."""

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
    """Return a function that lets the commands find an environment at every address."""

    def offer(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        monkeypatch.setattr(PROXY, lambda *args, **kwargs: env)
        return env

    return offer


@pytest.fixture
def nothing_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(PROXY, refuse)


@pytest.fixture
def screen() -> Screen:
    return Screen()


def learned(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name].tolist() for name in file.files}


# --- train ----------------------------------------------------------------------------------------


def test_train_reports_and_closes(offer: Offer, screen: Screen) -> None:
    env = offer(Line())
    assert call(screen, "train", "line", "--steps", "300", "--seed", "1") == 0
    assert "QLearner after 300 steps at line, seed 1" in screen.text
    assert "last reward is highest" in screen.text
    assert isinstance(env, Line)
    assert env.closed == 1


def test_the_same_seed_learns_the_same(offer: Offer, screen: Screen, tmp_path: Path) -> None:
    for name, seed in (("one", "7"), ("two", "7"), ("other", "8")):
        offer(Line())
        path = str(tmp_path / name)
        call(screen, "train", "line", "--steps", "200", "--seed", seed, "--save", path)
    assert learned(tmp_path / "one") == learned(tmp_path / "two")
    assert learned(tmp_path / "one")["values"] != learned(tmp_path / "other")["values"]


def test_training_continues_from_a_saved_learner(
    offer: Offer, screen: Screen, tmp_path: Path
) -> None:
    path = str(tmp_path / "learned.npz")
    for option in ("--save", "--load"):
        offer(Line())
        again = ("--save", path) if option == "--load" else ()
        call(screen, "train", "line", "--steps", "50", option, path, *again)
    assert learned(Path(path))["steps"] == 100
    assert f"The learner is saved in {path}. Play with it: gymwire run" in screen.text


def test_train_draws_the_plot_and_says_where(offer: Offer, screen: Screen, tmp_path: Path) -> None:
    offer(Line())
    path = tmp_path / "curves.png"
    call(screen, "train", "line", "--steps", "50", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"The plot is in {path}." in screen.text


@pytest.mark.usefixtures("nothing_offered")
@pytest.mark.parametrize("option", ["--plot", "--save"])
def test_a_missing_folder_is_an_error_before_training(
    option: str, screen: Screen, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}: .*there is no folder"):
        call(screen, "train", "line", option, str(tmp_path / "nowhere" / "file.png"))


@pytest.mark.usefixtures("nothing_offered")
def test_a_missing_matplotlib_is_an_error_with_the_line_that_installs_it(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"--plot: .*\./run pip install -e '\.\[plot\]'"):
        call(screen, "train", "line", "--plot", str(tmp_path / "file.png"))


@pytest.mark.usefixtures("nothing_offered")
def test_a_plot_of_unknown_format_is_an_error_before_training(screen: Screen) -> None:
    with pytest.raises(ConfigurationError, match=r"\.png, \.svg, \.pdf"):
        call(screen, "train", "line", "--plot", "curves.doc")


@pytest.mark.parametrize(
    "failure", [EnvironmentLost("gone"), Interrupted(signal.SIGTERM), Interrupted(signal.SIGINT)]
)
def test_a_training_that_ends_early_is_reported_and_saved(
    failure: BaseException, offer: Offer, screen: Screen, tmp_path: Path
) -> None:
    env = offer(Line(fail_at=120, failure=failure))
    path = tmp_path / "learned.npz"
    with pytest.raises(type(failure)):
        call(screen, "train", "line", "--steps", "1000", "--save", str(path))
    assert "QLearner after only 120 of 1,000 steps" in screen.text
    assert f"The learner is saved in {path}, after only 120 of 1,000 steps. Play" in screen.text
    assert (
        f"Continue the training with: gymwire train line --load {path} --save {path} --steps 880\n"
        in screen.text
    )
    assert learned(path)["steps"] == 120
    assert isinstance(env, Line)
    assert env.closed == 1


@pytest.mark.parametrize(
    ("space", "error", "text"),
    [
        (spaces.Tuple([spaces.Discrete(2)]), NoLearnerFits, "observation_space is a Tuple"),
        (
            spaces.Box(0, 1, (2,)),
            ConfigurationError,
            r"line needs Stable-Baselines3, .*: \./run pip install -e '\.\[sb3\]'",
        ),
    ],
)
def test_without_a_fitting_learner_the_session_is_closed(
    space: Any,
    error: type[Exception],
    text: str,
    offer: Offer,
    screen: Screen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ppo, "is_installed", lambda: False)
    env = Line()
    env.observation_space = space
    offer(env)
    with pytest.raises(error, match=text):
        call(screen, "train", "line")
    assert env.closed == 1


@pytest.mark.parametrize(
    ("step", "now", "due"),
    [(5, 5.0, False), (10, 1.9, False), (10, 2.0, True), (5, 60.0, True), (100, 60.0, False)],
)
def test_progress_is_logged_each_tenth_but_not_too_often_nor_too_rarely(
    step: int, now: float, due: bool
) -> None:
    assert (
        LineMeter(clock=lambda: 0.0).due(TrainingProgress(step, 100, 0, None, 0.0, 1.0), now) is due
    )


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
    screen.output().text.print(check.timings_table([relayed] * 3 + [direct]))
    assert "Where the time goes (3 relayed and 1 direct steps)" in screen.text
    rows = {line.split()[0]: line.split()[1:5] for line in screen.text.splitlines() if line.split()}
    assert rows["network"] == ["60.0", "69.7", "62.5", "62%"]
    assert rows["total"] == ["100.0", "100.0", "100.0", "100%"]


def test_check_fails_with_the_checkers_error(offer: Offer, screen: Screen) -> None:
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


def test_check_says_what_it_could_not_check_without_a_free_slot(
    offer: Offer, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checker(env: Any, **skips: bool) -> None:
        if not skips:
            raise NoFreeSlot("all in use")

    monkeypatch.setattr(check, "check_env", checker)
    offer(gymnasium.make("CartPole-v1").unwrapped)
    assert call(screen, "check", "cartpole", "--steps", "5") == 0
    assert "not checked: render modes and closing, which need a second free slot" in screen.text


def test_check_of_an_unregistered_environment_gives_no_useless_advice(
    offer: Offer, screen: Screen
) -> None:
    offer(Line())
    assert call(screen, "check", "line", "--steps", "5") == 0
    assert "passed, no warnings" in screen.text
    assert "not checked: render modes and closing, which need a registered environ" in screen.text


# --- faults of an environment ---------------------------------------------------------------------


class Faulty(Line):
    """A walk whose steps return something else in the place of one of their five results."""

    def __init__(self, **returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def step(self, action: Any) -> Any:
        names = ("observation", "reward", "terminated", "truncated", "info")
        return tuple((dict(zip(names, super().step(action), strict=True)) | self.returned).values())


TWO = np.zeros(2)


@pytest.mark.parametrize("name", ["run", "train"])
@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ({"reward": None}, "the reward None, which is not a number"),
        ({"reward": "1"}, "the reward '1', which is not a number"),
        ({"reward": TWO}, "the reward array([0., 0.]), which is not a number"),
        ({"terminated": TWO}, "array([0., 0.]) as terminated, which is neither true nor false"),
        ({"terminated": "no"}, "'no' as terminated, which is neither true nor false"),
        ({"truncated": None}, "None as truncated, which is neither true nor false"),
        ({"truncated": TWO}, "array([0., 0.]) as truncated, which is neither true nor false"),
    ],
)
def test_what_a_step_returned_wrong_is_the_environments_fault(
    name: str, returned: dict[str, Any], text: str, offer: Offer, screen: Screen
) -> None:
    offer(Faulty(**returned))
    with pytest.raises(EnvironmentFailed) as caught:
        call(screen, name, "line")
    expected = (
        f"The environment at 'line' failed in step(): it returned {text}. Correct the environment."
    )
    assert caught.value.args == (expected,)


@pytest.mark.parametrize("name", ["run", "train"])
def test_an_exception_of_an_environment_names_its_address_and_the_method(
    name: str, offer: Offer, screen: Screen
) -> None:
    offer(Line(fail_at=1, failure=EnvironmentFailed("KeyError: 'left'")))
    with pytest.raises(EnvironmentFailed, match=r"^The env.* at 'line' failed in step\(\): KeyErr"):
        call(screen, name, "line")


def test_a_measurement_names_the_address_and_the_method() -> None:
    env = Line(fail_at=1, failure=EnvironmentFailed("KeyError: 'left'"))
    with pytest.raises(EnvironmentFailed, match=r"^The env.* at 'line' failed in step\(\): KeyErr"):
        check.measure(env, 9, 0, "line")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float32, np.int64, object])
def test_an_array_of_one_number_is_a_number(kind: type, screen: Screen) -> None:
    env = CheckedEnv(Faulty(reward=np.array([[1]], kind), terminated=np.array([True])), "line")
    env.reset()
    _, reward, terminated, _, _ = env.step(0)
    assert (np.ndim(reward), float(reward), terminated) == (0, 1.0, True)


def test_the_form_of_a_wrong_observation_is_named() -> None:
    env = Faulty(observation=np.zeros(2, np.float32))
    env.observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
    checked = CheckedEnv(env, "line")
    form = r"array\(\[0., 0.\].*\) of shape \(2,\) and dtype float32, which does not fit .* Box\(0"
    with pytest.raises(EnvironmentFailed, match=form):
        checked.step(0)


def test_training_needs_observations_of_the_space(offer: Offer, screen: Screen) -> None:
    offer(Faulty(observation=7))
    with pytest.raises(EnvironmentFailed, match=r"observation 7, .* space Discrete\(4\)\."):
        call(screen, "train", "line")


BOX = spaces.Box(0, 1, (2,))


@pytest.mark.parametrize(
    ("space", "right", "wrong"),
    [
        (spaces.Discrete(3, start=1), [1, np.int64(3), np.array(2)], [0, 4, 1.5, None, "1", TWO]),
        (
            BOX,
            [np.zeros(2), [0, 1], np.full(2, 9.0)],
            [0.0, np.zeros(3), [[0], [0, 1]], ["a", "b"]],
        ),
        (spaces.Box(0, 1, ()), [0.5, np.float32(1)], [None, "1"]),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], np.ones(2)], [[2, 0], [0.5, 0], 1, [-1, 0]]),
        (spaces.MultiBinary(2), [[0, 1], np.ones(2, bool)], [[2, 0], [0.5, 0], "01"]),
        (spaces.Dict(a=BOX), [{"a": TWO}, {"a": TWO, "b": 1}], [{}, TWO, {"a": 1}]),
        (spaces.Tuple([BOX, BOX]), [(TWO, TWO)], [(TWO,), TWO, (TWO, 1)]),
        (spaces.Text(3), ["abc", None], []),
    ],
)
def test_observations_are_compared_with_the_structure_of_the_space(
    space: spaces.Space[Any], right: list[Any], wrong: list[Any]
) -> None:
    for observations, fits in ((right, True), (wrong, False)):
        for observation in observations:
            env = Faulty(observation=observation)
            env.observation_space = space
            with nullcontext() if fits else pytest.raises(EnvironmentFailed, match="its space"):
                CheckedEnv(env, "line").step(0)


# --- run ------------------------------------------------------------------------------------------


def test_run_prints_each_episode_and_a_summary(offer: Offer, screen: Screen) -> None:
    offer(Line())
    assert call(screen, "run", "line", "--episodes", "3", "--seed", "1") == 0
    lines = screen.text.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["episode", str(n)] for n in (1, 2, 3)]
    assert lines[3].startswith("3 episodes: return 1.00 ± 0.00 (1.00 to 1.00)")


def test_infinite_returns_have_no_deviation(offer: Offer, screen: Screen) -> None:
    offer(gymnasium.wrappers.TransformReward(Line(), lambda _: np.inf))
    assert call(screen, "run", "line", "--episodes", "2", "--seed", "1") == 0  # without a warning
    assert "2 episodes: return inf ± nan (inf to inf)" in screen.text


def test_the_rate_of_run_leaves_out_the_time_to_load_the_policy(
    offer: Offer, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def load(*_: Any) -> Callable[..., int]:
        nonlocal now_s
        now_s += 1000.0
        return act

    def act(*_: Any) -> int:
        nonlocal now_s
        now_s += 0.5
        return 1

    monkeypatch.setattr(policies, "load", load)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now_s))
    offer(Line())
    assert call(screen, "run", "line", "--episodes", "3", "--json") == 0
    assert screen.json["summary"]["steps_per_s"] == 2.0


def test_run_renders_text_without_escape_sequences(offer: Offer, screen: Screen) -> None:
    offer(Line())
    call(screen, "run", "line", "--episodes", "1", "--seed", "1", "--render")
    assert screen.text.startswith("0")
    assert printable(screen.text) == screen.text


def test_run_refuses_to_render_an_environment_without_ansi(offer: Offer, screen: Screen) -> None:
    offer(gymnasium.make("CartPole-v1").unwrapped)
    with pytest.raises(ConfigurationError, match="cartpole offers human, rgb_array"):
        call(screen, "run", "cartpole", "--render")


# --- JSON -----------------------------------------------------------------------------------------


def test_train_prints_one_object(offer: Offer, screen: Screen) -> None:
    offer(Line())
    assert call(screen, "train", "line", "--steps", "300", "--seed", "1", "--json") == 0
    result = screen.json
    assert (result["learner"], result["steps"], result["seed"]) == ("QLearner", 300, 1)
    assert result["complete"] is True
    assert result["episode_return"] == {"first_tenth": 1.0, "last_tenth": 1.0}
    assert "QLearner after 300 steps" in screen.error_file.getvalue()


def test_run_prints_one_object(offer: Offer, screen: Screen) -> None:
    offer(Line())
    assert call(screen, "run", "line", "--episodes", "2", "--seed", "1", "--json") == 0
    assert [episode["return"] for episode in screen.json["episodes"]] == [1.0, 1.0]
    assert screen.json["summary"]["mean_return"] == 1.0
    assert screen.json["complete"] is True


def test_check_prints_one_object(offer: Offer, screen: Screen) -> None:
    offer(gymnasium.make("CartPole-v1").unwrapped)
    assert call(screen, "check", "cartpole", "--steps", "20", "--json") == 0
    result = screen.json
    assert (result["passed"], result["failure"], len(result["warnings"])) == (True, None, 2)
    assert result["latency"]["steps"] == 20
    assert result["timings"] is None  # of a local environment


def test_check_prints_a_failure_in_its_object(offer: Offer, screen: Screen) -> None:
    offer(Line(fail_at=0, failure=EnvironmentFailed("ValueError: ouch")))
    assert call(screen, "check", "line", "--json") == 1
    assert screen.json["passed"] is False
    assert screen.json["failure"]["message"] == "ValueError: ouch"


def test_numbers_that_json_lacks_are_null(screen: Screen) -> None:
    output = screen.output(as_json=True)
    output.result(a=float("nan"), b=[float("inf"), 1.5])
    output.finish()
    assert screen.json == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize(
    ("missing", "where"),
    [
        (
            EnvironmentFailed(
                "pygame is not installed", remote_type="gymnasium.error.DependencyNotInstalled"
            ),
            "the Python of the environment, at the env agent. Install it there",
        ),
        (
            gymnasium.error.DependencyNotInstalled("pygame is not installed"),
            f"the Python of this command, {sys.executable}. Run: ./run pip install -e '.[render]'",
        ),
    ],
    ids=["at the env agent", "at the learner agent"],
)
def test_a_missing_package_for_rendering_leaves_render_modes_unchecked(
    offer: Offer, screen: Screen, monkeypatch: pytest.MonkeyPatch, missing: Exception, where: str
) -> None:
    def checker(env: Any, **skips: bool) -> None:
        if not skips:
            raise missing

    monkeypatch.setattr(check, "check_env", checker)
    offer(gymnasium.make("CartPole-v1").unwrapped)
    assert call(screen, "check", "cartpole", "--steps", "5") == 0
    assert "not checked: render modes" in screen.text
    assert where in screen.text


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
def test_spaces_have_a_short_text(space: gymnasium.Space[Any], text: str) -> None:
    assert short(space) == text


def test_a_picture_keeps_its_colours_and_no_other_escape_sequence() -> None:
    text = picture("a\x1b[41mb\x1b[0m\n\x1b[2Jc\x07\x1b]0;owned\x07")
    assert text.plain.startswith("ab\nc")
    assert [(span.start, span.end) for span in text.spans] == [(1, 2)]
    assert printable(text.plain) == text.plain


class Ungenerated(gymnasium.Env[Any, Any]):
    """An environment without a random generator, as those of other interpreters may be."""

    observation_space = spaces.Discrete(5)
    action_space = spaces.Discrete(2)

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        raise AttributeError("there is none")

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return int(action), 0.0, False, False, {}


def test_check_passes_for_an_environment_without_a_random_generator() -> None:
    verdict = check.judge(Ungenerated())
    assert verdict.failure is None
    assert verdict.unchecked.startswith("not checked: the random generator")
