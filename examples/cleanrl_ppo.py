"""PPO in one file, in the style of CleanRL: PyTorch, and any vector of environments.

gymwire broker
gymwire serve cartpole CartPole-v1
python examples/cleanrl_ppo.py cartpole
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import nn
from torch.distributions import Categorical

from gymwire import ProxyVectorEnv

STEPS, EPOCHS, MINIBATCHES = 64, 4, 4
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
RATE, ENTROPY, VALUE, MAX_NORM = 1e-3, 0.01, 0.5, 0.5


def network(inputs: int, outputs: int, gain: float) -> Any:
    """Make a network whose last layer starts with weights of this size."""
    layers = [nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
    last = nn.Linear(64, outputs)
    nn.init.orthogonal_(last.weight, gain)
    return nn.Sequential(*layers, last)


def train(envs: VectorEnv[Any, Any, Any], updates: int, seed: int = 1) -> dict[str, Any]:
    """Train on a local or a remote vector, flat observations and discrete actions.

    Returns:
        The weights of the actor and of the critic.
    """
    # In this mode, the step that ends an episode returns its last observation, and the step after
    # it only resets: that one is left out of the training.
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    torch.manual_seed(seed)
    inputs, choices = envs.single_observation_space.shape[0], envs.single_action_space.n  # type: ignore[index,attr-defined]
    agent = nn.ModuleDict(
        {"actor": network(inputs, choices, 0.01), "critic": network(inputs, 1, 1)}
    )
    optimizer = torch.optim.Adam(agent.parameters(), RATE, eps=1e-5)

    states = torch.as_tensor(envs.reset(seed=seed)[0], dtype=torch.float32)
    ended = torch.zeros(envs.num_envs, dtype=torch.bool)
    returns, finished = torch.zeros(envs.num_envs), []
    for update in range(updates):
        steps = []
        for _ in range(STEPS):
            with torch.no_grad():
                policy = Categorical(logits=agent["actor"](states))
                actions, values = policy.sample(), agent["critic"](states).squeeze(-1)
            observed, rewards, terminated, truncated, _ = envs.step(actions.numpy())
            following = torch.as_tensor(observed, dtype=torch.float32)
            reward = torch.as_tensor(rewards, dtype=torch.float32)
            terminal, over = torch.as_tensor(terminated), torch.as_tensor(terminated | truncated)
            with torch.no_grad():
                next_values = agent["critic"](following).squeeze(-1) * ~terminal
            steps.append(
                (
                    states,
                    actions,
                    policy.log_prob(actions),
                    values,
                    reward,
                    next_values,
                    over,
                    ~ended,
                )
            )
            returns = torch.where(ended, 0.0, returns) + reward * ~ended
            finished += returns[over].tolist()
            states, ended = following, over

        observations, taken, old_logs, values, reward, next_values, over, used = (
            torch.stack(column) for column in zip(*steps, strict=True)
        )
        advantages = torch.zeros_like(reward)
        carried = torch.zeros(envs.num_envs)
        for step in reversed(range(STEPS)):
            surprise = reward[step] + GAMMA * next_values[step] - values[step]
            carried = surprise + GAMMA * LAMBDA * carried * ~over[step]
            advantages[step] = carried

        batch = [
            column[used]
            for column in (observations, taken, old_logs, advantages, advantages + values)
        ]
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(batch[0])).chunk(MINIBATCHES):
                learn(agent, optimizer, *(column[chosen] for column in batch))
        recent = sum(finished[-20:]) / max(1, len(finished[-20:]))
        print(f"update {update + 1}: mean return of the last episodes {recent:.1f}")
    return {name: value.numpy() for name, value in agent.state_dict().items()}


def learn(
    agent: Any, optimizer: Any, states: Any, actions: Any, old_logs: Any, gains: Any, targets: Any
) -> None:
    """Improve the agent by one minibatch."""
    policy = Categorical(logits=agent["actor"](states))
    ratio = (policy.log_prob(actions) - old_logs).exp()
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    clipped = torch.min(gains * ratio, gains * ratio.clamp(1 - CLIP, 1 + CLIP))
    error = (agent["critic"](states).squeeze(-1) - targets).square().mean()
    loss = VALUE * error - clipped.mean() - ENTROPY * policy.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), MAX_NORM)
    optimizer.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    parser.add_argument("--updates", type=int, default=50)
    options = parser.parse_args()
    envs = ProxyVectorEnv(options.address, num_envs=8)
    train(envs, options.updates)
    envs.close()
