"""Environments of OpenEnv servers, made environments of Gymnasium.

`gymwire serve echo openenv:http://HOST:PORT` offers the environment of an OpenEnv server. Each
session is one WebSocket, and so one environment there. Its messages are those of OpenEnv's client
(github.com/meta-pytorch/OpenEnv, `core/env_client.py`). When its socket is lost, that client
reconnects to a new environment; here, the session is lost, and the learner gets an error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import gymnasium

from gymwire.env_agent.adapters.json_schemas import Budget, Field, dict_of, field_of
from gymwire.env_agent.elsewhere import EnvironmentGone, RunsElsewhere
from gymwire.protocol.codec import MAX_MESSAGE
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.extras import install_line

SCHEME = "openenv:"
CONNECT_S = 10.0  # for the schema, and for the WebSocket to be open
CLOSE_S = 1.0
MAX_SCHEMA = 1024 * 1024  # bytes
NOT_OBSERVED = ("done", "reward", "metadata")


class OpenEnv(RunsElsewhere, gymnasium.Env[Any, Any]):
    """One session of an OpenEnv server.

    The fields of its actions and observations are those of a Dict space. A field that has no space
    (see `json_schemas`) is left out of the actions if it may be left out, and found in the info
    instead of in the observation. The info also has what the server calls metadata. A step has
    terminated if OpenEnv says `done`, unless its metadata says `truncated`.

    Args:
        url: of the server: http://HOST:PORT, with a path if it has one.
        kwargs: further fields of each reset request, such as a task's name.

    Raises:
        ConfigurationError: no OpenEnv server answers there, or an action cannot be described.
    """

    def __init__(self, url: str, **kwargs: Any) -> None:
        self._url, self._kwargs = url, kwargs
        self._stack = contextlib.ExitStack()
        self._socket: Any = None
        self._closed = _module("exceptions").ConnectionClosed
        schema = _schema(url)
        try:
            self._action = _action_field(schema["action"], url)
            self._observed = _observed(schema["observation"])
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - the server chooses what the spaces are made of
            raise ConfigurationError(
                f"The JSON Schemas of the OpenEnv server at {url} are not those of an environment: "
                f"{str(error) or type(error).__name__}."
            ) from None
        self.action_space = self._action.space
        self.observation_space = self._observed.space
        self._lost = ""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode. The options are further fields of the request."""
        given = {} if seed is None else {"seed": seed}
        observation, _, _, info = self._result(
            self._request("reset", {**self._kwargs, **given, **(options or {})})
        )
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run one step. A reward that the server leaves out is 0."""
        data = self._request("step", self._action.encode(action))
        observation, reward, done, info = self._result(data)
        truncated = done and info.get("truncated") is True
        return observation, reward, done and not truncated, truncated, info

    @property
    def state(self) -> dict[str, Any]:
        """What the server says of its environment's state; offer it with `--expose state`."""
        return self._request("state", None)

    def close(self) -> None:
        """Close the WebSocket, and with it the environment of the server."""
        if self._socket is not None:
            with contextlib.suppress(OSError, self._closed):  # it may be lost already
                self._socket.send(json.dumps({"type": "close"}))
            self._socket = None
        self._stack.close()

    @property
    def lost(self) -> str:
        """Why the environment is gone; "" if it is not."""
        return self._lost

    def _gone(self) -> EnvironmentGone:
        return EnvironmentGone(self._lost)

    def _result(self, data: Mapping[str, Any]) -> tuple[Any, float, bool, dict[str, Any]]:
        fields = data.get("observation")
        if not isinstance(fields, dict):
            raise self._wrong(f"no observation: {data!r:.200}")
        metadata = data.get("metadata") or fields.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise self._wrong(f"metadata that is not an object: {metadata!r:.200}")
        try:
            observation = self._observed.decode(fields, "observation")
            reward = float(data.get("reward") or 0)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._wrong(f"a wrong observation or reward: {error}") from None
        names = {*observation, *NOT_OBSERVED}
        info = {name: value for name, value in fields.items() if name not in names}
        return observation, reward, bool(data.get("done")), info | metadata

    def _wrong(self, what: str) -> RuntimeError:
        return RuntimeError(f"The OpenEnv server at {self._url} sent {what}.")

    def _request(self, kind: str, data: Any) -> dict[str, Any]:
        if self._lost:
            raise self._gone()
        request = {"type": kind} if data is None else {"type": kind, "data": data}
        try:
            if self._socket is None:
                self._socket = self._stack.enter_context(_dial(self._url))
            self._socket.send(json.dumps(request))
            text = self._socket.recv()
        except self._closed as error:
            self._lost = f"the OpenEnv server at {self._url} has closed the connection ({error})"
            raise self._gone() from None
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"what is not JSON: {error}") from None
        found = reply.get("data", {}) if isinstance(reply, dict) else None
        if not isinstance(found, dict):
            raise self._wrong(f"a malformed reply: {reply!r:.200}")
        if reply.get("type") == "error":
            raise RuntimeError(
                f"The OpenEnv server at {self._url} reports {found.get('code', 'an error')}: "
                f"{found.get('message', 'without a reason')}"
            )
        return found


