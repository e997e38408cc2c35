"""OpenTelemetry spans for the steps of a remote environment. Needs the extra `gymwire[otel]`."""

from gymwire.learner_agent.adapters.otel import TracedEnv

__all__ = ["TracedEnv"]
