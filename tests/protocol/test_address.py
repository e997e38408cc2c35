from __future__ import annotations

import re

import pytest

from gymwire.protocol.address import (
    Address,
    check_url,
    is_local,
    nearest,
    parse_address,
)
from gymwire.protocol.errors import AddressError


@pytest.mark.parametrize(
    "text", ["cartpole", "lab/price-market", "a", "0", "a.b_c-d/e/f9", "x" * 128]
)
def test_an_address_is_read_as_it_stands(text: str) -> None:
    assert parse_address(text) == Address(text)
    assert str(parse_address(text)) == text


def test_an_address_may_be_pinned_to_an_identity() -> None:
    pinned = parse_address("lab/cartpole@abcdefgh234567ab")
    assert pinned == Address("lab/cartpole", "abcdefgh234567ab")
    assert str(pinned) == "lab/cartpole@abcdefgh234567ab"


@pytest.mark.parametrize(
    "text",
    [
        "", "A", "a b", "/a", "a/", "a//b", "-a", "a-", "ä", "a\n", "a\0", "x" * 129,
        "a@", "a@short", "a@ABCDEFGH234567AB", "a@abcdefgh1234567b", "@abcdefgh234567ab",
        "a@abcdefgh234567ab@abcdefgh234567ab",
    ],
)  # fmt: skip
def test_anything_else_is_not_an_address(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize(
    "url",
    [
        "tcp://127.0.0.1:5555", "tcp://localhost:1", "tcp://[::1]:65535", "tcp://a-b.example:80",
        "ipc:///tmp/x", "ipc://@abstract",
    ],
)  # fmt: skip
def test_a_url_that_can_be_dialed_is_returned(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:5555", "tcp://", "tcp://host", "tcp://host:", "tcp://host:0",
        "tcp://host:65536", "tcp://host:-1", "tcp://host:٣", "tcp://*:5555", "tcp://host:*",
        "tcp://::1:5555", "http://host:80", "udp://host:1", "ipc://", "ipc://a\0b",
        "tcp://host;x:80", "inproc://x", "tcp://a b:1",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_dialed_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(AddressError, match=re.escape("tcp://127.0.0.1:5555")):
        check_url(url)


@pytest.mark.parametrize("url", ["tcp://*:5555", "tcp://127.0.0.1:*", "tcp://127.0.0.1:0"])
def test_a_url_to_listen_at_may_leave_host_or_port_open(url: str) -> None:
    assert check_url(url, bind=True) == url


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("ipc:///tmp/x", True), ("tcp://127.0.0.1:1", True), ("tcp://127.9.9.9:1", True),
        ("tcp://localhost:1", True), ("tcp://[::1]:1", True), ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False), ("tcp://[::]:1", False), ("tcp://10.0.0.1:1", False),
        ("tcp://127.0.0.1.example.org:1", False), ("tcp://localhost.example.org:1", False),
    ],
)  # fmt: skip
def test_only_loopback_and_ipc_are_local(url: str, local: bool) -> None:
    assert is_local(url) is local


def test_the_nearest_address_is_the_one_most_alike() -> None:
    assert nearest("cartpol", ["taxi", "cartpole", "carpool"]) == "cartpole"
    assert nearest("zzz", ["taxi", "cartpole"]) is None
