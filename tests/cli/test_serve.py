"""Options of `gymwire serve` that belong to one offer, together with a file of offers."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from gymwire.cli.serve import make_services
from gymwire.env_agent.config import KEYS
from gymwire.protocol.errors import ConfigurationError
from tests.cli.reading import Screen, call, read

VALUES = {
    "env_kwargs": '{"a": 1}',
    "max_sessions": "3",
    "expose": "state",
    "strict_infos": "1",
    "watchable": "1",
    "watch_rate": "10",
    "python": "python3",
    "spaces": "module:Spaces",
    "wrap": "module:Wrapper",
}
FLAGS = {"strict_infos", "watchable"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    (path := tmp_path / "offers.toml").write_text(
        "[[offer]]\naddress = 'lake'\nenv = 'FrozenLake-v1'\nmax_sessions = 5\n"
    )
    return str(path)


def test_the_options_of_an_offer_are_the_keys_of_a_file() -> None:
    assert {*VALUES} == {*KEYS} - {"address", "env"}


@pytest.mark.parametrize("key", VALUES)
def test_an_option_of_one_offer_is_refused_together_with_a_file(key: str, file: str) -> None:
    option = "--" + key.replace("_", "-")
    options = read("serve", "--config", file, option, *([] if key in FLAGS else [VALUES[key]]))
    with pytest.raises(ConfigurationError) as caught:
        make_services(options)
    said = str(caught.value)
    assert said.startswith(f"{option} has no effect on the offers of {file}.")
    assert f"`{key}`" in said


def test_variables_of_one_offer_cause_one_warning_together_with_a_file(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in VALUES.items():
        monkeypatch.setenv(f"GYMWIRE_{key.upper()}", value)
    with structlog.testing.capture_logs() as logs:
        (service,) = make_services(read("serve", "--config", file))
    assert service.max_sessions == 5
    (log,) = logs
    assert log["log_level"] == "warning"
    assert log["variables"] == sorted(f"GYMWIRE_{key.upper()}" for key in VALUES)


def test_only_one_of_several_workers_warns(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMWIRE_EXPOSE", "state")
    with structlog.testing.capture_logs() as logs:
        for worker in "01":
            make_services(read("serve", "--config", file, "--workers", "2", "--worker", worker))
    assert len(logs) == 1


def test_options_of_the_process_work_together_with_a_file(file: str) -> None:
    with structlog.testing.capture_logs() as logs:
        options = read("serve", "--config", file, "--threads", "2", "--grace", "3", "--pin")
        (service,) = make_services(options)
    assert service.address == "lake"
    assert not logs


def test_too_few_slots_for_the_workers_name_the_key_of_the_file(file: str) -> None:
    options = read("serve", "--config", file, "--workers", "6", "--worker", "0")
    with pytest.raises(ConfigurationError, match=r"lake: 6 workers need `max_sessions` \(--max"):
        make_services(options)


def test_one_process_is_not_pinned() -> None:
    with pytest.raises(ConfigurationError, match="--pin is for several workers"):
        call(Screen(), "serve", "cartpole", "CartPole-v1", "--pin")
