"""The client in clients/javascript, in Node and in Chromium: an env agent and a learner."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra gymwire[web]")

from gymwire import ProxyEnv
from gymwire.cli import main
from gymwire.conformance import suite
from gymwire.protocol.errors import EnvironmentFailed
from tests.gateway.sockets import gateway
from tests.processes import PATIENCE_S, ROOT, Programs, programs

CLIENT = ROOT / "clients" / "javascript"
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ACTIONS = [1, 0, 0, 1, 1]
SERVE = "import {{ serve }} from '{base}/test/corridor.js'; serve('{url}');"
PLAY = (
    "import {{ play }} from '{base}/test/play.js';"
    "const seen = await play('{url}', 'cartpole', 7, {actions});"
)


def node(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    if NODE is None:
        pytest.skip("needs node")
    command = [NODE, "--no-warnings", "--experimental-websocket", *arguments]
    return subprocess.Popen(command, text=True, cwd=CLIENT, **options)


@contextlib.contextmanager
def in_node(script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a module in Node while the block runs."""
    started = node("--input-type=module", "-e", script, stdout=subprocess.PIPE)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.fixture(name="shared", scope="module")
def _shared() -> Iterator[tuple[str, str]]:
    """The URLs of a broker that offers CartPole, and of the WebSocket of its gateway."""
    with programs() as started:
        _, broker = started.broker()
        started.env_agent(broker, "cartpole", "CartPole-v1")
        web = gateway(started, broker, "--origin", PAGES.url)[1]
        yield broker, f"{web.replace('http', 'ws', 1)}/ws"


class Pages:
    """A server for the pages of the tests, and what they report."""

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.page = ""
        pages = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path != "/":
                    super().do_GET()
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(pages.page.encode())

            def do_POST(self) -> None:
                pages.reports.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()

        handler = functools.partial(Handler, directory=str(ROOT))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"


PAGES = Pages()


@contextlib.contextmanager
def in_chromium(script: str, profile: Path, page: str = "/") -> Iterator[None]:
    """Show a page in Chromium while the block runs; at `/` it runs this module."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    PAGES.page = f"<!doctype html><script type=module>{script}</script>"
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [CHROMIUM, *options, "--remote-debugging-port=0", f"{PAGES.url}{page}"]
    started = subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        yield
    finally:
        os.killpg(started.pid, 9)
        started.wait()


def local_steps() -> list[Any]:
    """Return what CartPole returns here, as `play` does."""
    with gymnasium.make("CartPole-v1") as env:
        seen: list[Any] = [env.reset(seed=7)[0].tolist()]
        for action in ACTIONS:
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append([observation.tolist(), reward, terminated, truncated])
    return seen


def check_corridor(broker: str) -> None:
    with ProxyEnv("js/corridor", broker, wait_s=PATIENCE_S) as env:
        assert isinstance(env.action_space, gymnasium.spaces.Discrete)
        observation, info = env.reset(seed=7)
        assert (observation.dtype, observation.tolist(), info) == (np.float32, [7.0], {"seed": 7})
        assert env.step(np.int64(0))[0] == 6
        assert env.step(1)[0] == 7
        with pytest.raises(EnvironmentFailed, match="5 is neither 0 nor 1"):
            env.step(5)
        assert [env.step(np.int64(1))[1:4] for _ in range(3)] == [
            (0.0, False, False),
            (0.0, False, False),
            (1.0, True, False),
        ]
        assert type(env.step(0)[1]) is float
        assert env.reset(seed=2**62)[1] == {"seed": 2**62}


def test_the_clients_own_tests_pass() -> None:
    with node("--test", "test/", stdout=subprocess.PIPE) as running:
        output, _ = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 0, output


def test_an_env_agent_in_node_serves_our_learner(shared: tuple[str, str]) -> None:
    with in_node(SERVE.format(base=CLIENT, url=shared[1])):
        check_corridor(shared[0])


def test_a_learner_in_node_sees_what_a_local_environment_returns(shared: tuple[str, str]) -> None:
    script = PLAY.format(base=CLIENT, url=shared[1], actions=ACTIONS)
    with in_node(f"{script} console.log(JSON.stringify(seen));") as running:
        output, _ = running.communicate(timeout=PATIENCE_S)
    assert json.loads(output) == local_steps()


def test_an_env_agent_in_a_browser_serves_our_learner(
    shared: tuple[str, str], tmp_path: Path
) -> None:
    with in_chromium(SERVE.format(base="/clients/javascript", url=shared[1]), tmp_path):
        check_corridor(shared[0])


def test_a_learner_in_a_browser_sees_what_a_local_environment_returns(
    shared: tuple[str, str], tmp_path: Path
) -> None:
    script = PLAY.format(base="/clients/javascript", url=shared[1], actions=ACTIONS)
    report = "await fetch('/', {method: 'POST', body: JSON.stringify(seen)});"
    with in_chromium(script + report, tmp_path):
        assert json.loads(PAGES.reports.get(timeout=PATIENCE_S)) == local_steps()


def test_gymwire_train_learns_the_game_of_the_example_page(
    shared: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = f"/examples/web_game/index.html?gateway={shared[1]}"
    with in_chromium("", tmp_path, page):
        arguments = ("--broker", shared[0], "--steps", "3000", "--seed", "1", "--wait", "20")
        assert main(["train", "games/catch", *arguments, "--json"]) == 0
    rewards = json.loads(capsys.readouterr().out)["reward_per_step"]
    assert rewards["last_tenth"] > rewards["first_tenth"] + 0.1  # 1/6 is perfect


def test_sessions_survive_a_restart_of_the_broker(programs: Programs) -> None:
    program, broker = programs.broker()
    web = gateway(programs, broker)[1]
    with (
        in_node(SERVE.format(base=CLIENT, url=f"{web.replace('http', 'ws', 1)}/ws")),
        ProxyEnv("js/corridor", broker, wait_s=PATIENCE_S) as env,
    ):
        env.reset(seed=3)
        assert env.step(1)[0] == 4
        program.kill()
        programs.broker(broker)
        assert env.step(1)[0] == 5


def test_the_env_agent_in_node_conforms(programs: Programs) -> None:
    agent, url = suite.as_broker("tcp://127.0.0.1:*", "", PATIENCE_S)
    try:
        web = gateway(programs, url)[1]
        with in_node(SERVE.format(base=CLIENT, url=f"{web.replace('http', 'ws', 1)}/ws")):
            agent.greet(PATIENCE_S)
            outcomes = [*suite.run(agent)]
    finally:
        agent.wire.close()
    assert [one for one in outcomes if one.status == suite.FAILED] == []
    passed = {one.clause for one in outcomes if one.status == suite.PASSED}
    assert {"4.3.1", "6.2", "7.2", "7.3", "7.4", "7.12", "7.13", "11.8"} <= passed
