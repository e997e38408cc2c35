"""A learner for markets: Thompson sampling with a beta distribution for each price of each good.

The prior of every price is Beta(1, 1), which is uniform over acceptance probabilities. An accepted
offer adds 1 to `a`, and a refused one adds 1 to `b` (the conjugate update of a Bernoulli trial).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class PriceBandit:
    """One price of one good. The belief about its acceptance probability is Beta(a, b)."""

    price: int
    a: float = 1.0
    b: float = 1.0

    @property
    def mean(self) -> float:
        """The expected acceptance probability."""
        return self.a / (self.a + self.b)

    def interval(self, mass: float = 0.9) -> tuple[float, float]:
        """Return the central credible interval with this share of the distribution."""
        tail = (1 - mass) / 2
        low, high = (beta_quantile(self.a, self.b, q) for q in (tail, 1 - tail))
        return float(low), float(high)


class GoodPriceModel:
    """The price bandits of one good, as two arrays, so that one call samples all of them.

    Args:
        n_prices: the number of prices.
        first_price: the lowest price.

    Attributes:
        first_price: the price of the first bandit. Each next price is 1 higher.
        a: float64 (n_prices,), 1 + the number of accepted offers at each price.
        b: float64 (n_prices,), 1 + the number of refused offers at each price.
    """

    def __init__(self, n_prices: int, first_price: int = 1) -> None:
        self.first_price = first_price
        self.a = np.ones(n_prices)
        self.b = np.ones(n_prices)

    def bandit(self, price: int) -> PriceBandit:
        """Return the bandit of `price`. Raises IndexError for an unknown price."""
        index = self._index(price)
        return PriceBandit(price, float(self.a[index]), float(self.b[index]))

    @property
    def offers(self) -> int:
        """The number of offers for this good so far."""
        return round(float(self.a.sum() + self.b.sum())) - 2 * self.a.size

    def best(self) -> PriceBandit:
        """Return the bandit that is most likely to be accepted; of equals, the cheapest."""
        return self.bandit(self.first_price + int(np.argmax(self.a / (self.a + self.b))))

    def sample_price(self, rng: np.random.Generator) -> int:
        """Draw an acceptance probability for each price; return the price with the highest."""
        return self.first_price + int(rng.beta(self.a, self.b).argmax())

    def update(self, price: int, accepted: bool) -> None:
        """Learn from one offer. Raises IndexError for an unknown price."""
        (self.a if accepted else self.b)[self._index(price)] += 1

    def _index(self, price: int) -> int:
        index = price - self.first_price
        if not 0 <= index < self.a.size:
            raise IndexError(
                f"no price {price}: prices are {self.first_price} to "
                f"{self.first_price + self.a.size - 1}"
            )
        return index


class PriceAgent:
    """A learner that chooses a random good, and its price by Thompson sampling.

    Its actions depend only on `seed` and on the rewards. It ignores observations and infos.

    Args:
        n_goods: the number of goods.
        n_prices: the number of prices.
        first_good: the number of the first good.
        first_price: the lowest price.
        seed: seeds the agent's own generator.

    Attributes:
        goods: the `GoodPriceModel` of each good.
    """

    def __init__(
        self,
        n_goods: int,
        n_prices: int,
        *,
        first_good: int = 0,
        first_price: int = 1,
        seed: int | None = None,
    ) -> None:
        self.goods = tuple(GoodPriceModel(n_prices, first_price) for _ in range(n_goods))
        self.first_good = first_good
        self._rng = np.random.default_rng(seed)

    def act(self, observation: object, info: Mapping[str, Any]) -> NDArray[np.int64]:
        """Return the next offer: the good and the price, int64 (2,), in fresh memory."""
        good = int(self._rng.integers(len(self.goods)))
        price = self.goods[good].sample_price(self._rng)
        return np.array([self.first_good + good, price])

    def best(self, observation: object, info: Mapping[str, Any]) -> NDArray[np.int64]:
        """Return the offer of a random good at its best price, int64 (2,), in fresh memory."""
        good = int(self._rng.integers(len(self.goods)))
        return np.array([self.first_good + good, self.goods[good].best().price])

    def learn(
        self,
        observation: object,
        action: NDArray[np.int64],
        reward: float,
        next_observation: object,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
    ) -> None:
        """Learn from one offer. A reward above 0 means that it was accepted."""
        good, price = action.tolist()
        self.goods[good - self.first_good].update(price, reward > 0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the parameters `a` and `b`, float64 (n_goods, n_prices), in fresh memory."""
        return {
            "a": np.stack([good.a for good in self.goods]),
            "b": np.stack([good.b for good in self.goods]),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Replace the parameters by those that `state` of an agent of the same size returned.

        Raises:
            ValueError: a parameter is below 1, the value of the prior.
        """
        a, b = state["a"], state["b"]
        if min(a.min(), b.min()) < 1:
            raise ValueError("a parameter of a beta distribution is below 1, where all start")
        for good, good_a, good_b in zip(self.goods, a, b, strict=True):
            good.a, good.b = good_a.copy(), good_b.copy()


def beta_quantile(a: ArrayLike, b: ArrayLike, q: float) -> NDArray[np.float64]:
    """Return quantiles of Beta(a, b) to within 0.0005.

    Sums the density over a grid, because NumPy cannot compute them. The precision suffices for
    tables and plots.

    Args:
        a: parameters, at least 1.
        b: parameters, at least 1, in the shape of `a`.
        q: which quantile, between 0 and 1.

    Returns:
        float64, in the shape of `a` and `b`.
    """
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    # Many prices share a pair of parameters, above all the prior. Compute each pair once.
    pairs, inverse = np.unique(np.stack([a.ravel(), b.ravel()], -1), axis=0, return_inverse=True)
    n = 2000
    x = (np.arange(n) + 0.5) / n
    log_density = (pairs[:, :1] - 1) * np.log(x) + (pairs[:, 1:] - 1) * np.log1p(-x)
    # The constant B(a, b) cancels. Subtracting the peak keeps exp() from underflowing.
    total = np.cumsum(np.exp(log_density - log_density.max(-1, keepdims=True)), -1)
    quantiles = (total < q * total[:, -1:]).sum(-1) / n + 0.5 / n
    return np.asarray(quantiles[inverse.ravel()].reshape(a.shape), np.float64)
