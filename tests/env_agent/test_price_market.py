"""The demo market: its rules, its statistics, its text rendering."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

import gymwire.env_agent  # noqa: F401 - registers the market
from gymwire.env_agent.price_market import PriceMarket


@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_the_market_passes_the_environment_checker_without_a_warning(
    render_mode: str | None,
) -> None:
    env = gymnasium.make("gymwire/PriceMarket-v0", render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_a_trading_day_is_truncated_after_200_offers() -> None:
    env = gymnasium.make("gymwire/PriceMarket-v0")
    env.reset(seed=1)
    ends = [env.step((0, 50))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_the_same_seed_gives_the_same_market_and_the_same_answers() -> None:
    def day(seed: int) -> tuple[list[float], list[float]]:
        market = PriceMarket()
        _, info = market.reset(seed=seed)
        return info["mean_price"].tolist(), [market.step((n % 10, 50))[1] for n in range(200)]

    assert day(7) == day(7)
    assert day(7) != day(8)


def test_a_reset_without_seed_keeps_the_market() -> None:
    market = PriceMarket()
    _, first = market.reset(seed=3)
    market.step((0, 50))
    _, second = market.reset()
    assert np.array_equal(first["mean_price"], second["mean_price"])


def test_a_reset_with_seed_draws_another_market() -> None:
    market = PriceMarket()
    _, first = market.reset(seed=3)
    _, second = market.reset(seed=4)
    assert not np.array_equal(first["mean_price"], second["mean_price"])


def test_hidden_means_are_spread_uniformly_over_the_prices() -> None:
    _, info = PriceMarket(n_goods=20_000, n_prices=100).reset(seed=5)
    share_per_tenth = np.histogram(info["mean_price"], 10, (1, 100))[0] / 20_000
    assert share_per_tenth == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_offers_are_accepted_as_often_as_the_market_says() -> None:
    market = PriceMarket(n_goods=1, price_std=10.0)
    _, info = market.reset(seed=2)
    mean = info["mean_price"][0]
    n = 4_000
    for distance in (-15, -5, 0, 5, 15):
        price = min(100, max(1, round(mean + distance)))
        expected = info["acceptance_probability"][0, price - 1]
        seen = sum(market.step((0, price))[1] for _ in range(n)) / n
        assert expected == pytest.approx(0.5 * math.erfc((mean - price) / (10.0 * math.sqrt(2))))
        assert abs(seen - expected) < 4 * math.sqrt(0.25 / n)


def test_a_reward_is_0_or_1_and_a_step_returns_no_info() -> None:
    market = PriceMarket()
    market.reset(seed=0)
    steps: list[Any] = [market.step((0, price)) for price in (1, 100)]
    assert steps == [(0, 0.0, False, False, {}), (0, 1.0, False, False, {})]


@pytest.mark.parametrize("action", [(10, 5), (-1, 5), (0, 0), (0, 101)])
def test_an_offer_outside_the_market_is_refused_naming_good_and_price(
    action: tuple[int, int],
) -> None:
    market = PriceMarket()
    market.reset(seed=0)
    with pytest.raises(InvalidAction, match=f"good {action[0]} at price {action[1]}"):
        market.step(action)


@pytest.mark.parametrize("action", [7, (1, 2, 3), (0.5, 1.0), "ab", None])
def test_an_offer_that_is_not_a_pair_of_integers_is_refused(action: Any) -> None:
    market = PriceMarket()
    market.reset(seed=0)
    with pytest.raises(InvalidAction, match="two integers"):
        market.step(action)


def test_step_and_render_need_a_reset() -> None:
    with pytest.raises(ResetNeeded):
        PriceMarket().step((0, 1))
    with pytest.raises(ResetNeeded):
        PriceMarket(render_mode="ansi").render()


@pytest.mark.parametrize(
    "kwargs", [{"n_goods": 0}, {"n_prices": 1}, {"price_std": 0.0}, {"render_mode": "human"}]
)
def test_invalid_arguments_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|at least"):
        PriceMarket(**kwargs)


def test_the_text_shows_every_good_with_its_offers_and_the_last_one() -> None:
    market = PriceMarket(n_goods=3, render_mode="ansi")
    market.reset(seed=0)
    for price in (1, 1, 100):
        market.step((1, price))
    text = market.render()
    assert text is not None
    assert "3 offers, 33% accepted" in text
    assert "Last: good 1 at price 100, accepted" in text
    rows = [line.split() for line in text.splitlines() if line.strip()[:1] in set("012")]
    assert [row[0] for row in rows if "|" in row[1]] == ["0", "1", "2"]
    of_good_1 = next(row for row in rows if row[0] == "1" and "|" in row[1])
    assert of_good_1[1].startswith("×")
    assert of_good_1[1].endswith("█")
    assert of_good_1[2:4] == ["3", "33%"]


@pytest.mark.parametrize(("n_goods", "n_prices"), [(1, 2), (12, 5), (3, 1000)])
def test_a_market_of_any_size_can_be_rendered(n_goods: int, n_prices: int) -> None:
    market = PriceMarket(n_goods, n_prices, render_mode="ansi")
    market.reset(seed=0)
    for price in (1, n_prices):
        market.step((n_goods - 1, price))
        market.render()