def check_url(url: str) -> str:
    """Return the URL of an OpenEnv server without a slash at its end. Raises ConfigurationError."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_server = parts.scheme in ("http", "https") and bool(parts.netloc) and parts.port != 0
    except ValueError:  # a bracket without its other one, or a port that is not a number
        is_server = False
    if not is_server:
        raise ConfigurationError(
            f"{SCHEME}{url}: {url!r} is not the URL of an OpenEnv server. Write "
            f"openenv:http://HOST:PORT."
        )
    return url.rstrip("/")


def _module(name: str) -> Any:
    """Return a module of websockets. Raises ConfigurationError if it is not installed."""
    try:
        return importlib.import_module(f"websockets.{name}")
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"Environments of OpenEnv servers need websockets. Install it with: "
            f"{install_line('openenv')}"
        ) from None


def _dial(url: str) -> Any:
    try:
        return _module("sync.client").connect(
            f"ws{url.removeprefix('http')}/ws",
            open_timeout=CONNECT_S,
            close_timeout=CLOSE_S,
            max_size=MAX_MESSAGE,
            compression=None,  # a small message must not become a large one
        )
    except (OSError, TimeoutError) as error:
        raise ConnectionError(f"The OpenEnv server at {url} does not answer: {error}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect unfollowed, as the WebSocket does: a server names no other host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _schema(url: str) -> dict[str, Any]:
    opener, body = urllib.request.build_opener(_NoRedirects), bytearray()
    until = time.monotonic() + CONNECT_S
    try:
        with opener.open(f"{url}/schema", timeout=CONNECT_S) as reply:
            while part := reply.read1(MAX_SCHEMA):
                body += part
                if len(body) > MAX_SCHEMA or time.monotonic() > until:
                    raise ValueError(f"more than {MAX_SCHEMA:,} bytes, or for {CONNECT_S:g} s")
        found = json.loads(body)
        return {name: found[name] for name in ("action", "observation")}
    except (OSError, HTTPException, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigurationError(
            f"No OpenEnv server answers at {url}: {url}/schema gave {error}. Start the server, or "
            f"correct the URL."
        ) from None


def _action_field(schema: Mapping[str, Any], url: str) -> Field:
    fields, needed, budget = {}, schema.get("required", ()), Budget()
    for name, one in schema.get("properties", {}).items():
        field = None if name == "metadata" else field_of(one, schema.get("$defs"), budget)
        if field is not None:
            fields[name] = field
        elif name in needed:
            raise ConfigurationError(
                f"The actions of the OpenEnv server at {url} need {name!r}, whose JSON Schema has "
                f"no Gymnasium space: {one}."
            )
    return dict_of(fields)


def _observed(schema: Mapping[str, Any]) -> Field:
    definitions, budget = schema.get("$defs"), Budget()
    fields = {
        name: field_of(one, definitions, budget)
        for name, one in schema.get("properties", {}).items()
        if name not in NOT_OBSERVED
    }
    return dict_of({name: field for name, field in fields.items() if field is not None})
