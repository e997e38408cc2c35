"""Vector classes of Gymnasium that only have NextStep, with the autoreset mode SameStep.

Without them, a vector in this mode would be a SyncVectorEnv, which steps one environment after the
other in Python.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv

Step = tuple[Any, Any, Any, Any, dict[str, Any]]


class SameStepCartPole(CartPoleVectorEnv):
    """A CartPoleVectorEnv that resets an environment in the step that ends its episode."""

    metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all environments. Raises ValueError for a `reset_mask`: that would be ignored."""
        if options is not None and "reset_mask" in options:
            raise ValueError(
                "CartPole's own vector resets all environments together, so they cannot have "
                'options of their own. Use env_kwargs={"vectorization_mode": "sync"}.'
            )
        observations, infos = super().reset(seed=seed, options=options)
        return np.ascontiguousarray(observations), infos  # as in `step`

    def step(self, action: Any) -> Step:
        """Run one step; infos as those of a SyncVectorEnv in this mode."""
        observations, rewards, terminated, truncated, infos = super().step(action)
        observations = np.ascontiguousarray(observations)  # as a SyncVectorEnv's, for a short frame
        done = self.prev_done
        ended = done.nonzero()[0].tolist()
        if not ended:
            return observations, rewards, terminated, truncated, infos
        final = np.empty(self.num_envs, object)  # None where no episode has ended
        for i in ended:
            final[i] = observations[i].copy()
        # What the next step would do.
        state: Any = self.state
        state[:, ended] = new = self.np_random.uniform(self.low, self.high, (4, len(ended)))
        self.steps[ended] = 0
        self.prev_done = np.zeros(self.num_envs, np.bool_)
        observations[ended] = new.T
        infos = {"final_obs": final, "_final_obs": done, "final_info": {}, "_final_info": done}
        return observations, rewards, terminated, truncated, infos


_CLASSES = {
    f"{CartPoleVectorEnv.__module__}:{CartPoleVectorEnv.__name__}": (
        f"{__name__}:{SameStepCartPole.__name__}"
    )
}


def make_vec(name: str, mode: AutoresetMode, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Return what `gymnasium.make_vec` makes of the registered vector class.

    If that is one that has SameStep here, and this is the mode, use it.
    """
    spec = gymnasium.spec(name)
    own = spec.vector_entry_point
    if mode is AutoresetMode.SAME_STEP and str(own) in _CLASSES:
        spec = deepcopy(spec)
        spec.vector_entry_point = _CLASSES[str(own)]
    made = gymnasium.make_vec(spec, vectorization_mode="vector_entry_point", **kwargs)
    assert made.unwrapped.spec is not None
    made.unwrapped.spec.vector_entry_point = own
    return made
