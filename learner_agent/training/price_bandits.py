"""A learner for markets: Thompson sampling over a beta distribution per price of each good.

The prior of every price is Beta(1, 1), uniform over acceptance probabilities. An accepted offer
adds one to `a`, a refused one adds one to `b` (the conjugate update of a Bernoulli trial).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class PriceBandit:
    """What is known of one price of one good: its acceptance probability is Beta(a, b)."""

    price: int
    a: float = 1.0
    b: float = 1.0

    @property
    def mean(self) -> float:
        """Expected acceptance probability."""
        return self.a / (self.a + self.b)

    def interval(self, mass: float = 0.9) -> tuple[float, float]:
        """Return the central credible interval that holds `mass` of the distribution."""
        tail = (1 - mass) / 2
        low, high = (beta_quantile(self.a, self.b, q) for q in (tail, 1 - tail))
        return float(low), float(high)


class GoodPriceModel:
    """The price bandits of one good, held as two arrays so that all are drawn from at once.

    Attributes:
        first_price: the price of the first bandit; the others follow by one.
        a: float64 (n_prices,), one more than the accepted offers at each price.
        b: float64 (n_prices,), one more than the refused offers at each price.
    """

    def __init__(self, n_prices: int, first_price: int = 1) -> None:
        self.first_price = first_price
        self.a = np.ones(n_prices)
        self.b = np.ones(n_prices)

    def bandit(self, price: int) -> PriceBandit:
        """Return a copy of what is known of `price`."""
        place = self._place(price)
        return PriceBandit(price, float(self.a[place]), float(self.b[place]))

    @property
    def offers(self) -> int:
        """How many offers for this good were seen."""
        return round(float(self.a.sum() + self.b.sum())) - 2 * self.a.size

    def best(self) -> PriceBandit:
        """Return the learnt price: the likeliest to be accepted, the cheapest of equals."""
        return self.bandit(self.first_price + int(np.argmax(self.a / (self.a + self.b))))

    def sample_price(self, rng: np.random.Generator) -> int:
        """Draw an acceptance probability for each price; return the price with the highest."""
        return self.first_price + int(rng.beta(self.a, self.b).argmax())

    def update(self, price: int, accepted: bool) -> None:
        """Learn from one offer. Raises IndexError for a price that has no bandit."""
        (self.a if accepted else self.b)[self._place(price)] += 1

    def _place(self, price: int) -> int:
        place = price - self.first_price
        if not 0 <= place < self.a.size:
            raise IndexError(
                f"no price {price}: prices are {self.first_price} to "
                f"{self.first_price + self.a.size - 1}"
            )
        return place


class PriceAgent:
    """Picks a random good, and its price by Thompson sampling.

    What it does depends only on `seed` and on the rewards that it is given; it looks at neither
    observation nor info.

    Args:
        n_goods, n_prices: the market's size.
        first_good, first_price: where goods and prices start to count.
        seed: seeds the agent's own generator.

    Attributes:
        goods: the `GoodPriceModel` of each good, the first good first.
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
        """Return the next offer, int64 (2,), a fresh array: the good and the price."""
        good = int(self._rng.integers(len(self.goods)))
        price = self.goods[good].sample_price(self._rng)
        return np.array([self.first_good + good, price])

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
        """Learn from one offer; a reward above 0 means that it was accepted."""
        good, price = action.tolist()
        self.goods[good - self.first_good].update(price, reward > 0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was learnt: `a` and `b`, float64 (n_goods, n_prices), fresh arrays."""
        return {
            "a": np.stack([good.a for good in self.goods]),
            "b": np.stack([good.b for good in self.goods]),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state()` returned, of an agent of the same size.

        Raises ValueError for parameters that no beta distribution here can reach.
        """
        a, b = state["a"], state["b"]
        if min(a.min(), b.min()) < 1:
            raise ValueError(
                "a beta distribution's parameter is below 1, where each of them starts"
            )
        for good, good_a, good_b in zip(self.goods, a, b, strict=True):
            good.a, good.b = good_a.copy(), good_b.copy()


def beta_quantile(a: ArrayLike, b: ArrayLike, q: float) -> NDArray[np.float64]:
    """Return the `q` quantile of Beta(a, b) to within 0.0005, in the shape of `a` and `b`.

    The density is summed over a grid: enough for tables and pictures, and numpy has no quantiles of
    this distribution.

    Args:
        a, b: parameters of at least 1, arrays of one shape or scalars.
        q: between 0 and 1.
    """
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    # Most prices were offered equally often, or never: each pair is worked out once.
    pairs, place = np.unique(np.stack([a.ravel(), b.ravel()], -1), axis=0, return_inverse=True)
    n = 2000
    x = (np.arange(n) + 0.5) / n
    log_density = (pairs[:, :1] - 1) * np.log(x) + (pairs[:, 1:] - 1) * np.log1p(-x)
    # The constant B(a, b) drops out; taking the peak off first keeps exp() from underflowing.
    total = np.cumsum(np.exp(log_density - log_density.max(-1, keepdims=True)), -1)
    quantiles = (total < q * total[:, -1:]).sum(-1) / n + 0.5 / n
    return np.asarray(quantiles[place.ravel()].reshape(a.shape), np.float64)
