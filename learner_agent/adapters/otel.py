"""OpenTelemetry spans that say where the time of remote steps goes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gymnasium

from gymwire.learner_agent.client.timings import Timings
from gymwire.learner_agent.proxies.proxy_env import ProxyEnv
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import install_line

try:
    from opentelemetry import trace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire.otel needs OpenTelemetry's API ({error}). Install it with: "
        f"{install_line('otel')}",
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

MICROSECONDS = "_us"  # how the durations in `Timings` end


class TracedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A ProxyEnv whose resets and steps are spans, `gymwire.reset` and `gymwire.step`.

    The span of a step has the attributes `gymwire.total_s` and its parts `gymwire.network_s`,
    `broker_s`, `queue_s`, `environment_s` and `codec_s`, in seconds, as in `Timings`, and
    `gymwire.is_direct`. It has none of them if the env agent takes no time stamps. An exception is
    recorded.

    Args:
        env: the ProxyEnv. Further wrappers go around this one.
        every: make a span for every `every`-th step, since time stamps make a step slower.
        tracer_provider: makes the tracer; by default, the global one.

    Raises:
        ConfigurationError: `env` is not a ProxyEnv, or `every` is less than 1.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        every: int = 1,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        if not isinstance(env, ProxyEnv):
            raise ConfigurationError(
                f"TracedEnv needs a ProxyEnv, not {type(env).__name__}. Put other wrappers around "
                f"the TracedEnv."
            )
        if every < 1:
            raise ConfigurationError(f"`every` must be 1 or more, not {every}.")
        super().__init__(env)
        self._proxy = env
        self._address = "" if env.spec is None else str(env.spec.kwargs.get("address", ""))
        self._every = every
        self._steps = 0
        self._tracer = trace.get_tracer("gymwire", tracer_provider=tracer_provider)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, as a span."""
        with self._span("gymwire.reset"):
            return self._proxy.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Step, and make a span if its turn has come."""
        self._steps += 1
        if self._steps % self._every:
            return self._proxy.step(action)
        with self._span("gymwire.step") as span:
            step, timings = self._proxy.timed_step(action)
            if timings is not None:
                span.set_attributes(_attributes(timings))
            return step

    def _span(self, name: str) -> Any:
        known = {"gymwire.address": self._address}
        return self._tracer.start_as_current_span(name, attributes=known)


def _attributes(timings: Timings) -> dict[str, Any]:
    found: dict[str, Any] = {"gymwire.is_direct": timings.is_direct}
    for name, value in asdict(timings).items():
        if name.endswith(MICROSECONDS):
            found[f"gymwire.{name.removesuffix(MICROSECONDS)}_s"] = value / 1e6
    return found
