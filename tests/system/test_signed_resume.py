"""Another process resumes a pinned session, and the pinned agent still proves its identity."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from gymwire import ProxyEnv
from gymwire.protocol import values
from gymwire.protocol.errors import ConfigurationError, Denied, EnvironmentLost, MoveError
from gymwire.protocol.security import keys
from tests.prefork import Forked
from tests.processes import PATIENCE_S, Program, programs

pytestmark = pytest.mark.usefixtures("patient")

PATHS = ["never", "always"]


class Site(NamedTuple):
    """A broker with keys and two env agents, which both offer `lab/patient` and `lab/other`."""

    folder: Path
    url: str
    agent: Program

    def identity(self, name: str) -> str:
        return keys.identity(keys.load(self.folder / f"{name}.key").public)

    def options(self, name: str) -> dict[str, Any]:
        """Return the options with which the owner of this key connects."""
        folder = self.folder
        return {
            "key": str(folder / f"{name}.key"),
            "broker_key": str(folder / "broker.pub"),
            "timeout_s": PATIENCE_S,
        }

    def env(self, address: str, direct: str = "never", name: str = "alice") -> ProxyEnv:
        return ProxyEnv(address, self.url, direct=direct, **self.options(name))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("broker", "lab", "alice", "bob"):
        keys.generate(name, folder)
    with programs() as started:
        _, url = started.broker("tcp://127.0.0.1:*", "--key", str(folder / "broker.key"))
        config = folder / "offers.toml"
        config.write_text(
            "\n".join(
                f'[[offer]]\naddress = "lab/{name}"\nenv = "tests.system.pool_envs:Entered"'
                for name in ("patient", "other")
            )
        )
        agent = started.env_agent(
            url,
            *("--config", str(config), "--direct", "tcp://127.0.0.1:*"),
            *("--key", str(folder / "lab.key"), "--broker-key", str(folder / "broker.pub")),
        )
        yield Site(folder, url, agent)


FIRST = """
import sys
from gymwire import ProxyEnv
address, url, direct, key, broker_key, gate = sys.argv[1:]
env = ProxyEnv(address, url, direct=direct, key=key, broker_key=broker_key)
env.reset(seed=5, options={"gate": gate})
env.step(3)
env.step(3)
print(env.session_token().hex(), flush=True)
sys.stdin.read()
"""

SECOND = """
import sys
from gymwire import ProxyEnv
env = ProxyEnv.resume(bytes.fromhex(sys.stdin.readline()))
print(env._session.is_direct, flush=True)
env.step(4)
"""


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Run code in a process that is killed in the end; yield its standard input and output."""
    pipe = subprocess.PIPE
    process = Forked(["-c", *arguments], env=os.environ, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield process.stdin, process.stdout
        finally:
            process.kill()
            process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


def token_of_killed_learner(site: Site, address: str, direct: str, gate: Path) -> bytes:
    """Return the token of a learner that was killed after two steps."""
    gate.touch()
    options = site.options("alice")
    with running(
        *(FIRST, address, site.url, direct),
        *(options["key"], options["broker_key"], str(gate)),
    ) as (_, said):
        return bytes.fromhex(said.readline().decode())


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.mark.parametrize("direct", PATHS)
def test_a_pinned_session_goes_on_in_another_process(site: Site, direct: str, gate: Path) -> None:
    address = f"lab/patient@{site.identity('lab')}"
    token = token_of_killed_learner(site, address, direct, gate)
    with contextlib.closing(ProxyEnv.resume(token)) as env:
        assert env._session.signer is not None
        assert env._session.is_direct is (direct == "always")
        assert env.step(4)[0] == 3
        assert env.step(4)[0] == 4
        assert env.reset(options={"gate": str(gate)})[0] == 0


@pytest.mark.parametrize("direct", PATHS)
def test_a_resumed_learner_may_be_killed_in_the_middle_of_a_step(
    site: Site, direct: str, gate: Path
) -> None:
    address = f"lab/patient@{site.identity('lab')}"
    token = token_of_killed_learner(site, address, direct, gate)
    gate.unlink()
    entered = Path(f"{gate}.entered")
    entered.unlink()
    with running(SECOND) as (told, said):
        told.write(f"{token.hex()}\n".encode())
        assert said.readline().decode().strip() == str(direct == "always")
        wait_for(entered)
    gate.touch()
    with contextlib.closing(ProxyEnv.resume(token)) as env:
        assert env.step(4)[0] == 3  # what the killed process had asked for, executed once
        assert env.step(4)[0] == 4


# --- tokens that are not this session's ----------------------------------------------------------


class Held(NamedTuple):
    """A session whose process was killed after two steps."""

    site: Site
    token: bytes
    gate: Path

    def altered(self, **changes: Any) -> bytes:
        """Return the token with these fields, or these keyword arguments in it, replaced."""
        fields = values.decode(self.token)
        fields["kwargs"] |= {k: v for k, v in changes.items() if k in fields["kwargs"]}
        return values.encode(fields | {k: v for k, v in changes.items() if k in fields})

    def other(self) -> dict[str, Any]:
        """Return the fields of the token of another such session."""
        pin = self.site.identity("lab")
        address = f"lab/patient@{pin}"
        token = token_of_killed_learner(self.site, address, "never", self.gate)
        fields: dict[str, Any] = values.decode(token)
        return fields


@pytest.fixture
def held(site: Site, gate: Path) -> Iterator[Held]:
    """After the test the session must still be there, and go on with its own token."""
    address = f"lab/patient@{site.identity('lab')}"
    held = Held(site, token_of_killed_learner(site, address, "never", gate), gate)
    yield held
    with contextlib.closing(ProxyEnv.resume(held.token)) as env:
        assert env.step(4)[0] == 3


def test_a_token_without_its_keys_is_refused(held: Held) -> None:
    with pytest.raises(Denied, match="belongs to another session"):
        ProxyEnv.resume(held.altered(seal=None))


def test_a_token_with_the_keys_of_another_session_is_refused(held: Held) -> None:
    with pytest.raises(Denied, match="cannot prove it, or the token belongs to another session"):
        ProxyEnv.resume(held.altered(seal=held.other()["seal"]))


def test_a_token_with_another_nonce_is_refused(held: Held) -> None:
    with pytest.raises(Denied, match="belongs to another"):
        ProxyEnv.resume(held.altered(nonce=held.other()["nonce"]))


def test_a_token_that_pins_another_agent_is_refused(held: Held) -> None:
    pinned = f"lab/patient@{held.site.identity('bob')}"
    with pytest.raises(
        Denied, match=f"The session at '{pinned}' is not resumed: its agent is not the pinned one"
    ):
        ProxyEnv.resume(held.altered(address=pinned))


def test_a_token_with_another_address_is_refused(held: Held) -> None:
    with pytest.raises(Denied, match="belongs to another"):
        ProxyEnv.resume(held.altered(address=f"lab/other@{held.site.identity('lab')}"))


def test_a_token_is_of_no_use_to_another_key(held: Held) -> None:
    with pytest.raises(Denied, match="belongs to another"):
        ProxyEnv.resume(held.altered(**held.site.options("bob")))


def test_an_old_token_does_not_cost_the_session(site: Site, gate: Path) -> None:
    gate.touch()
    env = site.env(f"lab/patient@{site.identity('lab')}")
    env.reset(options={"gate": str(gate)})
    old = env.session_token()
    for _ in range(2):
        env.step(4)
    new = env.session_token()
    env._session.connection.close(goodbye=False)  # as if the process had been killed
    with pytest.raises(MoveError, match="This token is old"):
        ProxyEnv.resume(old)
    with contextlib.closing(ProxyEnv.resume(new)) as again:
        assert again.step(4)[0] == 3


def test_a_session_that_has_ended_is_not_resumed(site: Site) -> None:
    with contextlib.closing(site.env(f"lab/patient@{site.identity('lab')}")) as env:
        token = env.session_token()
    with pytest.raises(EnvironmentLost):
        ProxyEnv.resume(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"sid": -1},
        {"sid": "1"},
        {"nonce": b"short"},
        {"seq": 2**62},
        {"state": "closed"},
        {"state": 7},
        {"seal": [b"1", b"2"]},
        {"seal": "keys"},
        {"kwargs": {"address": "lab/patient"}},
        {"kwargs": None},
        {"challenge": ""},
    ],
    ids=str,
)
def test_a_token_with_a_wrong_field_is_refused(held: Held, changes: dict[str, Any]) -> None:
    fields = values.decode(held.token) | changes
    with pytest.raises(ConfigurationError, match="This is not a session token"):
        ProxyEnv.resume(values.encode(fields))


@pytest.mark.parametrize("token", [b"", b"\x80", b"\xc1", "text", None], ids=repr)
def test_a_malformed_token_is_refused(token: Any) -> None:
    with pytest.raises(ConfigurationError, match="This is not a session token"):
        ProxyEnv.resume(token)


def test_half_a_token_is_refused(held: Held) -> None:
    with pytest.raises(ConfigurationError, match="all of them"):
        ProxyEnv.resume(held.token[:-7])
