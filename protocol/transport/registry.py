"""The registry of transports: `dial` and `listen` choose one by the scheme of a URL.

To add a transport, write its `Transport` and `Listener` in this folder and add a row to `SCHEMES`.
Learners then dial its URLs, and env agents offer them for direct sessions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gymwire.protocol.errors import AddressError, ConnectionFailed
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.zap import Allow
from gymwire.protocol.transport.dealer import Dealer
from gymwire.protocol.transport.interface import TICK_MS, Listener, Transport
from gymwire.protocol.transport.private_folder import check_private_socket
from gymwire.protocol.transport.router import Router
from gymwire.protocol.transport.unix import CAN_LISTEN, UnixDealer, UnixRouter


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """How to listen, for every transport; each ignores what it cannot do.

    Attributes:
        key: this side's key pair; peers then prove theirs.
        allow: whether the owner of a public key may connect. It runs in another thread.
        insecure: allow listening beyond this host without keys.
        ended: called with the routing id of a connection that has ended, if the transport notices.
        tick_ms: how long `Listener.receive` waits.
        elsewhere: what the user can do if a port is in use, for the error.
    """

    key: KeyPair | None = None
    allow: Allow = lambda _key: True
    insecure: bool = False
    ended: Callable[[bytes], None] = lambda _rid: None
    tick_ms: int = TICK_MS
    elsewhere: str = "choose another port"


@dataclass(frozen=True, slots=True)
class Scheme:
    """The transport behind one scheme of URLs.

    Attributes:
        dial: `(url, key, server_key) -> Transport`. Raises ConnectionFailed if this host cannot
            reach the other side.
        listen: `(urls, options) -> Listener`: one listener for all these URLs.
        same_host: whether only processes of the same host can dial it.
        proves_keys: whether both sides prove their keys.
        can_listen: whether this system can listen.
    """

    dial: Callable[[str, KeyPair | None, bytes | None], Transport]
    listen: Callable[[Sequence[str], ListenOptions], Listener]
    same_host: bool
    proves_keys: bool
    can_listen: bool = True


def _dial_zmq(url: str, key: KeyPair | None, server_key: bytes | None) -> Transport:
    return Dealer(url, key=key, server_key=server_key)


def _dial_ipc(url: str, key: KeyPair | None, server_key: bytes | None) -> Transport:
    check_private_socket(url)
    return _dial_zmq(url, key, server_key)


def _dial_unix(url: str, _key: KeyPair | None, _server_key: bytes | None) -> Transport:
    return UnixDealer(url)


def _listen_zmq(urls: Sequence[str], options: ListenOptions) -> Listener:
    return Router(
        urls,
        key=options.key,
        allow=options.allow,
        insecure=options.insecure,
        tick_ms=options.tick_ms,
        elsewhere=options.elsewhere,
    )


def _listen_unix(urls: Sequence[str], options: ListenOptions) -> Listener:
    (url,) = urls
    return UnixRouter(url, ended=options.ended, tick_ms=options.tick_ms)


_NOT_WINDOWS = sys.platform != "win32"
SCHEMES: dict[str, Scheme] = {
    "unix": Scheme(_dial_unix, _listen_unix, True, proves_keys=False, can_listen=CAN_LISTEN),
    "ipc": Scheme(_dial_ipc, _listen_zmq, True, proves_keys=True, can_listen=_NOT_WINDOWS),
    "tcp": Scheme(_dial_zmq, _listen_zmq, False, proves_keys=True),
}
"""Scheme → transport, the fastest first."""


def _name_of(url: str) -> str:
    return url.partition("://")[0]


def _scheme_of(url: str) -> Scheme:
    scheme = SCHEMES.get(_name_of(url))
    if scheme is None:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise AddressError(f"{url!r:.200} has an unknown scheme. Use one of {known}.")
    return scheme


def dial(url: str, *, key: KeyPair | None = None, server_key: bytes | None = None) -> Transport:
    """Return a connection to this URL. `key`, `server_key`: as `Dealer` takes them, or neither.

    Raises AddressError (unknown scheme, malformed URL), ConfigurationError, ConnectionFailed.
    """
    return _scheme_of(url).dial(url, key, server_key)


def dial_first(
    urls: Iterable[str], *, key: KeyPair | None = None, server_key: bytes | None = None
) -> Transport:
    """Dial the first of these URLs that can be dialed. Raises AddressError if none can."""
    for url in urls:
        try:
            return dial(url, key=key, server_key=server_key)
        except ConnectionFailed:
            continue
    raise AddressError("None of the env agent's direct URLs can be dialed from this host.")


def usable(urls: Sequence[str], *, same_host: bool, keyed: bool) -> list[str]:
    """Return the URLs that a peer can dial, the fastest first.

    `same_host`: whether the peer runs on the host of the URLs. `keyed`: whether both sides must
    prove their keys.
    """
    names = [
        name
        for name, scheme in SCHEMES.items()
        if (same_host or not scheme.same_host) and (scheme.proves_keys or not keyed)
    ]
    return [url for name in names for url in urls if _name_of(url) == name]


def local_url(path: str, *, keyed: bool) -> str | None:
    """Return the fastest URL to listen at this path for this host; None if there is none."""
    for name, scheme in SCHEMES.items():
        if scheme.same_host and scheme.can_listen and (scheme.proves_keys or not keyed):
            return f"{name}://{path}"
    return None


def listen(urls: Sequence[str], options: ListenOptions) -> list[Listener]:
    """Listen at these URLs. URLs with the same implementation share a listener, in their order.

    Raises AddressError, ConfigurationError.
    """
    grouped: dict[Callable[..., Listener], list[str]] = {}
    for url in urls:
        grouped.setdefault(_scheme_of(url).listen, []).append(url)
    listeners: list[Listener] = []
    try:
        for start, group in grouped.items():
            listeners.append(start(group, options))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners
