"""Doors for what does not speak ZeroMQ: one web server in front of a broker (`gymwire web`)."""

from gymwire.protocol.extras import install_line

try:
    import prometheus_client
    import starlette
    import uvicorn
    import websockets
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire web needs what is not installed ({error}). Install it with: "
        f"{install_line('web')}",
        name=error.name,
    ) from error

NEEDS = tuple(one.__name__ for one in (prometheus_client, starlette, uvicorn, websockets))
"""The packages of the extra `web`."""
