from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import structlog

from gymwire.env_agent import config
from gymwire.env_agent.config import load, service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.protocol.errors import AddressError, ConfigurationError

GOOD = """
[[offer]]
address = "cartpole"
env = "CartPole-v1"

[[offer]]
address = "lab/ice"
env = "FrozenLake-v1"
env_kwargs = { is_slippery = false }
max_sessions = 2
expose = ["P"]
strict_infos = true
watchable = true
watch_rate = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "offers.toml"


def test_each_offer_of_a_file_becomes_a_service(file: Path) -> None:
    file.write_text(GOOD)
    first, second = load(file)
    assert (first.address, first.factory.name) == ("cartpole", "CartPole-v1")
    assert first.max_sessions == 64
    assert isinstance(second.factory, Factory)
    assert (second.address, second.factory.kwargs) == ("lab/ice", {"is_slippery": False})
    assert (second.max_sessions, second.exposed, second.strict_infos) == (2, ("P",), True)
    assert (first.watchable, second.watchable) == (False, True)
    assert (first.watch_rate, second.watch_rate) == (10, 5)


def test_what_cannot_be_a_name_is_not_exposed(file: Path) -> None:
    file.write_text("[[offer]]\naddress = 'a'\nenv = 'CartPole-v1'\nexpose = ['P', 'a b']\n")
    with pytest.raises(ConfigurationError, match=r"expose: 'a b' cannot be the name"):
        load(file)


def test_an_offer_may_have_an_interpreter_of_its_own(file: Path) -> None:
    file.write_text(
        "[[offer]]\naddress = 'a'\nenv = './sim.py:Sim'\npython = '~/sim/bin/python'\n"
        "spaces = 'tests.env_agent.interpreter.test_child_env:Given'\nenv_kwargs = { x = 1 }\n"
    )
    (offer,) = load(file)
    assert isinstance(offer.factory, ChildFactory)
    assert offer.factory.name == "sim:Sim"
    assert offer.factory.python == str(Path.home() / "sim/bin/python")
    assert offer.factory.kwargs == {"x": 1}
    assert offer.max_sessions == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one \\[\\[offer\\]\\] table"),
        ("offer = 3", "one \\[\\[offer\\]\\] table"),
        ("offer = [3]", "offer 1: \\[\\[offer\\]\\] must be a table"),
        ("[[offer]]\nenv = 'CartPole-v1'", "offer 1: address is missing"),
        ("[[offer]]\naddress = 'a'", r"offer 1 \('a'\): env is missing"),
        ("[[offer]]\naddress = 'a'\nenv = 3", "env must be a text, not 3"),
        ("[[offer]]\naddress = 'a'\nenv = 'CartPole-v1'\nmax_sessions = true", "be a whole number"),
        ("[[offer]]\naddress = 'a'\nenv = 'CartPole-v1'\nexpose = 'x'", "expose must be a list"),
        ("[[offer]]\naddress = 'a'\nenv = 'CartPole-v1'\nslots = 2", "unknown key 'slots'"),
        ("other = 1\n" + GOOD, "nothing else"),
        (
            "[[offer]]\naddress = 'a b'\nenv = 'CartPole-v1'",
            r"offer 1 \('a b'\): 'a b' is not an address",
        ),
        (
            "[[offer]]\naddress = 'a'\nenv = 'CartPole-v1'\nwrap = [3]",
            "wrap must be a list of texts",
        ),
        ("[[offer", "cannot be read"),
        (GOOD + f"env_kwargs = {{ a = {'9' * 5000} }}", "cannot be read"),
        (GOOD + f"env_kwargs = {{ a = {'[' * 5000}{']' * 5000} }}", "cannot be read"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_where(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with structlog.testing.capture_logs() as logs, pytest.raises(ConfigurationError, match=why):
        load(file)
    assert logs == []  # once is enough


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("env = 'CartPole-v1'", "address is missing"),
        (
            "address = 'a'\nenv = 'CartPole-v1'\nmax_session = 2",
            "unknown key 'max_session'. Did you mean 'max_sessions'? Use address, env, ",
        ),
        ("address = 'A b'\nenv = 'CartPole-v1'", "'A b' is not an address"),
        ("address = 3\nenv = 'CartPole-v1'", "address must be a text, not 3"),
        ("address = 'a'\nenv = 'CartPole-v1'\nmax_sessions = -1", "1 or more"),
        ("address = 'a'\nenv = 'CartPole-v1'\nexpose = [3]", "expose must be a list of texts"),
        ("address = 'cartpole'\nenv = 'CartPole-v1'", "'cartpole' is offered twice"),
        ("address = 'a'\nenv = 'no_such_module:Env'", "no_such_module"),
        (
            "address = 'x/y'\nenv = 'CartPole-v1'\nspaces = 'a:b'",
            "('x/y'): Only an environment in another interpreter can be given its spaces. Also",
        ),
        (
            "address = 'x/y'\nenv = 'CartPole-v1'\npython = 'p'\nwrap = ['a:b']",
            "('x/y'): Wrappers work with environments of this interpreter only. Leave `wrap` (--wr",
        ),
    ],
)
def test_a_bad_offer_is_logged_and_leaves_the_good_ones(file: Path, bad: str, why: str) -> None:
    file.write_text(f"{GOOD}\n[[offer]]\n{bad}\n")
    with structlog.testing.capture_logs() as logs:
        assert [one.address for one in load(file)] == ["cartpole", "lab/ice"]
    (log,) = logs
    assert log["event"] == "offer left out"
    named = f" ({log['address']!r})" if isinstance(log["address"], str) else ""
    assert log["why"].startswith(f"{file}, offer 3{named}: ")
    assert why in log["why"]


CODE = """
import os, sys
def raises():
    raise RuntimeError("no simulator")
