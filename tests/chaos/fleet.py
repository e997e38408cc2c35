"""Real brokers, env agents and learners, in processes that can be killed, frozen and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gymwire.protocol.security.keys import generate
from tests.prefork import ROOT, Forked
from tests.processes import PATIENCE_S

ADDRESS = "chain"
LEAST_PORT, LEAST_GIVEN_PORT = 10_000, 32_768  # Linux gives sockets without a port higher ones


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for a condition; fail, naming it, if it does not come."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"this has not happened in {patience_s:g} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port for a broker that can be started again and again.

    Until this process ends, no other call gets it, in whichever process, and no other socket.
    """
    while True:
        port = random.SystemRandom().randrange(LEAST_PORT, LEAST_GIVEN_PORT)
        with socket.socket() as reserved, contextlib.suppress(OSError):
            reserved.bind(("127.0.0.1", port))  # fails if another socket has this port
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as libzmq's sockets
            reserved.detach()
            return port


class Part:
    """A process that can be started again with the same command.

    `full_disk`: its log cannot be written. `descriptors`: its RLIMIT_NOFILE. `inside`: the
    network namespace that it runs in.
    """

    def __init__(
        self,
        log: Path,
        arguments: Sequence[str],
        *,
        full_disk: bool = False,
        descriptors: int | None = None,
        inside: str | None = None,
    ) -> None:
        self.log = log
        self._full_disk = full_disk
        self._arguments = arguments
        self._descriptors = descriptors
        self._inside = inside
        self.start()

    def start(self) -> None:
        """Start it, again if need be."""
        if hasattr(self, "process"):
            self.release()
        path = "/dev/full" if self._full_disk else self.log
        # Buffered, as it is by default: what stays in a buffer can change the exit status.
        buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
        with Path(path).open("ab") as log:
            self.process = self._start(env=buffered, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def _start(self, **options: Any) -> Forked | subprocess.Popen[bytes]:
        if self._inside is None and "LD_PRELOAD" not in os.environ:
            return Forked(self._arguments, descriptors=self._descriptors, **options)
        command = [sys.executable, "-m", *self._arguments]
        if self._descriptors is not None:
            command = ["prlimit", f"--nofile={self._descriptors}", *command]
        if self._inside is not None:
            command = ["ip", "netns", "exec", self._inside, *command]
        return subprocess.Popen(command, cwd=ROOT, **options)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def says(self, text: str, times: int = 1, patience_s: float = PATIENCE_S) -> None:
        """Wait until its log contains this text `times` times."""
        until(
            lambda: self.text().count(text) >= times or not self.alive,
            f"{text!r} in {self.log.name}",
            patience_s,
        )
        assert self.text().count(text) >= times, f"{self.log.name} ended:\n{self.text()}"

    def children(self) -> list[int]:
        """Return the ids of the processes that it has started."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def kill(self) -> float:
        """SIGKILL; returns when (monotonic seconds)."""
        at = time.monotonic()
        self.process.kill()
        self.process.wait()
        return at

    def freeze(self) -> float:
        """SIGSTOP; returns when (monotonic seconds)."""
        self.process.send_signal(signal.SIGSTOP)
        return time.monotonic()

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self, patience_s: float = 15.0) -> float:
        """SIGTERM; returns how many seconds it took. It must leave with status 0."""
        start = time.monotonic()
        self.process.terminate()
        status = self.process.wait(patience_s)
        assert status == 0, f"{self.log.name} ended with {status}:\n{self.text()[-2000:]}"
        return time.monotonic() - start

    def release(self) -> None:
        """Kill it if it is alive."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            self.process.kill()
            self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Fleet:
    """One broker at a fixed port, and the programs that use it. `folder`: for logs and the ledger.

    `keys`: each program has a key of its own, and all connections are encrypted.
    """

    def __init__(self, folder: Path, *, keys: bool = False) -> None:
        self.folder = folder
        self._keys: dict[str, list[str]] = {"broker": [], "env_agent": [], "learner": []}
        if keys:
            secret, public = generate("broker", folder)
            self._keys["broker"] = ["--key", str(secret)]
            for role in ("env_agent", "learner"):
                own = str(generate(role, folder)[0])
                self._keys[role] = ["--key", own, "--broker-key", str(public)]
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.port = free_port()
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.parts: list[Part] = []
        self._names = 0

    @property
    def credentials(self) -> dict[str, Any]:
        """The learner's keys, as keyword arguments of ProxyEnv."""
        options = self._keys["learner"]
        return {"key": options[1], "broker_key": options[3]} if options else {}

    def _part(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        full_disk: bool = False,
        descriptors: int | None = None,
    ) -> Part:
        self._names += 1
        log = self.folder / f"{self._names:02d}-{name}.log"
        part = Part(log, arguments, full_disk=full_disk, descriptors=descriptors)
        self.parts.append(part)
        return part

    def broker(
        self, *options: str, full_disk: bool = False, descriptors: int | None = None
    ) -> Part:
        part = self._part(
            "broker",
            ["gymwire.broker", "--bind", self.url, *self._keys["broker"], *options],
            full_disk=full_disk,
            descriptors=descriptors,
        )
        until(lambda: reachable(self.port), f"a broker at {self.url}")
        return part

    def env_agent(
        self,
        *options: str,
        url: str | None = None,
        size: int = 32,
        full_disk: bool = False,
        descriptors: int | None = None,
    ) -> Part:
        kwargs = json.dumps({"ledger": str(self.ledger), "size": size})
        arguments = [
            "gymwire.env_agent",
            "--address",
            ADDRESS,
            "--env",
            "tests.chaos.chain:ChainEnv",
        ]
        arguments += ["--env-kwargs", kwargs, "--broker", url or self.url, "--wait", "20"]
        part = self._part(
            "env-agent",
            [*self._at(url), *arguments, "--direct", "never", *self._keys["env_agent"], *options],
            full_disk=full_disk,
            descriptors=descriptors,
        )
        if not full_disk:
            part.says("offering")
        return part

    def learner(self, name: str, *options: str, url: str | None = None, seed: int = 1) -> Part:
        arguments = [*self._at(url), "tests.chaos.learner", "--broker", url or self.url]
        arguments += ["--name", name]
        arguments += self._keys["learner"]
        return self._part(f"learner-{name}", [*arguments, "--seed", str(seed), *options])

    def _at(self, url: str | None) -> list[str]:
        """Return how to run a program that reaches the broker by a relay: on another host."""
        return [] if url in (None, self.url) else ["tests.chaos.other_host"]

    def release(self) -> None:
        for part in reversed(self.parts):
            part.release()


@contextlib.contextmanager
def fleet(folder: Path, *, keys: bool = False) -> Iterator[Fleet]:
    """Make a fleet and end it after the block, in whatever state it is."""
    made = Fleet(folder, keys=keys)
    try:
        yield made
    finally:
        made.release()


def reachable(port: int) -> bool:
    """Return whether a program listens at this port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
