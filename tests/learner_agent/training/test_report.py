"""The report of a training: the content of its table, and its plots."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from rich.console import Console

import gymwire  # noqa: F401 - registers the market
from gymwire.learner_agent.training.learners import Learner
from gymwire.learner_agent.training.price_bandits import PriceAgent
from gymwire.learner_agent.training.q_learning import QLearner
from gymwire.learner_agent.training.report import plot, print_report
from gymwire.learner_agent.training.task import TrainingResult, TrainingTask
from gymwire.protocol.errors import ConfigurationError
from tests.sampling import sampled


def report(result: TrainingResult, learner: Learner) -> str:
    file = io.StringIO()
    print_report(result, learner, Console(file=file, width=100, color_system=None))
    return file.getvalue()


def result_of(rewards: Any, episode_ends: Any = (), **reset_info: Any) -> TrainingResult:
    return TrainingResult.of_one_env(np.array(rewards, float), episode_ends, 2.0, reset_info)


def market() -> tuple[PriceAgent, dict[str, Any]]:
    """Return an agent with offers for the first of two goods, and the true probabilities."""
    agent = PriceAgent(2, 4, seed=0)
    for _ in range(8):
        agent.goods[0].update(3, True)
    agent.goods[0].update(1, False)
    truth = np.array([[0.0, 0.25, 0.875, 1.0], [0.125, 0.5, 0.5, 1.0]])
    return agent, {"acceptance_probability": truth}


def cells(text: str, good: int) -> list[str]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return next(row for row in rows if row and row[0] == str(good))


def test_the_table_has_the_best_price_of_each_good_with_estimated_and_true_acceptance() -> None:
    agent, truth = market()
    text = report(result_of([1.0], **truth), agent)
    assert "estimated" in text
    assert "interval" in text
    # Beta(9, 1) has the mean 0.9 and the distribution function x ** 9.
    assert cells(text, 0) == ["0", "9", "3", "90%", "72% to 99%", "88%"]
    assert cells(text, 1) == ["1", "0", "1", "50%", "5% to 95%", "12%"]


@pytest.mark.parametrize(
    "truth",
    [None, "all of it", np.ones((3, 3)), np.full((2, 4), 7.0), np.ones((2, 4), np.float32)],
)
def test_without_true_probabilities_that_fit_the_table_has_no_column_for_them(truth: Any) -> None:
    agent, _ = market()
    text = report(result_of([1.0], acceptance_probability=truth), agent)
    assert "true" not in text
    assert cells(text, 0) == ["0", "9", "3", "90%", "72% to 99%"]


def test_a_market_of_many_goods_shows_the_first_and_counts_the_rest() -> None:
    text = report(result_of([1.0]), PriceAgent(1_050, 3))
    assert cells(text, 19)[0] == "19"
    assert "│   20 │" not in text
    assert "and 1,030 more goods" in text


def test_the_summary_has_early_and_late_acceptance_and_the_step_rate() -> None:
    text = report(result_of([0.0] * 10 + [1.0] * 90), market()[0])
    assert "0.0% in the first tenth, 100.0% in the last" in text
    assert "100 in 2.0 s, 50 per second" in text


def test_the_summary_of_episodes_has_return_last_rewards_and_length() -> None:
    # Ten episodes of two steps with negative rewards, then ten of one step with a positive one.
    result = result_of([-1.0] * 20 + [5.0] * 10, [*range(2, 21, 2), *range(21, 31)])
    text = report(result, QLearner(Discrete(4), Discrete(2)))
    assert "-2.00 in the first tenth, 5.00 in the last" in text
    assert "in 0% of the episodes of the first tenth, 100% of the last" in text
    assert "2 steps early, 1 late" in text
    assert "0 of 4" in text


def test_the_summary_omits_last_rewards_if_none_is_positive() -> None:
    text = report(result_of([-1.0] * 4, [2, 4]), QLearner(Discrete(4), Discrete(2)))
    assert "last reward" not in text


def test_without_finished_episodes_the_summary_has_the_reward_per_step() -> None:
    text = report(result_of([0.0] * 5 + [1.0] * 5), QLearner(Discrete(4), Discrete(2)))
    assert "0.000 in the first tenth, 1.000 in the last" in text


def test_a_training_interrupted_before_its_first_step_can_be_reported() -> None:
    assert "0 in 2.0 s" in report(result_of([]), QLearner(Discrete(4), Discrete(2)))


def drawn(path: Path) -> np.ndarray[Any, Any]:
    from matplotlib.image import imread

    return np.asarray(imread(path))[..., :3]


def colours_of(path: Path) -> set[str]:
    pixels = (drawn(path).reshape(-1, 3) * 255).round().astype(int) @ (1 << 16, 1 << 8, 1)
    return {f"#{pixel:06X}" for pixel in np.unique(pixels)}


def test_the_plot_of_a_market_has_estimated_and_true_acceptance(tmp_path: Path) -> None:
    env, agent = gymnasium.make("gymwire/PriceMarket-v0"), PriceAgent(10, 100, seed=0)
    result = TrainingTask(env, agent, 300, 0).run()
    plot(result, agent, tmp_path / "with.png")
    plot(result_of(result.rewards), agent, tmp_path / "without.png")
    estimated, true = "#0072B2", "#D55E00"
    assert {estimated, true} <= colours_of(tmp_path / "with.png")
    assert true not in colours_of(tmp_path / "without.png")


@pytest.mark.parametrize(
    ("rewards", "episode_ends", "panels"),
    sampled(
        [
            ([-1.0, 5.0] * 40, range(2, 81, 2), 3),
            ([0.0, 1.0] * 40, range(2, 81, 2), 2),
            ([-1.0] * 80, range(2, 81, 2), 2),
            ([0.0] * 80, range(2, 81, 2), 2),
            ([1.0, 2.0, 3.0], [], 1),
            ([], [], 1),
        ],
        3,
    ),
)
def test_the_plot_of_episodes_has_no_redundant_panels(
    tmp_path: Path, rewards: list[float], episode_ends: Any, panels: int
) -> None:
    path = tmp_path / "curves.png"
    plot(result_of(rewards, list(episode_ends)), QLearner(Discrete(4), Discrete(2)), path)
    height, width, _ = drawn(path).shape
    assert (height, width) == (round(150 * (0.8 + 2.1 * panels)), 1200)


@pytest.mark.parametrize("n_goods", sampled([30, 1, 7], 3))
def test_markets_of_one_good_and_of_many_can_be_drawn(tmp_path: Path, n_goods: int) -> None:
    path = tmp_path / "market.png"
    plot(result_of([1.0, 0.0]), PriceAgent(n_goods, 5), path)
    assert drawn(path).size > 0


def test_without_matplotlib_the_error_has_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install .*plot"):
        plot(result_of([1.0]), market()[0], tmp_path / "curves.png")


@pytest.mark.parametrize("learner", [PriceAgent(2, 4), QLearner(Discrete(4), Discrete(2))])
def test_the_title_of_a_plot_names_learner_address_and_seed(
    tmp_path: Path, learner: PriceAgent | QLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    titles: list[str] = []
    draw = Figure.suptitle

    def recorded(figure: Figure, title: str, **options: Any) -> None:
        titles.append(title)
        draw(figure, title, **options)

    monkeypatch.setattr(Figure, "suptitle", recorded)
    plot(result_of([1.0] * 1200), learner, tmp_path / "a.svg", address="lab/one", seed=7)
    plot(result_of([1.0] * 1200), learner, tmp_path / "b.svg")
    name = type(learner).__name__
    assert titles == [f"{name} at lab/one, seed 7: 1,200 steps", f"{name}: 1,200 steps"]


def test_a_mean_of_one_episode_is_not_called_a_mean(tmp_path: Path) -> None:
    for number, said in ((7, False), (45, True)):
        path = tmp_path / f"{number}.svg"
        ends = list(range(2, 2 * number + 1, 2))
        plot(result_of([-1.0, 5.0] * number, ends), QLearner(Discrete(4), Discrete(2)), path)
        assert ("mean of" in path.read_text()) == said  # texts are in comments


@pytest.mark.parametrize("name", ["curves.nonsense", "missing/curves.png"])
def test_a_plot_that_cannot_be_written_is_an_error_naming_the_file(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"Cannot write a plot to .*{name}"):
        plot(result_of([1.0]), market()[0], tmp_path / name)


@pytest.mark.parametrize(
    "values",
    sampled(
        [
            [200.0] * 40,
            [0.0] * 40,
            [1e9 + 1, 1e9] * 20,
            [1e-4, 2e-4] * 20,
            [-1e6] * 3 + [0.0] * 300,
            [1.0, np.inf, np.nan, 2.0] * 10,
            [5.0],
        ],
        3,
    ),
)
def test_ticks_are_plain_numbers_and_all_means_lie_within_the_axes(
    values: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def recorded(figure: Figure, *args: Any) -> None:
        figures.append(figure)
        save(figure, *args)

    monkeypatch.setattr(Figure, "savefig", recorded)
    result = result_of(values, range(1, len(values) + 1))
    plot(result, QLearner(Discrete(4), Discrete(2)), tmp_path / "curves.png")
    for axes in figures[0].axes:
        assert axes.yaxis.get_offset_text().get_text() == ""
        assert all("e" not in label.get_text() for label in axes.get_yticklabels())
        low, high = axes.get_ylim()
        mean: Any = axes.lines[-1].get_ydata()
        assert ((low < mean) & (mean < high)).all()


def test_a_long_title_stays_within_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    address = "/".join(["a-long-name-of-a-laboratory"] * 4)
    plot(result_of([1.0, 2.0] * 9), QLearner(Discrete(4), Discrete(2)), path, address=address)
    right = (drawn(path)[:100, -12:] < 0.5).any()
    assert not right
