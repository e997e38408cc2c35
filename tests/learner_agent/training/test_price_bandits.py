"""The price agent: beta distributions, Thompson sampling, and its results on the demo market."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import gymwire  # noqa: F401 - registers the market
from gymwire.learner_agent.training.price_bandits import (
    GoodPriceModel,
    PriceAgent,
    PriceBandit,
    beta_quantile,
)
from gymwire.learner_agent.training.task import TrainingResult, TrainingTask


def trained(seed: int, steps: int = 3_000) -> tuple[PriceAgent, TrainingResult]:
    agent = PriceAgent(10, 100, seed=seed)
    return agent, TrainingTask(gymnasium.make("gymwire/PriceMarket-v0"), agent, steps, seed).run()


def test_the_prior_acceptance_of_a_price_is_one_half() -> None:
    assert PriceBandit(5).mean == 0.5


def test_an_accepted_offer_raises_a_and_a_refused_one_raises_b() -> None:
    model = GoodPriceModel(10)
    for accepted in (True, True, False):
        model.update(3, accepted)
    assert model.bandit(3) == PriceBandit(3, a=3.0, b=2.0)
    assert model.bandit(4) == PriceBandit(4)
    assert model.offers == 3


@pytest.mark.parametrize("price", [0, 11])
def test_an_unknown_price_is_an_error(price: int) -> None:
    with pytest.raises(IndexError, match="prices are 1 to 10"):
        GoodPriceModel(10).update(price, True)


def test_the_best_price_is_the_likeliest_and_of_equals_the_cheapest() -> None:
    model = GoodPriceModel(10)
    for price in (8, 6, 6, 9, 9):
        model.update(price, True)
    assert model.best().price == 6


def test_a_price_is_sampled_with_the_probability_that_its_draw_is_the_highest() -> None:
    # P(Beta(2, 1) > Beta(1, 1)) is 2/3: the draws are real, not rounded to 0 or 1.
    model = GoodPriceModel(2)
    model.update(2, True)
    rng = np.random.default_rng(0)
    share = np.mean([model.sample_price(rng) == 2 for _ in range(10_000)])
    assert share == pytest.approx(2 / 3, abs=0.02)


def test_quantiles_are_those_of_the_beta_distribution() -> None:
    # Beta(1, 1) is uniform; Beta(n, 1) has the distribution function x ** n.
    q = beta_quantile([1.0, 20.0], [1.0, 1.0], 0.05)
    assert q == pytest.approx([0.05, 0.05 ** (1 / 20)], abs=5e-4)
    draws = np.random.default_rng(0).beta(30, 12, 200_000)
    assert PriceBandit(1, 30, 12).interval(0.9) == pytest.approx(
        np.quantile(draws, [0.05, 0.95]), abs=3e-3
    )


def test_quantiles_for_many_offers_do_not_underflow() -> None:
    assert float(beta_quantile(90_000.0, 10_000.0, 0.5)) == pytest.approx(0.9, abs=1e-3)


def test_more_offers_are_accepted_at_the_end_than_at_the_start() -> None:
    for seed in range(3):
        _, result = trained(seed)
        assert result.rewards[-300:].mean() > result.rewards[:300].mean() + 0.2
        assert result.rewards[-300:].mean() > 0.8


def test_the_true_acceptance_of_the_best_prices_is_high() -> None:
    agent, result = trained(0)
    truth = result.reset_info["acceptance_probability"]
    chances = [truth[n, good.best().price - 1] for n, good in enumerate(agent.goods)]
    assert min(chances) > 0.7
    assert np.mean(chances) > 0.9


def test_the_same_seed_gives_the_same_result_bit_for_bit() -> None:
    (one, one_result), (other, other_result) = trained(5, 500), trained(5, 500)
    assert one_result.rewards.tobytes() == other_result.rewards.tobytes()
    assert all(one.state()[name].tobytes() == other.state()[name].tobytes() for name in "ab")


def test_another_seed_gives_other_offers() -> None:
    one, other = PriceAgent(10, 100, seed=1), PriceAgent(10, 100, seed=2)
    offers = [[agent.act(0, {}).tolist() for _ in range(5)] for agent in (one, other)]
    assert offers[0] != offers[1]


def test_goods_and_prices_start_at_the_first_numbers_of_the_market() -> None:
    agent = PriceAgent(2, 3, first_good=5, first_price=10, seed=0)
    offers = [agent.act(0, {}) for _ in range(200)]
    assert {int(good) for good, _ in offers} == {5, 6}
    assert {int(price) for _, price in offers} == {10, 11, 12}
    agent.learn(0, np.array([6, 12]), 1.0, 0, False, False, {})
    assert agent.goods[1].bandit(12).a == 2


def test_a_restored_agent_has_the_best_prices_of_the_saved_one() -> None:
    agent, _ = trained(0, 500)
    other = PriceAgent(10, 100)
    other.restore(agent.state())
    assert [good.best() for good in other.goods] == [good.best() for good in agent.goods]


def test_parameters_below_the_prior_are_not_restored() -> None:
    agent = PriceAgent(1, 2)
    with pytest.raises(ValueError, match="below 1"):
        agent.restore({"a": np.array([[0.0, 1.0]]), "b": np.ones((1, 2))})
