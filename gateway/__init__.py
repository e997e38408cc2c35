"""Doors for what does not speak ZeroMQ: one web server in front of a broker (`gymwire web`)."""

try:
    import starlette
    import uvicorn
    import websockets  # noqa: F401 - all three are needed
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gymwire web needs Starlette, uvicorn and websockets ({error}). Install them with: "
        f"pip install 'gymwire[web]'",
        name=error.name,
    ) from error

__all__ = ["starlette", "uvicorn"]
