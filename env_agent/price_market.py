"""The demo environment: a market in which a learner finds out the price of each good."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from numpy.typing import NDArray

Action = NDArray[np.int64] | Sequence[int]


class PriceMarket(gymnasium.Env[np.int64, Action]):
    """A bandit of goods and prices, registered as `gymwire/PriceMarket-v0`.

    Every good has a hidden mean price, drawn uniformly from [1, `n_prices`). An action offers a
    price for a good. The market accepts it if it is above a normal draw around that good's mean:

        P(accepted) = Phi((price - mean) / price_std)

    Action: `MultiDiscrete([n_goods, n_prices], start=[0, 1])`, int64 (2,): the good, counted from
    0, and the price, counted from 1. `step` accepts any pair of integers, such as a tuple.

    Observation: `Discrete(1)`, always 0. A market has no state; learners learn from the reward
    only.

    Reward: 1.0 for an accepted offer, 0.0 for a refused one.

    Episodes never terminate. The registered environment is truncated after 200 offers, a trading
    day. `reset(seed=...)` draws a new market, the same for the same seed; `reset()` opens the next
    day of the present market, so that what was learned stays true.

    Info of `reset`, for evaluation only (learners must not use it):
        `mean_price`: float64 (n_goods,), the hidden means.
        `acceptance_probability`: float64 (n_goods, n_prices), of price p in column p - 1.
    Info of `step` is empty.

    Rendering as `ansi` shows all offers since the market was drawn: a line for each good, with its
    prices from left to right.

    Args:
        n_goods: how many goods there are, at least 1.
        n_prices: the highest price, at least 2; prices are the integers from 1.
        price_std: standard deviation of the draw that decides on an offer, above 0.
        render_mode: None or "ansi".

    Raises:
        ValueError: an argument is out of its range.
        InvalidAction: from `step`, for a good or a price that does not exist.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 10}  # noqa: RUF012 - as gymnasium.Env declares it

    def __init__(
        self,
        n_goods: int = 10,
        n_prices: int = 100,
        price_std: float = 5.0,
        render_mode: str | None = None,
    ) -> None:
        if n_goods < 1 or n_prices < 2:
            raise ValueError(
                f"A market needs at least 1 good and 2 prices, not {n_goods} and {n_prices}."
            )
        if not (price_std > 0 and math.isfinite(price_std)):
            raise ValueError(f"price_std must be a finite number above 0, not {price_std}.")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or 'ansi', not {render_mode!r}.")
        self.n_goods, self.n_prices, self.price_std = n_goods, n_prices, price_std
        self.render_mode = render_mode
        self.action_space = spaces.MultiDiscrete([n_goods, n_prices], start=[0, 1])
        self.observation_space = spaces.Discrete(1)
        self._means: list[float] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Open a trading day: of a new market if `seed` is given, else of the present one."""
        super().reset(seed=seed)
        if seed is not None or self._means is None:
            # Plain floats: indexing an array and drawing with its scalars costs more per step.
            self._means = self.np_random.uniform(1.0, self.n_prices, self.n_goods).tolist()
            self._offers = np.zeros((self.n_goods, self.n_prices), np.int64)
            self._accepted = np.zeros((self.n_goods, self.n_prices), np.int64)
            self._last: tuple[int, int, bool] | None = None
        info = {
            "mean_price": np.array(self._means),
            "acceptance_probability": self._acceptance_probability(self._means),
        }
        return np.int64(0), info

    def step(self, action: Action) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Offer a price for a good; return the reward 1.0 if the market accepts it, else 0.0."""
        if self._means is None:
            raise ResetNeeded("Call reset() before step().")
        good, price = self._checked(action)
        accepted = price > self.np_random.normal(self._means[good], self.price_std)
        self._offers[good, price - 1] += 1
        self._accepted[good, price - 1] += accepted
        self._last = good, price, accepted
        return np.int64(0), float(accepted), False, False, {}

    def render(self) -> str | None:
        """Return the market as text; None if it was made without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("Nothing to render: the market was made without a render_mode.")
            return None
        if self._means is None:
            raise ResetNeeded("Call reset() before render().")
        return self._as_text(self._means)

    def _checked(self, action: Action) -> tuple[int, int]:
        try:
            good, price = map(operator.index, action)
        except (TypeError, ValueError):
            raise InvalidAction(
                f"An offer is two integers, a good and a price, not {action!r}."
            ) from None
        if not (0 <= good < self.n_goods and 1 <= price <= self.n_prices):
            raise InvalidAction(
                f"Invalid offer: good {good} at price {price}. Goods are 0 to {self.n_goods - 1}, "
                f"prices 1 to {self.n_prices}."
            )
        return good, price

    def _acceptance_probability(self, means: Sequence[float]) -> NDArray[np.float64]:
        scale = self.price_std * math.sqrt(2)
        return np.array(
            [
                [0.5 + 0.5 * math.erf((price - mean) / scale) for price in self._prices()]
                for mean in means
            ]
        )

    def _prices(self) -> range:
        return range(1, self.n_prices + 1)

    def _as_text(self, means: Sequence[float]) -> str:
        n_cells = min(self.n_prices, 50)
        cell_of_price = np.arange(self.n_prices) * n_cells // self.n_prices
        offers, accepted = int(self._offers.sum()), int(self._accepted.sum())
        share = f"{accepted / offers:.0%} accepted" if offers else "none yet"
        lines = [f"Price market: {offers} offers, {share}"]
        if self._last is not None:
            good, price, was_accepted = self._last
            verdict = "accepted" if was_accepted else "refused"
            lines.append(f"Last: good {good} at price {price}, {verdict}")
        scale = f"1{self.n_prices:>{n_cells}}"
        lines += ["", f"good  {scale}  offers  accepted  mean price"]
        for good, mean in enumerate(means):
            made = np.bincount(cell_of_price, self._offers[good], n_cells)
            taken = np.bincount(cell_of_price, self._accepted[good], n_cells)
            cells = [
                "·" if n == 0 else "×" if k == 0 else "░▒▓█"[min(3, int(4 * k / n))]
                for n, k in zip(made, taken, strict=True)
            ]
            cells.insert(min(n_cells, int((mean - 1) * n_cells / self.n_prices)), "|")
            n, k = int(made.sum()), int(taken.sum())
            share = f"{k / n:>8.0%}" if n else " " * 8
            lines.append(f"{good:>4}  {''.join(cells)}  {n:>6}  {share}  {mean:>10.1f}")
        lines += ["", "· no offer   × all refused   ░▒▓█ share of accepted offers   | hidden mean"]
        return "\n".join(lines) + "\n"
