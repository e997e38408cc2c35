"""Hosts are network namespaces here, and their links go down and up while agents train."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gymwire import ProxyEnv
from gymwire.protocol.errors import EnvironmentLost
from gymwire.protocol.security.keys import generate
from gymwire.protocol.transport import kernel
from tests.chaos.chain import judge
from tests.chaos.course import Course
from tests.chaos.fleet import Part, until
from tests.processes import PATIENCE_S
from tests.protocol.transport.test_stalled_readers import PING, fill, greet_as_dealer

PORT = 5555
START_S = 120.0  # how long programs may take to start on a busy machine


class Hosts:
    """Namespaces that are linked with this one or with each other; gone after `remove`."""

    def __init__(self) -> None:
        self._run = f"gw{secrets.token_hex(3)}"
        # Of the second half of 10.0.0.0/8, which few use; each of our links has its own part of it.
        self._subnet = secrets.randbelow(120) + 128
        self._names: list[str] = []
        self._links = 0

    def add(self, name: str) -> str:
        """Add a host without links and return its name."""
        full = f"{self._run}{name}"
        _ip("netns", "add", full)
        self._names.append(full)
        _ip("-n", full, "link", "set", "lo", "up")
        return full

    def link(self, one: str | None, other: str) -> tuple[str, str, Callable[[bool], None]]:
        """Link two hosts (None: this one). Returns both addresses, and what sets it up or down."""
        self._links += 1
        ends = [f"{self._run}-{self._links}{side}" for side in "ab"]
        subnet = f"10.{self._subnet}.{self._links}"
        addresses = [f"{subnet}.1", f"{subnet}.2"]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        hosts = [one, other]
        # The end that goes away first takes its other end with it, also out of this namespace.
        for end, host, address in zip(ends, hosts, addresses, strict=True):
            if host is not None:
                _ip("link", "set", end, "netns", host)
            within = () if host is None else ("-n", host)
            _ip(*within, "addr", "add", f"{address}/24", "dev", end)
            _ip(*within, "link", "set", end, "up")

        def set_up(up: bool) -> None:
            _ip("-n", other, "link", "set", ends[1], "up" if up else "down")

        return addresses[0], addresses[1], set_up

    def lose_large_packets(self, sender: str, relays: tuple[str, str], receiver: str) -> None:
        """Route from `sender` over two relays to this host, and lose large packets on the way.

        The link between the relays has a small MTU, which only its far end knows: it drops what is
        larger, and nobody tells the sender. `receiver`: the address of this host.
        """
        near, far = relays
        sender_ip, near_ip, _ = self.link(sender, near)
        # So that the packets that leave are those that TCP has made.
        _ip("-n", sender, "link", "set", f"{self._run}-{self._links}a", "gso_max_segs", "1")
        inner_ip, far_ip, _ = self.link(near, far)
        _ip("-n", far, "link", "set", f"{self._run}-{self._links}b", "mtu", "1000")
        for relay in relays:
            forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            _ip("netns", "exec", relay, "sh", "-c", forward)
        _ip("-n", sender, "route", "add", "default", "via", near_ip)
        _ip("-n", near, "route", "add", f"{receiver}/32", "via", far_ip)
        _ip("-n", far, "route", "add", f"{sender_ip}/32", "via", inner_ip)
        _ip("route", "add", f"{sender_ip}/32", "via", self._far_ip_of(receiver))

    @staticmethod
    def _far_ip_of(address: str) -> str:
        """Return the address at the other end of this address's link."""
        return address.rpartition(".")[0] + ".2"

    def remove(self) -> None:
        for name in self._names:
            _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _why_not() -> str | None:
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip` (iproute2)"
    hosts = Hosts()
    try:
        hosts.link(None, hosts.add("try"))
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not to be had here: {error.stderr.strip()} (run as root?)"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            hosts.remove()
    return None


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(name="hosts")
def _hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def parts() -> Iterator[list[Part]]:
    started: list[Part] = []
    try:
        yield started
    finally:
        for part in reversed(started):
            part.release()


def env_agent(folder: Path, broker: str, inside: str, *options: str) -> Part:
    arguments = [
        "gymwire.env_agent",
        "--address",
        "lab/chain",
        "--env",
        "tests.chaos.chain:ChainEnv",
    ]
    arguments += ["--env-kwargs", f'{{"ledger": "{folder / "ledger"}"}}', "--broker", broker]
    arguments += ["--wait", str(START_S), *options]
    return Part(folder / "env-agent.log", arguments, inside=inside)


def assert_trained(course: Course, ledger: Path, requests: int) -> None:
    for _ in range(requests):
        course.advance()
    assert course.lost == {}
    assert judge(ledger, course.answered, course.lost).faults == []


@pytest.mark.parametrize("path", ["relayed", "direct"])
def test_an_env_agent_on_another_host_serves_a_learner(
    hosts: Hosts, tmp_path: Path, path: str
) -> None:
    there = hosts.add("env")
    here_ip, there_ip, _ = hosts.link(None, there)
    url = f"tcp://{here_ip}:{PORT}"
    direct = ["--direct", f"tcp://{there_ip}:*", "--insecure"] if path == "direct" else []
    with parts() as started:
        started.append(
            Part(tmp_path / "broker.log", ["gymwire.broker", "--bind", url, "--insecure"])
        )
        started.append(env_agent(tmp_path, url, there, *direct))
        with ProxyEnv("lab/chain", url, wait_s=START_S) as env:
            assert_trained(Course(env, "learner", seed=1), tmp_path / "ledger", 200)


def test_three_hosts_train_with_keys_while_links_go_down_and_up(
    hosts: Hosts, tmp_path: Path
) -> None:
    middle, there = hosts.add("mid"), hosts.add("env")
    _, middle_ip, set_learners_link = hosts.link(None, middle)
    middle_inner_ip, _, set_agents_link = hosts.link(middle, there)
    keys = {name: generate(name, tmp_path) for name in ("broker", "env", "learner")}
    broker_key = str(keys["broker"][1])
    url = f"tcp://{middle_ip}:{PORT}"
    with parts() as started:
        bind = ["gymwire.broker", "--bind", f"tcp://*:{PORT}", "--key", str(keys["broker"][0])]
        started.append(Part(tmp_path / "broker.log", bind, inside=middle))
        secured = ["--key", str(keys["env"][0]), "--broker-key", broker_key]
        agent = env_agent(tmp_path, f"tcp://{middle_inner_ip}:{PORT}", there, *secured)
        started.append(agent)
        with ProxyEnv(
            "lab/chain", url, wait_s=START_S, key=str(keys["learner"][0]), broker_key=broker_key
        ) as env:
            course = Course(env, "learner", seed=1)
            assert_trained(course, tmp_path / "ledger", 50)
            for set_up, down_s in (
                (set_agents_link, 1.0),
                (set_learners_link, 1.0),
                (set_learners_link, 9.0),  # until both have given the connection up
            ):
                set_up(False)
                up = threading.Timer(down_s, set_up, [True])
                up.start()
                assert_trained(course, tmp_path / "ledger", 50)
                up.join()
            # Cut off for too long, the environment is given up, and is on offer again later.
            set_agents_link(False)
            while not course.lost_at:
                course.advance()
            set_agents_link(True)
            until(lambda: "reconnected" in agent.text(), "the agent is back")
            with ProxyEnv(
                "lab/chain", url, wait_s=START_S, key=str(keys["learner"][0]), broker_key=broker_key
            ) as again:
                assert_trained(Course(again, "again", seed=2), tmp_path / "ledger", 50)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("env", "threads"), [("Entered", ["--threads", "1"]), ("Locked", [])], ids=["one", "locked"]
)
def test_a_connection_that_the_kernel_gives_up_in_a_long_step_does_not_end_the_env_agent(
    hosts: Hosts, tmp_path: Path, env: str, threads: list[str]
) -> None:
    """Without the check after the step, libzmq aborts (docs/design.md)."""
    there, gate = hosts.add("env"), tmp_path / "gate"
    here_ip, there_ip, _ = hosts.link(None, there)
    retries = "echo 3 > /proc/sys/net/ipv4/tcp_retries2"  # gives up after 3 s, and not 15 minutes
    _ip("netns", "exec", there, "sh", "-c", retries)
    if env == "Locked":
        os.mkfifo(gate)
    url = f"tcp://{here_ip}:{PORT}"
    offer = ["--address", "gated", "--env", f"tests.system.pool_envs:{env}", *threads]
    direct = ["--direct", f"tcp://{there_ip}:{PORT}", "--insecure", "--max-sessions", "1"]
    with parts() as started, contextlib.ExitStack() as stack:
        broker = ["gymwire.broker", "--bind", url, "--insecure"]
        started.append(Part(tmp_path / "broker.log", broker))
        command = ["gymwire.env_agent", *offer, "--broker", url, "--wait", str(START_S), *direct]
        agent = Part(tmp_path / "env-agent.log", command, inside=there)
        started.append(agent)
        proxy = stack.enter_context(ProxyEnv("gated", url, wait_s=START_S, direct="never"))
        proxy.reset(options={"gate": str(gate)})
        stepping = threading.Thread(target=proxy.step, args=(0,))
        stepping.start()
        until(lambda: Path(f"{gate}.entered").exists(), "the step has begun")
        peer = stack.enter_context(socket.create_connection((there_ip, PORT), PATIENCE_S))
        greet_as_dealer(peer)
        kernel._attach_filter(peer.fileno(), ((kernel._RETURN, 0, 0, kernel._DROP),))
        peer.sendall(bytes((4, len(PING))) + PING)  # the answer never arrives
        fill(peer)
        mine = f":{peer.getsockname()[1]:04X} "
        tables = [Path(f"/proc/{agent.pid}/net/{name}") for name in ("tcp", "tcp6")]
        until(
            lambda: not any(mine in table.read_text() for table in tables),
            "the kernel gives the connection up",
        )
        gate.write_bytes(b"")
        stepping.join()
        agent.says("direct sessions ended")
        proxy.reset(options={"gate": str(tmp_path)})
        proxy.step(0)
        assert agent.alive


def test_a_path_that_loses_the_large_packets_of_an_env_agent_is_named(
    hosts: Hosts, tmp_path: Path
) -> None:
    there, near, far = (hosts.add(name) for name in ("env", "near", "far"))
    here_ip, _, _ = hosts.link(None, far)
    hosts.lose_large_packets(there, (near, far), here_ip)
    url = f"tcp://{here_ip}:{PORT}"
    offer = ["--address", "noise", "--env", "tests.odd_envs:Noise", "--threads", "1"]
    agent = ["gymwire.env_agent", *offer, "--broker", url, "--wait", str(START_S)]
    with parts() as started:
        broker = ["gymwire.broker", "--bind", url, "--insecure"]
        started.append(Part(tmp_path / "broker.log", broker))
        started.append(Part(tmp_path / "env-agent.log", agent, inside=there))
        with (
            ProxyEnv("noise", url, wait_s=START_S, direct="never") as env,
            pytest.raises(EnvironmentLost, match=r"env agent .* lost 2 times .* MTU"),
        ):
            env.reset(seed=1)
