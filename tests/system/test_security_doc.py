"""The commands of docs/security.md, run as they are written, on one host and one free port."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from gymwire.broker import auth
from tests.processes import PATIENCE_S, ROOT

TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def _commands(port: int) -> list[list[str]]:
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
        for line in block.splitlines()
    ]
    commands = []
    for line in lines:
        assert line.startswith("./run python -m "), line
        line = line.replace("./run python", shlex.quote(sys.executable), 1)
        line = line.replace("broker.example.org", "127.0.0.1").replace("5555", str(port))
        commands.append(shlex.split(line))
    return commands


def test_a_remote_host_with_keys_as_the_manual_shows_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running: list[subprocess.Popen[str]] = []
    played = ""
    try:
        for command in _commands(port):
            serves = "gymwire.broker" in command[2:3] or "gymwire.env_agent" in command
            if not serves:
                done = subprocess.run(
                    command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
                )
                assert done.returncode == 0, done.stderr
                played = done.stdout
                continue
            process = subprocess.Popen(
                command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            running.append(process)
            assert process.stderr is not None
            deadline = time.monotonic() + PATIENCE_S
            for line in process.stderr:
                if "broker listening" in line or "offering" in line:
                    break
                assert time.monotonic() < deadline
            # The rest is read, so that it never blocks.
            threading.Thread(target=process.stderr.read, daemon=True).start()
        assert "10 played" in played
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(PATIENCE_S)
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


def test_the_policy_that_the_manual_shows_is_one() -> None:
    [text] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    keys = iter(["a" * 40, "b" * 40])
    text = re.sub(r'^key = "[^"]*"', lambda _: f'key = "{next(keys)}"', text, flags=re.MULTILINE)
    policy = auth.parse(text)
    assert [rights.name for rights in policy.peers.values()] == ["lab", "alice"]
    assert policy.anyone is not None
