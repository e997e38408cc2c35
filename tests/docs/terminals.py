"""Run the commands of a page as a reader would, on one host and a free port."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import TracebackType

from tests.chaos.fleet import free_port
from tests.prefork import Forked, run
from tests.processes import PATIENCE_S, ROOT

SERVERS = ("broker", "serve")
TIMEOUT_S = 180.0  # of a command that ends by itself


class Terminals:
    """Terminals in one folder. Commands that serve run until the block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = str(free_port())
        url = f"tcp://127.0.0.1:{self._port}"
        self._env = {
            **os.environ,
            "GYMWIRE_BROKER": url,
            "GYMWIRE_BIND": url,
            "GYMWIRE_WAIT": str(PATIENCE_S),
            "GYMWIRE_STEPS": "2000",  # of a training that names no number
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "SDL_VIDEODRIVER": "dummy",
        }
        self._running: dict[str, Forked] = {}

    def __enter__(self) -> Terminals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        ended = [line for line, process in self._running.items() if process.poll() is not None]
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            process.wait(PATIENCE_S)
        if kind is None:
            assert not ended, f"{ended} ended:\n{self.log()}"

    def log(self) -> str:
        """Return what the commands that serve have printed."""
        return "".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    def run(self, line: str) -> str:
        """Run a line of a page; return its output, "" if it serves."""
        program, command, *_ = words = shlex.split(self._here(line.removeprefix("./run ")))
        assert program in ("gymwire", "python"), line
        assert program == "gymwire" or command == "-m", line
        arguments = words if program == "gymwire" else words[2:]
        if program == "gymwire" and command in SERVERS:
            log = self._folder / f"{len(self._running)}.log"
            with log.open("wb") as output:
                self._running[line] = Forked(
                    arguments,
                    cwd=self._folder,
                    env=self._env,
                    stdout=output,
                    stderr=output,
                    finalized=False,
                )
            return ""
        return self._finish(arguments)

    def wait_for(self, *addresses: str) -> None:
        """Wait until these addresses are on offer."""
        opened = "".join(
            f"ProxyEnv({address!r}, wait_s={PATIENCE_S}).close()\n" for address in addresses
        )
        self.script(f"from gymwire import ProxyEnv\n{opened}")

    def script(self, text: str) -> str:
        """Run a script of a page; return its output."""
        return self._finish(["-c", self._here(text)])

    def _here(self, text: str) -> str:
        return text.replace("broker.example.org", "127.0.0.1").replace("5555", self._port)

    def _finish(self, arguments: list[str]) -> str:
        done = run(arguments, cwd=self._folder, env=self._env, timeout=TIMEOUT_S)
        assert done.returncode == 0, f"{arguments}:\n{done.stderr}\n{self.log()}"
        return done.stdout
