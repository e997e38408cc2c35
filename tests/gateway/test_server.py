"""The command `gymwire web`: where it listens, and how it ends."""

from __future__ import annotations

import signal
import urllib.request

import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from gymwire.cli import main
from tests.processes import Programs


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_gateway(programs: Programs, number: signal.Signals) -> None:
    gateway = programs.start("gymwire", "web", "--listen", "127.0.0.1:0", "--log-format", "json")
    url = gateway.wait_for("gateway listening")["url"]
    with urllib.request.urlopen(f"{url}/healthz") as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{url}/events") as events:
        gateway.process.send_signal(number)
        events.read()  # IncompleteRead if it is cut off
    assert gateway.wait() == 0
    gateway.wait_for("gateway stopped")
    assert not [line for line in gateway.output if '"error"' in line or "Traceback" in line]


def test_a_port_in_use_is_one_clear_error(
    programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    gateway = programs.start("gymwire", "web", "--listen", "127.0.0.1:0", "--log-format", "json")
    address = str(gateway.wait_for("gateway listening")["url"]).removeprefix("http://")
    assert main(["web", "--listen", address]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert f"--listen: Cannot listen at {address}: process {gateway.process.pid}" in error


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_beyond_this_host_the_gateway_needs_tokens(
    host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["web", "--listen", f"{host}:0"]) == 2
    assert "without tokens" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "8080", ":8080", "h:", "h:x", "h:65536", "::1:80", "[::1]"])
def test_a_malformed_address_is_refused(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["web", f"--listen={text}"]) == 2
    assert "expected HOST:PORT" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "it is not an address of this host"),
        ("no.such.host.invalid", "the host 'no.such.host.invalid' is unknown"),
    ],
)
def test_an_address_of_another_host_is_refused(
    host: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["web", "--listen", f"{host}:0"]) == 2
    assert f"--listen: Cannot listen at {host}:0: {why}" in capfd.readouterr().err
