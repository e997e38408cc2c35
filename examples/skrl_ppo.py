"""PPO of skrl over a vector of remote environments.

gymwire broker
gymwire serve cartpole CartPole-v1
python examples/skrl_ppo.py cartpole
"""

from __future__ import annotations

import argparse
from typing import Any

from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn

from gymwire import ProxyVectorEnv


def network(inputs: int, outputs: int) -> Any:
    """Make a network with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, outputs))


class Policy(CategoricalMixin, Model):
    """The probabilities of the actions."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)
        self.net = network(self.num_observations, self.num_actions)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        """Return the logits of the actions."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """The value of an observation."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
        """Return the value."""
        return self.net(inputs["observations"]), {}


def train(envs: Any, steps: int, seed: int = 1) -> dict[str, Any]:
    """Train on a local or a remote vector. Returns the weights of the policy."""
    set_seed(seed)  # also the seed of the first reset
    wrapped = wrap_env(envs)
    spaces = {
        "observation_space": wrapped.observation_space,
        "action_space": wrapped.action_space,
        "device": wrapped.device,
    }
    models: dict[str, Any] = {"policy": Policy(**spaces), "value": Value(**spaces)}
    memory = RandomMemory(memory_size=32, num_envs=wrapped.num_envs, device=wrapped.device)
    config = PPO_CFG(rollouts=32, learning_epochs=4, mini_batches=4, entropy_loss_scale=0.01)
    config.experiment.write_interval = config.experiment.checkpoint_interval = 0
    agent = PPO(models=models, memory=memory, cfg=config, **spaces)
    options = {"timesteps": steps, "headless": True, "close_environment_at_exit": False}
    SequentialTrainer(env=wrapped, agents=agent, cfg=options).train()
    return {name: value.numpy() for name, value in models["policy"].state_dict().items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", nargs="?", default="cartpole")
    envs = ProxyVectorEnv(parser.parse_args().address, num_envs=4)
    train(envs, 2000)
    envs.close()
