"""The demo environment: a market in which one finds out what each good costs."""

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
    price for a good; it is accepted when it is above a normal draw around that good's mean:

        P(accepted) = Phi((price - mean) / price_std)

    Action: `MultiDiscrete([n_goods, n_prices], start=[0, 1])`, int64 (2,): the good, counted from
    0, and the price, counted from 1. Any pair of integers will do, such as a tuple.

    Observation: `Discrete(1)`, always 0. A market has no state; all that there is to learn is in
    the reward.

    Reward: 1.0 for an accepted offer, 0.0 for a refused one.

    Episodes never terminate. The registered environment is truncated after 200 offers, a trading
    day. `reset(seed=...)` draws a new market, the same for the same seed; `reset()` opens the next
    day of the market that there is, so that what was learnt stays true.

    Info of `reset`: what a judge of learners needs, and a learner must not look at.
        `mean_price`: float64 (n_goods,), the hidden means.
        `acceptance_probability`: float64 (n_goods, n_prices), of price p in column p - 1.
    Info of `step` is empty.

    Rendering shows all offers since the market was drawn. `ansi`: a line per good with its prices
    from left to right. `rgb_array`: uint8 (height, width, 3), a strip per good: how likely each
    price is accepted as brightness, offers accepted and refused as bars, the hidden mean as a line.

    Args:
        n_goods: how many goods there are, at least 1.
        n_prices: the highest price, at least 2; prices are the integers from 1.
        price_std: standard deviation of the draw that decides on an offer, above 0.
        render_mode: None, "ansi" or "rgb_array".

    Raises:
        ValueError: an argument is out of its range.
        InvalidAction: from `step`, for a good or a price that does not exist.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}  # noqa: RUF012 - as gymnasium.Env declares it

    def __init__(
        self,
        n_goods: int = 10,
        n_prices: int = 100,
        price_std: float = 5.0,
        render_mode: str | None = None,
    ) -> None:
        if n_goods < 1 or n_prices < 2:
            raise ValueError(
                f"a market needs at least 1 good and 2 prices, not {n_goods} and {n_prices}"
            )
        if not (price_std > 0 and math.isfinite(price_std)):
            raise ValueError(f"price_std must be a number above 0, not {price_std}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be 'ansi' or 'rgb_array', not {render_mode!r}")
        self.n_goods, self.n_prices, self.price_std = n_goods, n_prices, price_std
        self.render_mode = render_mode
        self.action_space = spaces.MultiDiscrete([n_goods, n_prices], start=[0, 1])
        self.observation_space = spaces.Discrete(1)
        self._means: list[float] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Open a day: of a new market when `seed` is given, of the same one otherwise."""
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
        """Offer a price for a good."""
        if self._means is None:
            raise ResetNeeded("the market opens with reset(); call it before step()")
        good, price = self._checked(action)
        accepted = price > self.np_random.normal(self._means[good], self.price_std)
        self._offers[good, price - 1] += 1
        self._accepted[good, price - 1] += accepted
        self._last = good, price, accepted
        return np.int64(0), float(accepted), False, False, {}

    def render(self) -> Any:
        """Return the market's picture: a str, a uint8 array (height, width, 3), or None."""
        if self.render_mode is None:
            gymnasium.logger.warn("the market was made without a render_mode: nothing to render")
            return None
        if self._means is None:
            raise ResetNeeded("the market opens with reset(); call it before render()")
        if self.render_mode == "ansi":
            return self._as_text(self._means)
        return self._as_picture(self._means)

    def _checked(self, action: Action) -> tuple[int, int]:
        try:
            good, price = map(operator.index, action)
        except (TypeError, ValueError):
            raise InvalidAction(
                f"an offer is two integers, a good and a price, not {action!r}"
            ) from None
        if not (0 <= good < self.n_goods and 1 <= price <= self.n_prices):
            raise InvalidAction(
                f"no such offer: good {good} at price {price}; "
                f"goods are 0 to {self.n_goods - 1}, prices 1 to {self.n_prices}"
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
        lines += ["", "· no offer   × all refused   ░▒▓█ more and more accepted   | hidden mean"]
        return "\n".join(lines) + "\n"

    def _as_picture(self, means: Sequence[float]) -> NDArray[np.uint8]:
        column = max(1, 600 // self.n_prices)  # pixels per price
        plot_width, margin, gap, bar_height = column * self.n_prices, 40, 6, 34
        row_height = bar_height + gap
        shape = (gap + self.n_goods * row_height + 20, margin + plot_width + gap, 3)
        picture = np.full(shape, _PAPER, np.uint8)
        chances = self._acceptance_probability(means)[..., None]
        for good, mean in enumerate(means):
            top = gap + good * row_height
            strip = picture[top : top + bar_height, margin : margin + plot_width]
            strip[:] = np.repeat(_UNLIKELY + chances[good] * (_LIKELY - _UNLIKELY), column, axis=0)
            busiest = max(1, int(self._offers[good].max()))
            for place in np.flatnonzero(self._offers[good]).tolist():
                made, taken = int(self._offers[good, place]), int(self._accepted[good, place])
                # A root, so that a single offer is still to be seen beside hundreds.
                height = max(3, round(bar_height * math.sqrt(made / busiest)))
                refused = round(height * (made - taken) / made)
                bar = strip[bar_height - height :, place * column : (place + 1) * column]
                bar[: height - refused] = _ACCEPTED
                bar[height - refused :] = _REFUSED
            middle = int((mean - 0.5) * column)
            strip[:, max(0, middle - 1) : middle + 1] = _INK
            if self._last is not None and self._last[0] == good:
                self._frame_last_offer(picture, top - 3, margin, column, bar_height + 6)
            _write(picture, str(good), right=margin - 10, top=top + bar_height // 2 - 5)
        for price in {1, self.n_prices, *range(20, self.n_prices, max(20, self.n_prices // 5))}:
            right = min(margin + plot_width, margin + (price - 1) * column + column // 2 + 8)
            _write(picture, str(price), right=right, top=shape[0] - 16)
        return picture

    def _frame_last_offer(
        self, picture: NDArray[np.uint8], top: int, margin: int, column: int, height: int
    ) -> None:
        assert self._last is not None
        _, price, accepted = self._last
        left = margin + (price - 1) * column - 2
        frame = picture[top : top + height, left : left + column + 4]
        inside = frame[2:-2, 2:-2].copy()
        frame[:] = _ACCEPTED if accepted else _REFUSED
        frame[2:-2, 2:-2] = inside


# Colours that stay apart for colour-blind eyes (Okabe and Ito's blue and vermilion), on greys.
_PAPER = np.array([250, 250, 250])
_INK = np.array([40, 40, 40])
_UNLIKELY = np.array([196.0, 200.0, 208.0])
_LIKELY = np.array([236.0, 240.0, 246.0])
_ACCEPTED = np.array([0, 114, 178])
_REFUSED = np.array([213, 94, 0])

# The digits, 3 by 5 pixels each, a row of pixels per octal figure: enough text for a picture made
# without a drawing library.
_DIGITS = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111", "75757", "75717")


def _write(picture: NDArray[np.uint8], digits: str, *, right: int, top: int) -> None:
    """Draw a number, 10 pixels high, so that it ends at column `right`."""
    for place, digit in enumerate(reversed(digits)):
        rows = [[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in _DIGITS[int(digit)]]
        glyph = np.kron(np.array(rows, bool), np.ones((2, 2), bool))
        left = right - 6 - 8 * place
        picture[top : top + 10, left : left + 6][glyph] = _INK
