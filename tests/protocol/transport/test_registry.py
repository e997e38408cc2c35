"""Transports by URL scheme: each of them carries frames both ways behind the same interface."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gymwire.protocol.errors import AddressError, ConfigurationError, ConnectionFailed
from gymwire.protocol.transport import registry
from gymwire.protocol.transport.interface import Delivery, Listener, Received, Transport
from gymwire.protocol.transport.polling import wait_among
from gymwire.protocol.transport.private_folder import FOLDER_PREFIX
from gymwire.protocol.transport.registry import (
    SCHEMES,
    ListenOptions,
    dial,
    dial_first,
    listen,
    local_url,
    usable,
)

ATTEMPTS = 100  # ticks for what must happen, on a machine that may be busy
AVAILABLE = [name for name, scheme in SCHEMES.items() if scheme.can_listen]


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))  # pytest's own paths may be too long
    yield made
    shutil.rmtree(made)


def url_for(name: str, folder: Path) -> str:
    return "tcp://127.0.0.1:*" if name == "tcp" else f"{name}://{folder}/{name}"


def received(listener: Listener) -> Received:
    for _ in range(ATTEMPTS):
        found = listener.receive()
        if found is not None:
            return found
    raise AssertionError("nothing came")


def answer(transport: Transport) -> bytes:
    for _ in range(ATTEMPTS):
        frame = transport.receive()
        if frame is not None:
            return bytes(frame)
    raise AssertionError("nothing came")


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("size", [24, 5_000, 600_000])
def test_every_transport_carries_frames_both_ways(name: str, size: int, folder: Path) -> None:
    frame = bytes(size)
    (listener,) = listen([url_for(name, folder)], ListenOptions())
    with contextlib.closing(listener), contextlib.closing(dial(listener.urls[0])) as transport:
        assert listener.receive(wait=False) is None
        assert any(transport.send(frame, wait=True) for _ in range(ATTEMPTS))
        assert wait_among([listener], 5.0) == [0]
        rid, _, data = received(listener)
        assert bytes(data) == frame
        assert listener.mark in (-1, rid[0])
        assert listener.send(rid, frame) is Delivery.DONE
        assert transport.poll(5.0)
        assert answer(transport) == frame
        assert [event.up for event in transport.link_events()] == [True]
        assert transport.handshake_hint == ""
        assert transport.takes_pieces == listener.takes_pieces
    assert transport.url.partition("://")[0] == name


def test_urls_of_one_implementation_share_a_listener(folder: Path) -> None:
    made = listen([url_for(name, folder) for name in ("tcp", *AVAILABLE)][1:], ListenOptions())
    assert sum(len(listener.urls) for listener in made) == len(AVAILABLE)
    assert len(made) == len({SCHEMES[name].listen for name in AVAILABLE})
    for listener in made:
        listener.close()


def test_when_one_url_fails_no_listener_stays(folder: Path) -> None:
    urls = [f"unix://{folder}/one", "tcp://192.0.2.1:1"]
    with pytest.raises(ConfigurationError):
        listen(urls, ListenOptions(insecure=True))
    with pytest.raises(ConnectionFailed):
        dial(urls[0])


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", ""])
def test_an_unknown_scheme_names_the_known_ones(url: str) -> None:
    with pytest.raises(AddressError, match=r"unknown scheme\. Use one of unix://, ipc://, tcp://"):
        dial(url)
    with pytest.raises(AddressError):
        listen([url], ListenOptions())


def test_the_first_url_that_can_be_dialed_is_used() -> None:
    urls = ["unix:///of/another/container", "ipc:///of/another/container", "tcp://127.0.0.1:1"]
    with contextlib.closing(dial_first(urls)) as transport:
        assert transport.url == urls[2]
    with pytest.raises(AddressError, match="can be dialed from this host"):
        dial_first(urls[:2])


@pytest.mark.parametrize("scheme", ["unix", "ipc"])
def test_a_socket_outside_the_private_folders_is_not_dialed(scheme: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
        listener.bind("database")
        with pytest.raises(ConnectionFailed, match="not a socket in a private folder of gymwire"):
            dial(f"{scheme}://{tmp_path}/database")


@pytest.mark.parametrize(
    ("same_host", "keyed", "names"),
    [
        (True, False, ["unix", "ipc", "tcp"]),
        (True, True, ["ipc", "tcp"]),
        (False, False, ["tcp"]),
        (False, True, ["tcp"]),
    ],
)
def test_a_peer_dials_the_fastest_url_that_it_can_reach(
    same_host: bool, keyed: bool, names: list[str]
) -> None:
    urls = ["tcp://a:1", "ipc:///a", "unix:///a", "http://a"]
    found = usable(urls, same_host=same_host, keyed=keyed)
    assert [url.partition("://")[0] for url in found] == names


def test_local_url_is_none_if_no_local_transport_can_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert local_url("/a", keyed=True) == "ipc:///a"
    for name in ("unix", "ipc"):
        monkeypatch.setitem(registry.SCHEMES, name, replace(SCHEMES[name], can_listen=False))
    assert local_url("/a", keyed=False) is None
