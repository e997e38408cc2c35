"""Doors for what does not speak ZeroMQ: one web server in front of a broker (`gymwire web`)."""

from importlib import import_module

from gymwire.protocol.extras import missing

try:
    for name in ("prometheus_client", "starlette", "uvicorn", "websockets"):
        import_module(name)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        missing(f"`gymwire web` needs {error.name}", "web"), name=error.name
    ) from error
