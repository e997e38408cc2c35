from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gymwire.broker.auth import EVERYTHING, Policy, Rights, revoked
from gymwire.broker.policy_file import SETTLE_S, PolicyFile
from gymwire.protocol.errors import ConfigurationError

KEY, OTHER = b"a" * 40, b"b" * 40
ALICE = f'[peer.alice]\nkey = "{"a" * 40}"\nuse = ["lab/*", "cartpole"]\n'
BOB = f'[peer.bob]\nkey = "{"b" * 40}"\nuse = ["*"]\n'
WHOLE = ALICE + BOB


class Watch:
    """A policy file, and the clock of its reader."""

    def __init__(self, path: Path, text: str) -> None:
        path.write_text(text)
        self.path, self.now = path, 100.0
        self.file = PolicyFile(path)

    def tick(self, after_s: float = 0.1) -> Policy | None:
        self.now += after_s
        return self.file.changed(self.now)

    def settled(self) -> Policy | None:
        """Return the policy that a change brings, once the file has settled."""
        assert self.tick() is None
        return self.tick(SETTLE_S + 0.1)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    structlog.reset_defaults()
    return Watch(tmp_path / "policy.toml", WHOLE)


def test_a_change_counts_once_the_file_has_settled(watch: Watch) -> None:
    watch.path.write_text(ALICE)
    assert watch.tick() is None
    assert watch.tick(SETTLE_S / 2) is None
    policy = watch.tick(SETTLE_S)
    assert policy is not None
    assert list(policy.peers) == [KEY]
    assert watch.settled() is None  # once


def test_a_file_that_is_rewritten_in_place_never_counts_while_it_is_incomplete(
    watch: Watch,
) -> None:
    new = WHOLE + "# a comment"
    for size in range(0, len(new) + 1, 7):  # many of these parts are valid policies
        watch.path.write_text(new[:size])
        for _ in range(3):
            assert watch.tick(SETTLE_S / 4) is None
    watch.path.write_text(new)
    policy = watch.settled()
    assert policy is not None
    assert set(policy.peers) == {KEY, OTHER}


def test_a_file_that_changes_back_before_it_settles_changes_nothing(watch: Watch) -> None:
    watch.path.write_text("")
    assert watch.tick() is None
    watch.path.write_text(WHOLE)
    policy = watch.settled()
    assert policy is None or policy == watch.file.policy
    assert set(watch.file.policy.peers) == {KEY, OTHER}


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "# nothing", "[peer]", "[peer.alice]", "["),
        *("a = " + "[" * 20_000, f"[anyone]\nsteps_per_s = {'9' * 5000}"),
    ],
    ids=lambda text: text[:30],
)
def test_an_empty_or_invalid_policy_is_ignored_with_the_reason(watch: Watch, text: str) -> None:
    watch.path.write_text(text)
    with capture_logs() as logs:
        assert watch.settled() is None
        assert watch.settled() is None
    assert [one["event"] for one in logs] == ["invalid policy ignored"]
    assert set(watch.file.policy.peers) == {KEY, OTHER}


def test_a_file_that_is_removed_and_comes_back_is_read_again(watch: Watch) -> None:
    watch.path.unlink()
    with capture_logs() as logs:
        assert watch.settled() is None
    assert "does not exist" in logs[0]["why"]
    watch.path.write_text(BOB)
    policy = watch.settled()
    assert policy is not None
    assert list(policy.peers) == [OTHER]


def test_a_pipe_in_place_of_the_policy_is_ignored_and_blocks_nothing(watch: Watch) -> None:
    watch.path.unlink()
    os.mkfifo(watch.path)
    with capture_logs() as logs:
        assert watch.settled() is None
    assert [log["event"] for log in logs] == ["invalid policy ignored"]
    assert "no longer a regular file" in logs[0]["why"]
    assert set(watch.file.policy.peers) == {KEY, OTHER}


def test_an_empty_policy_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="The policy is empty: it lists no key"):
        Watch(tmp_path / "policy.toml", "# later\n")


def test_the_log_says_what_a_new_policy_revokes(watch: Watch) -> None:
    watch.path.write_text(ALICE.replace('"lab/*", ', "") + "sessions = 4\n")
    with capture_logs() as logs:
        watch.settled()
    assert [one["event"] for one in logs] == ["policy reloaded", "policy revokes rights"]
    assert logs[1]["revoked"] == ["alice: use lab/*", "alice: sessions above 4", "bob: connect"]


def test_the_log_says_nothing_of_a_policy_that_revokes_nothing(watch: Watch) -> None:
    watch.path.write_text(WHOLE.replace("lab/*", "*") + "[anyone]\n")
    with capture_logs() as logs:
        watch.settled()
    assert [one["event"] for one in logs] == ["policy reloaded"]


def test_what_unlisted_keys_lose_is_said_once() -> None:
    listed = Policy({KEY: Rights("a", use=("x",), vouched=True)}, anyone=EVERYTHING)
    assert revoked(listed, Policy({OTHER: EVERYTHING}, anyone=None)) == [
        "a: connect",
        "unlisted keys: connect",
    ]
    assert revoked(listed, Policy({}, anyone=Rights("anyone", use=("*",)))) == [
        "a: share addresses",
        "unlisted keys: offer *",
        "unlisted keys: observe *",
        "unlisted keys: stop *",
        "unlisted keys: watch *",
    ]


def test_a_policy_without_an_end_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot read /dev/zero: .* more than 16,777,216"):
        PolicyFile(Path("/dev/zero"))
