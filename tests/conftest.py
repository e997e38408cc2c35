"""Fixtures for tests over real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gymwire.learner_agent.client import connection, direct
from gymwire.protocol.ending_signals import HANGUP
from tests import interpreters, sampling
from tests.processes import PATIENCE_S, Programs, programs

# The tests start many interpreters, which share the compiled modules; so do the workers of `-n`.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Each of many short processes would start as many threads as there are processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Windows open nowhere: here and in the programs that tests start.
os.environ["SDL_VIDEODRIVER"] = "dummy"

# How fast the machine is decides nothing. Where CI is set, Hypothesis repeats the same examples.
for profile, examples in (("thorough", 100), ("sample", 30)):
    settings.register_profile(
        profile,
        settings(),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        max_examples=examples,
    )

# The files that take longest, longest first. They run first, because a file runs in one process.
SLOW_FILES = (
    "chaos/test_chaos.py",
    "frameworks/test_sb3.py",
    "system/test_two_hosts.py",
    "fleet/test_local.py",
    "system/test_ending.py",
    "system/test_signed_resume.py",
    "learner_agent/proxies/test_outside_exceptions.py",
    "system/test_direct.py",
    "protocol/test_value_limits.py",
    "system/test_large_packets.py",
    "soak/test_soak.py",
    "system/test_pools.py",
    "docs/test_commands.py",
    "frameworks/test_train.py",
    "system/test_bad_input.py",
    "learner_agent/client/test_truncation.py",
    "system/test_session_threads.py",
    "learner_agent/client/test_outside_exceptions.py",
    "broker/test_core.py",
    "system/test_honcho.py",
    "system/test_few_descriptors.py",
    "learner_agent/client/test_interrupted.py",
    "system/test_another_interpreter.py",
    "test_exactly_once.py",
    "system/test_cli.py",
    "system/test_remote_equals_local.py",
    "protocol/test_values.py",
    "system/test_attacks.py",
    "system/test_other_libraries.py",
    "system/test_from_scratch.py",
    "protocol/test_step_codec.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples in a run without the thorough tests."""
    sampling.is_plain = config.getoption("markexpr") == "not thorough"
    settings.load_profile("sample" if sampling.is_plain else "thorough")


def pytest_xdist_setupnodes() -> None:
    """Look for other interpreters once, and not in each worker."""
    os.environ[interpreters.VARIABLE] = ":".join(interpreters.others().values())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the slow files first."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def _handlers_of_signals() -> Iterator[None]:
    """Restore the handlers of the signals that end commands: programs inherit an ignored one."""
    numbers = (signal.SIGINT, signal.SIGTERM, HANGUP)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """The URL of a broker that all tests share; no test may stop it."""
    with programs() as started:
        yield started.broker()[1]


@pytest.fixture(name="programs")
def _programs() -> Iterator[Programs]:
    """Starts programs that are gone after the test."""
    with programs() as started:
        yield started


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for brokers and direct connections that will come, as long as a busy machine takes."""
    for module, name in ((connection, "CONNECT_S"), (direct, "ALWAYS_S"), (direct, "AUTO_S")):
        monkeypatch.setattr(module, name, PATIENCE_S)
