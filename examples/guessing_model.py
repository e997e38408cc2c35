"""A language model plays 256 episodes of a text environment at once, on one connection.

gymwire broker
gymwire serve guess examples.guessing_model:Guess --max-sessions 256
python examples/guessing_model.py guess --episodes 256

The model is a small fake, without weights: replace `Model.complete` by a call of a real one. It
answers prompts in batches, as a server of models does, so that many episodes share one batch. Needs
`pip install 'gymwire[aio]'`.
"""

from __future__ import annotations

import argparse
import re
import string
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.spaces import Text

LOW, HIGH = 1, 1000
TRIES = 12
TEXT = Text(min_length=0, max_length=200, charset=string.printable)


class Guess(gymnasium.Env[str, str]):
    """Guess a number. The answer to each guess is "Higher." or "Lower."."""

    observation_space = action_space = TEXT

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Think of another number."""
        super().reset(seed=seed)
        self._number = int(self.np_random.integers(LOW, HIGH + 1))
        self._tries = 0
        return f"I think of a number from {LOW} to {HIGH}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Compare the number in the text with the right one."""
        self._tries += 1
        found = re.search(r"\d+", action)
        guess = int(found[0]) if found else LOW - 1
        if guess == self._number:
            return "Right!", 1.0, True, False, {}
        answer = "Higher." if guess < self._number else "Lower."
        return answer, 0.0, False, self._tries == TRIES, {}


@dataclass
class Model:
    """A fake language model that reads the whole conversation and halves what is left.

    Attributes:
        batches: the sizes of the batches so far.
    """

    batches: list[int] = field(default_factory=list)
    _waiting: list[tuple[str, Any]] = field(default_factory=list)  # prompts and events
    _answers: dict[int, str] = field(default_factory=dict)

    async def complete(self, prompt: str) -> str:
        """Return the model's continuation of a text."""
        import anyio

        done = anyio.Event()
        self._waiting.append((prompt, done))
        if len(self._waiting) == 1:  # the first one waits for others, and computes for all
            await anyio.sleep(0.01)
            batch, self._waiting = self._waiting, []
            self.batches.append(len(batch))
            for text, event in batch:
                self._answers[id(event)] = self._continue(text)
                event.set()
        await done.wait()
        return self._answers.pop(id(done))

    def _continue(self, text: str) -> str:
        low, high = LOW, HIGH
        for guess, answer in re.findall(r"I guess (\d+)\.\n(Higher|Lower)", text):
            if answer == "Higher":
                low = int(guess) + 1
            else:
                high = int(guess) - 1
        return f"I guess {(low + high) // 2}."


async def play(
    address: str, broker: str | None, episodes: int, model: Model, **options: Any
) -> list[float]:
    """Play so many episodes at once, and return their returns."""
    import anyio

    from gymwire.aio import Connection, ProxyEnv

    returns = [0.0] * episodes

    async def episode(number: int, connection: Connection) -> None:
        async with ProxyEnv(address, connection=connection, **options) as env:
            text, _ = await env.reset(seed=number)
            over = False
            while not over:
                guess = await model.complete(text)
                answer, reward, terminated, truncated, _ = await env.step(guess)
                text += f"\n{guess}\n{answer}"
                returns[number] += reward
                over = terminated or truncated

    async with Connection(broker) as connection, anyio.create_task_group() as group:
        for number in range(episodes):
            group.start_soon(episode, number, connection)
    return returns


def main() -> None:
    """Play, and print how many numbers were found."""
    import anyio

    parser = argparse.ArgumentParser(description="Let a fake language model play.")
    parser.add_argument("address", nargs="?", default="guess")
    parser.add_argument("--broker", help="the broker's URL; default: GYMWIRE_BROKER")
    parser.add_argument("--episodes", type=int, default=256)
    options = parser.parse_args()
    model = Model()
    returns = anyio.run(play, options.address, options.broker, options.episodes, model)
    print(f"{sum(returns):.0f} of {len(returns)} numbers found.")
    print(f"{sum(model.batches)} prompts in {len(model.batches)} batches.")


if __name__ == "__main__":
    main()