def exits():
    sys.exit(5)
class Spaces:
    @property
    def observation_space(self):
        raise RuntimeError("no simulator")
spaces = Spaces()
class Bad:
    def __init__(self, **kwargs):
        raise RuntimeError("never called")
"""
OTHER = "env = './code.py:Bad'\npython = 'python'\n"


@pytest.mark.parametrize(
    ("bad", "why", "has_trace"),
    [
        ("env = './exits.py:X'", "importing 'exits' raised SystemExit: 4 (", True),
        (
            "env = 'CartPole-v1'\nwrap = ['./exits.py:X']",
            "--wrap ./exits.py:X: importing 'exits' raised SystemExit: 4 (",
            True,
        ),
        ("env = 'CartPole-v1'\nwrap = ['nope:X']", "--wrap nope:X: there is no module", False),
        (
            f"{OTHER}spaces = './exits.py:X'",
            "--spaces ./exits.py:X: importing 'exits' raised SystemExit: 4 (",
            True,
        ),
        (
            f"{OTHER}spaces = './code.py:nope'",
            "--spaces ./code.py:nope: ./code.py has no 'nope'. Check the spelling.",
            False,
        ),
        (
            f"{OTHER}spaces = './code.py:raises'",
            "--spaces ./code.py:raises raised RuntimeError: no simulator (",
            True,
        ),
        (
            f"{OTHER}spaces = './code.py:exits'",
            "--spaces ./code.py:exits raised SystemExit: 5 (",
            True,
        ),
        (
            f"{OTHER}spaces = './code.py:spaces'",
            "--spaces ./code.py:spaces raised RuntimeError: no simulator (",
            True,
        ),
        ("env = './code.py:Bad'\npython = '~nobody-here/python'", "Write the whole path", False),
        ("env = 'openenv:http://[::1'", "not the URL of an OpenEnv server", False),
    ],
)
def test_code_of_a_bad_offer_that_raises_leaves_the_good_ones(
    file: Path, bad: str, why: str, has_trace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("exits.py").write_text("import sys\nsys.exit(4)")
    Path("code.py").write_text(CODE)
    file.write_text(f"{GOOD}\n[[offer]]\naddress = 'a'\n{bad}\n")
    monkeypatch.delitem(sys.modules, "code", raising=False)
    with structlog.testing.capture_logs() as logs:
        assert [one.address for one in load(file)] == ["cartpole", "lab/ice"]
    (log,) = logs
    assert log["why"].startswith(f"{file}, offer 3 ('a'): ")
    assert why in log["why"]
    assert "\n" not in log["why"]
    assert ("Traceback" in log.get("traceback", "")) is has_trace


def test_an_unexpected_exception_of_an_offer_leaves_the_good_ones(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(text: str) -> None:
        raise OSError("disk failed")

    monkeypatch.setattr(config, "resolve_wrapper", replaced)
    file.write_text(f"{GOOD}\n[[offer]]\naddress='a'\nenv='CartPole-v1'\nwrap=['x:y']\n")
    with structlog.testing.capture_logs() as logs:
        assert [one.address for one in load(file)] == ["cartpole", "lab/ice"]
    assert logs[0]["why"].startswith(
        f"{file}, offer 3 ('a'): its code raised OSError: disk failed ("
    )


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no file"):
        load(file)


def test_an_offer_has_an_address_without_identity_and_a_slot() -> None:
    with pytest.raises(AddressError):
        service(address="Cart Pole", env="CartPole-v1")
    with pytest.raises(ConfigurationError, match="without @identity"):
        service(address="a@abcdefgh234567ab", env="CartPole-v1")
    with pytest.raises(ConfigurationError, match="1 or more"):
        service(address="a", env="CartPole-v1", max_sessions=0)


def test_a_file_without_an_end_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"/dev/zero cannot be read: .* 16,777,216 bytes"):
        load(Path("/dev/zero"))
