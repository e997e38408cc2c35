"""With few file descriptors a command works, or ends with one clear error."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from tests import prefork
from tests.processes import programs
from tests.sampling import thorough

LIMITS = (*range(5, 23), *range(24, 65, 8))
ENOUGH = {"broker": 19, "run": 19, "one": 45}
ERROR = r"gymwire (broker|serve|run): .*cannot open enough files and sockets: .*\(ulimit -n\).*"

# Runs a command with each limit in a fork of one process, which has imported everything already.
SCRIPT = """
import json, os, resource, signal, sys, traceback
from gymwire.cli.app import run

limits, *argv = sys.argv[1:]
for limit in json.loads(limits):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.closerange(3, 1000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        status = 99
        try:
            status = run(argv)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    os.close(writing)
    lines = []
    with open(reading) as output:
        for line in output:
            lines.append(line)
            if "broker listening" in line or "offering " in line:
                os.kill(child, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([limit, status, lines]), flush=True)  # or the next fork would print it, too
"""


def outcomes(*argv: str) -> dict[int, tuple[int, list[str]]]:
    """Return the exit status and the output of a command for each limit."""
    done = prefork.run(
        ["-c", SCRIPT, json.dumps(LIMITS), *argv],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {limit: (status, lines) for limit, status, lines in rows}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", ["broker", "serve", thorough("one"), "run"])
def test_every_limit_gives_a_working_command_or_one_error(what: str) -> None:
    with programs() as started:
        _, url = started.broker()
        serve = ("serve", "cartpole", "CartPole-v1", "--broker", url, "--grace", "0")
        if what == "run":
            started.env_agent(url, "cartpole", "CartPole-v1")
        argv = {
            "broker": ("broker", "--bind", "tcp://127.0.0.1:*"),
            "serve": serve,
            "one": (*serve, "--threads", "1"),
            "run": ("run", "cartpole", "--broker", url, "--episodes", "1", "--seed", "1"),
        }[what]
        found = outcomes(*argv)
    assert [*found] == [*LIMITS]
    for limit, (status, lines) in found.items():
        others = [line for line in lines if not re.match(r"\d\d:\d\d:\d\d \[", line)]
        if status == 0:
            continue
        assert (status, len(others)) == (1 if what == "run" else 2, 1), (limit, lines)
        assert re.fullmatch(ERROR, others[0].strip()), limit
    assert all(found[limit][0] == 0 for limit in LIMITS if limit >= ENOUGH.get(what, 999))
