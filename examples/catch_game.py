"""A small pygame game that owns its loop and offers itself as an environment.

pip install pygame
gymwire broker
python examples/catch_game.py
gymwire run catch --episodes 3

In a clone, put ./run before each command, as in `./run pip install pygame`.

Move the paddle with the arrow keys. While a learner is connected, it plays instead.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import numpy as np
import pygame
from gymnasium.spaces import Box, Discrete

from gymwire import Simulation

WIDTH, HEIGHT = 160, 200  # of the window, in pixels
PADDLE = 40  # its width, in pixels
SPEED = 4  # of the ball and the paddle, in pixels per frame
STAY, LEFT, RIGHT = range(3)

OBSERVATION_SPACE = Box(0.0, 1.0, (3,), np.float32)  # ball x, ball y, paddle x
ACTION_SPACE = Discrete(3)


class Catch:
    """Catch the falling ball with the paddle."""

    def __init__(self) -> None:
        self.screen = pygame.display.set_mode((WIDTH, HEIGHT))
        self.restart(None)

    def restart(self, seed: int | None) -> None:
        """Let a new ball fall from a random place."""
        if seed is not None:
            random.seed(seed)
        self.ball = pygame.Vector2(random.randrange(WIDTH), 0)
        self.paddle = WIDTH / 2

    def advance(self, move: int) -> tuple[float, bool]:
        """Move for one frame; return the reward, and whether the ball has reached the ground."""
        self.paddle += SPEED * {LEFT: -1, STAY: 0, RIGHT: 1}[move]
        self.paddle = min(max(self.paddle, 0), WIDTH)
        self.ball.y += SPEED
        if self.ball.y < HEIGHT:
            return 0.0, False
        return (1.0 if abs(self.ball.x - self.paddle) <= PADDLE / 2 else -1.0), True

    def observe(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return where the ball and the paddle are, as parts of the window's size."""
        ball = self.ball.x / WIDTH, min(self.ball.y / HEIGHT, 1.0)
        return np.array([*ball, self.paddle / WIDTH], np.float32)

    def draw(self) -> None:
        """Draw the frame."""
        self.screen.fill("black")
        pygame.draw.circle(self.screen, "orange", self.ball, 5)
        pygame.draw.rect(self.screen, "white", (self.paddle - PADDLE / 2, HEIGHT - 6, PADDLE, 6))
        pygame.display.flip()

    def picture(self) -> Any:
        """Return the frame as an RGB image of shape (HEIGHT, WIDTH, 3)."""
        self.draw()
        return pygame.surfarray.array3d(self.screen).swapaxes(0, 1)


def keyboard() -> int:
    """Return the move that the player's keys ask for."""
    keys = pygame.key.get_pressed()
    return RIGHT if keys[pygame.K_RIGHT] else LEFT if keys[pygame.K_LEFT] else STAY


def main(address: str) -> None:
    """Run the game until its window is closed."""
    pygame.init()
    game, clock = Catch(), pygame.time.Clock()
    reward, ended = 0.0, False
    with Simulation(address, OBSERVATION_SPACE, ACTION_SPACE, render=game.picture) as simulation:
        while not pygame.event.peek(pygame.QUIT):
            command = simulation.exchange(game.observe(), reward, ended)
            if command.reset:
                game.restart(command.seed)
                reward, ended = 0.0, False
            elif command.has_learner:  # as fast as it learns
                reward, ended = game.advance(command.action)
            else:  # the player's turn
                if ended:
                    game.restart(None)
                reward, ended = game.advance(keyboard())
                clock.tick(30)
            game.draw()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="catch")
    main(parser.parse_args().address)
