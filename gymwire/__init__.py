"""Use Gymnasium environments that run elsewhere, and serve your own, over ZeroMQ.

    import gymnasium

    env = gymnasium.make("gymwire:gymwire/Proxy-v0", address="cartpole")

Importing this package registers the environment ids `gymwire/Proxy-v0` and
`gymwire/PriceMarket-v0`. It loads neither ZeroMQ, NumPy nor Gymnasium: the public names and modules
are loaded when they are first used. `__all__` lists those that need no extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gymwire import registration

if TYPE_CHECKING:
    from gymwire import aio as aio
    from gymwire import errors
    from gymwire import otel as otel
    from gymwire import sb3 as sb3
    from gymwire.env_agent.simulation.simulation import Simulation
    from gymwire.errors import (
        AddressError,
        AddressTaken,
        AddressUnknown,
        AttributeDenied,
        BatchSizeError,
        BrokerUnreachable,
        ConfigurationError,
        ConnectionFailed,
        DecodingError,
        Denied,
        EncodingError,
        EnvironmentClosed,
        EnvironmentFailed,
        EnvironmentLost,
        EnvironmentSideError,
        GymwireError,
        MoveError,
        NoFreeSlot,
        NoLearnerFits,
        OfferError,
        ProtocolError,
        Refused,
        ReplayMismatch,
        RequestTimeout,
        ResetNeeded,
        UnsupportedSpaceError,
        UsageError,
        VersionMismatch,
    )
    from gymwire.learner_agent.proxies.multi_agent import ProxyAECEnv as ProxyAECEnv
    from gymwire.learner_agent.proxies.multi_agent import ProxyParallelEnv as ProxyParallelEnv
    from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
    from gymwire.learner_agent.proxies.proxy_vector_env import ProxyVectorEnv

__version__ = "0.2.0"

# Without ProxyParallelEnv and ProxyAECEnv: a star import must not need an extra.
__all__ = [
    "AddressError",
    "AddressTaken",
    "AddressUnknown",
    "AttributeDenied",
    "BatchSizeError",
    "BrokerUnreachable",
    "ConfigurationError",
    "ConnectionFailed",
    "DecodingError",
    "Denied",
    "EncodingError",
    "EnvironmentClosed",
    "EnvironmentFailed",
    "EnvironmentLost",
    "EnvironmentSideError",
    "GymwireError",
    "MoveError",
    "NoFreeSlot",
    "NoLearnerFits",
    "OfferError",
    "ProtocolError",
    "ProxyEnv",
    "ProxyVectorEnv",
    "Refused",
    "ReplayMismatch",
    "RequestTimeout",
    "ResetNeeded",
    "Simulation",
    "UnsupportedSpaceError",
    "UsageError",
    "VersionMismatch",
    "__version__",
    "errors",
]

_MODULES = {
    "ProxyEnv": "gymwire.learner_agent.proxies.proxy_env",
    "ProxyVectorEnv": "gymwire.learner_agent.proxies.proxy_vector_env",
    "ProxyParallelEnv": "gymwire.learner_agent.proxies.multi_agent",
    "ProxyAECEnv": "gymwire.learner_agent.proxies.multi_agent",
    "Simulation": "gymwire.env_agent.simulation.simulation",
}
_SUBMODULES = ("aio", "errors", "otel", "sb3")
_PUBLIC = {*__all__, *_MODULES, *_SUBMODULES}

registration.register_with_gymnasium()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _SUBMODULES:
        return importlib.import_module(f"gymwire.{name}")
    return getattr(importlib.import_module(_MODULES.get(name, "gymwire.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
