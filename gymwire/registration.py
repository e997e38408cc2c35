"""Register gymwire's environment ids with Gymnasium.

`gymnasium.make("gymwire:gymwire/Proxy-v0")` imports gymwire and then looks the id up. If a program
has imported gymwire before Gymnasium, that import does nothing, so the ids must be registered as
soon as Gymnasium is loaded. Gymnasium 1 reads no entry points, and importing it from here would
make every command of gymwire start slowly. Hence the import hook.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_gymnasium() -> None:
    """Register the ids now if Gymnasium is loaded, else as soon as it is."""
    if "gymnasium" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _GymnasiumHook())


def register() -> None:
    """Register the ids, unless that has been done. Imports Gymnasium."""
    from gymnasium.envs import registration

    if "gymwire/Proxy-v0" in registration.registry:
        return
    registration.register(
        id="gymwire/Proxy-v0",
        entry_point="gymwire.learner_agent.proxies.proxy_env:make_proxy",
        vector_entry_point="gymwire.learner_agent.proxies.proxy_vector_env:ProxyVectorEnv",
        # The env agent's own gymnasium.make applies the checks and the time limit.
        order_enforce=False,
        disable_env_checker=True,
    )
    registration.register(
        id="gymwire/PriceMarket-v0",
        entry_point="gymwire.env_agent.price_market:PriceMarket",
        # One trading day. The market never terminates, so each episode is truncated.
        max_episode_steps=200,
    )


class _GymnasiumHook:
    """A finder that finds Gymnasium as usual, and registers the ids after it is loaded."""

    _searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Return Gymnasium's spec with a loader that also registers; None for other modules."""
        if name != "gymnasium" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
