from __future__ import annotations

import pytest

from gymwire.protocol.transport.own_host import is_this_host


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ipc:///a", True),
        ("tcp://127.0.0.1:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://127.3.2.1:1", True),
        ("tcp://192.0.2.1:1", False),
        ("tcp://[2001:db8::1]:1", False),
        ("tcp://nowhere.invalid:1", False),
        (f"tcp://{'x' * 80}:1", False),
    ],
)
def test_a_url_leads_to_this_host_if_its_address_is_ours(url: str, expected: bool) -> None:
    assert is_this_host(url) is expected
