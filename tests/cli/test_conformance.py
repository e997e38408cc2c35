"""`gymwire conformance`: its report, its JSON and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gymwire.cli import main
from gymwire.protocol.messages import Kind
from tests.conformance.agents import RightAgent, serving
from tests.processes import Programs


class WrongAgent(RightAgent):
    """Sends a flag that is not defined."""

    def changed(self, kind: Kind, frame: bytes) -> bytes | None:
        return frame[:3] + b"\x09" + frame[4:] if kind is Kind.STATUS else frame


@pytest.fixture(name="url")
def _url(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/broker"


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what the command has printed, without what the env agent has."""
    return [one for one in capsys.readouterr().out.splitlines() if one != "serving corridor"]


def test_an_agent_that_conforms_passes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(RightAgent, url):
        assert main(["conformance", "--listen", url]) == 0
    first, second, *rest, last = printed(capsys)
    assert first == f"listening at {url}: let the env agent connect to this URL"
    assert second == "corridor, as its broker"
    assert "passed   §6.2     offers the digest of its environment" in rest
    assert any(line.startswith("skipped  §8.2 ") and "no `stamps`" in line for line in rest)
    assert " passed, 0 failed, " in last


def test_a_failure_shows_the_clause_the_bytes_and_what_was_expected(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(WrongAgent, url):
        assert main(["conformance", "--listen", url, "corridor"]) == 1
    lines = printed(capsys)
    at = lines.index("failed   §3.7     answers RESET with STATUS and ACT with PERCEPT")
    expected, actual, sent, received = (line.split(maxsplit=1) for line in lines[at + 1 : at + 5])
    assert expected == ["expected", "flag bits from 3 on are 0"]
    assert actual == ["got", "flags 0x09 of STATUS"]
    assert sent[1].startswith("e7 01 01 00 ")
    assert received[1].startswith("e7 01 02 09 ")


def test_json_has_each_check(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(WrongAgent, url):
        assert main(["conformance", "--listen", url, "--json"]) == 1
    found = json.loads(printed(capsys)[-1])
    statuses = [one["status"] for one in found["checks"]]
    assert found["failed"] == statuses.count("failed") > 0
    assert found["passed"] + found["failed"] + found["skipped"] == len(statuses)
    failed = next(one for one in found["checks"] if one["status"] == "failed")
    assert failed["clause"] == "3.7"
    assert bytes.fromhex(failed["received"])[3] == 9


def test_an_agent_behind_a_broker_is_found_by_its_address(
    programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = programs.broker()
    with serving(RightAgent, url):
        assert main(["conformance", "corridor", "--broker", url]) == 0
    second = printed(capsys)[0]
    assert second == f"corridor, through the broker at {url}"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "No address given"),
        (["--listen", "{url}", "--wait", "0.2"], 1, "No env agent has offered an address"),
        (["x", "--broker", "{url}", "--wait", "0.2"], 1, "No broker answers within 0.2 s."),
    ],
)
def test_without_an_agent_it_fails(
    arguments: list[str], status: int, text: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", *(one.format(url=url) for one in arguments)]) == status
    assert text in capsys.readouterr().err
