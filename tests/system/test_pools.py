"""Many processes behind one address: they share the sessions, join, leave and crash."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol.errors import AddressUnknown, EnvironmentLost, NoFreeSlot, RequestTimeout
from gymwire.protocol.messages import Act
from tests.processes import PATIENCE_S, ROOT, Program, Programs
from tests.sampling import thorough

T = TypeVar("T")
POOL = ("--address", "pool", "--env", "tests.system.pool_envs:Located", "--threads", "1")


def eventually(attempt: Callable[[], T | None], what: str) -> T:
    """Repeat `attempt` until it does not return None, and return its result."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    while (found := attempt()) is None:
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)
    return found


def rows(program: Program, event: str) -> list[dict[str, Any]]:
    """Return the log lines of this event so far."""
    found = []
    for line in list(program.output):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            found += [row] if row["event"] == event else []
    return found


def wait_for_rows(program: Program, event: str, count: int) -> list[dict[str, Any]]:
    def attempt() -> list[dict[str, Any]] | None:
        found = rows(program, event)
        return found if len(found) >= count else None

    return eventually(attempt, f"{count} lines of {event!r} in {program.output}")


def pool(programs: Programs, url: str, workers: int, *options: str) -> Program:
    """Start an env agent and wait until all its workers offer."""
    return programs.env_agent(url, *POOL, "--workers", str(workers), *options)


@contextlib.contextmanager
def session(url: str) -> Iterator[tuple[ProxyEnv, int]]:
    """Open and reset an environment; yield it and the id of its process."""
    with contextlib.closing(ProxyEnv("pool", url)) as env:
        yield env, env.reset(seed=1)[1]["pid"]


def open_when_free(url: str) -> ProxyEnv:
    def attempt() -> ProxyEnv | None:
        try:
            return ProxyEnv("pool", url)
        except (NoFreeSlot, AddressUnknown):
            return None

    return eventually(attempt, "a free slot")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_for_end(pid: int) -> None:
    eventually(lambda: None if is_running(pid) else True, f"the end of process {pid}")


# --- workers --------------------------------------------------------------------------------------


def test_the_sessions_of_one_address_are_spread_over_the_workers(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 3, "--max-sessions", "7")
    slots = {row["pid"]: row["slots"] for row in rows(supervisor, "offering")}
    assert sorted(slots.values()) == [2, 2, 3]
    with contextlib.ExitStack() as stack:
        pids = [stack.enter_context(session(url))[1] for _ in range(6)]
        assert Counter(pids) == dict.fromkeys(slots, 2)
        stack.enter_context(session(url))
        with pytest.raises(NoFreeSlot):
            ProxyEnv("pool", url)


def test_a_listing_tells_workers_from_their_env_agent(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 2).process.pid
    programs.env_agent(url, "single", "CartPole-v1")
    with contextlib.closing(BrokerConnection(url)) as connection:
        workers = [(one["pid"], one["agent_pid"]) for one in connection.find(POOL[1])]
        [single] = connection.find("single")
    assert [agent for _, agent in workers] == [supervisor, supervisor]
    assert len({supervisor, *(pid for pid, _ in workers)}) == 3
    assert single["pid"] == single["agent_pid"]


def test_pinned_workers_take_one_processor_each_in_turn(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 2, "--max-sessions", "2", "--pin")
    pinned = [os.sched_getaffinity(row["pid"]) for row in wait_for_rows(supervisor, "offering", 2)]
    assert all(len(processors) == 1 for processors in pinned)
    assert set.union(*pinned) == set(sorted(os.sched_getaffinity(0))[:2])


def test_a_killed_worker_harms_only_its_sessions_and_is_replaced(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 2, "--max-sessions", "2")
    with session(url) as (lost, first), session(url) as (other, second):
        os.kill(first, signal.SIGKILL)
        with pytest.raises(EnvironmentLost):
            lost.step(1)
        assert other.step(1)[4]["pid"] == second
        with contextlib.closing(open_when_free(url)) as env:
            assert env.reset()[1]["pid"] not in (first, second)
            env.step(1)
        assert other.step(1)[4]["pid"] == second
    (died,) = rows(supervisor, "worker died")
    assert died["status"] == "SIGKILL"


def test_workers_that_keep_dying_are_started_at_longer_and_longer_intervals(
    programs: Programs, tmp_path: Path
) -> None:
    _, url = programs.broker()
    kwargs = json.dumps({"made": str(tmp_path / "made"), "lives": 2})
    env = ("--env", "tests.system.pool_envs:Doomed", "--env-kwargs", kwargs)
    supervisor = pool(programs, url, 2, *env, "--max-sessions", "2")
    with session(url) as (_, first), session(url) as (other, _):
        os.kill(first, signal.SIGKILL)
        died = wait_for_rows(supervisor, "worker died", 4)[:4]
        assert [row["status"] for row in died] == ["SIGKILL", "exit 3", "exit 3", "exit 3"]
        assert [row["restart_in_s"] for row in died] == [0.5, 1.0, 2.0, 4.0]
        assert [row["crashes"] for row in died] == [1, 2, 3, 4]
        other.step(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--env", "tests.system.pool_envs:Deadly"], "licence has expired"),
        thorough(["--env", "NoSuchEnvironment-v0"], "NoSuchEnvironment"),
        thorough(["--max-sessions", "1"], "workers need `max_sessions` (--max-sessions) of"),
    ],
)
def test_a_pool_that_can_never_start_says_why_once(
    programs: Programs, options: list[str], said: str
) -> None:
    _, url = programs.broker()
    supervisor = programs.start(
        "gymwire.env_agent",
        "--broker",
        url,
        "--log-format",
        "json",
        *POOL,
        "--workers",
        "3",
        *options,
    )
    assert supervisor.wait() == 2
    first, *trace = supervisor.output
    assert first.startswith("gymwire serve: ")
    assert said in first
    # A worker that was still making its environment when the others were ended says so.
    others = [line for line in trace if line.strip() and '"event": "cut off"' not in line]
    assert [line for line in others if not line.startswith("    ")] == []


# --- the end of a pool ----------------------------------------------------------------------------


def test_on_sigterm_running_sessions_finish_and_no_new_ones_begin(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 2, "--grace", "60")

    def refused() -> bool | None:
        try:
            ProxyEnv("pool", url).close()
        except (NoFreeSlot, AddressUnknown):
            return True
        return None

    with session(url) as (env, pid):
        supervisor.process.send_signal(signal.SIGTERM)
        eventually(refused, "no new sessions")
        for count in range(1, 20):
            assert env.step(1)[0] == count
        env.reset()
        later = programs.env_agent(url, *POOL)
        with session(url) as (_, elsewhere):
            assert elsewhere == later.process.pid
        assert env.step(1)[4]["pid"] == pid
    assert supervisor.wait() == 0


def test_sessions_that_outlast_the_grace_period_are_ended(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 2, "--grace", "0.5")
    with session(url) as (env, _):
        supervisor.process.send_signal(signal.SIGTERM)
        assert supervisor.wait() == 0
        with pytest.raises(EnvironmentLost):
            env.step(1)


def test_on_sigint_a_pool_ends_at_once(programs: Programs) -> None:
    _, url = programs.broker()
    supervisor = pool(programs, url, 2, "--grace", "3600")
    with session(url) as (env, _):
        supervisor.process.send_signal(signal.SIGINT)
        assert supervisor.wait() == 0
        with pytest.raises(EnvironmentLost):
            env.step(1)
    assert not any("Traceback" in line for line in supervisor.output)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
@pytest.mark.parametrize("env", ["Entered", "Locked"])
def test_workers_end_at_once_with_a_killed_supervisor(
    programs: Programs, tmp_path: Path, env: str
) -> None:
    _, url = programs.broker()
    gate = tmp_path / "gate"
    if env == "Locked":
        os.mkfifo(gate)
    served = ("--env", f"tests.system.pool_envs:{env}")
    supervisor = pool(programs, url, 2, *served, "--grace", "3600")
    with contextlib.ExitStack() as stack:
        workers = [os.pidfd_open(row["pid"]) for row in rows(supervisor, "offering")]
        for worker in workers:
            stack.callback(os.close, worker)
            stack.callback(_kill, worker)
        proxy = stack.enter_context(contextlib.closing(ProxyEnv("pool", url)))
        proxy.reset(options={"gate": str(gate)})
        with pytest.raises(RequestTimeout):
            proxy._session.request(Act(1), timeout_s=0.1)
        entered = Path(f"{gate}.entered")
        eventually(lambda: entered.exists() or None, "the step")
        supervisor.kill()
        for worker in workers:
            assert select.select([worker], [], [], PATIENCE_S)[0]
        with pytest.raises(EnvironmentLost):
            proxy.step(1)


def test_ctrl_c_in_a_terminal_lets_each_worker_say_bye(programs: Programs) -> None:
    """It comes to all processes of the terminal, and a second one would end a worker at once."""
    broker, url = programs.broker()
    arguments = [sys.executable, "-m", "gymwire.env_agent", "--broker", url, "--log-format", "json"]
    supervisor = subprocess.Popen(
        [*arguments, *POOL, "--workers", "2"], cwd=ROOT, start_new_session=True
    )
    try:
        with contextlib.closing(BrokerConnection(url, wait_s=PATIENCE_S)) as connection:
            deadline = time.monotonic() + PATIENCE_S
            while len(connection.find("pool")) < 2:
                assert time.monotonic() < deadline
            os.killpg(supervisor.pid, signal.SIGINT)
            assert supervisor.wait(PATIENCE_S) == 0
            while connection.find("pool"):
                assert time.monotonic() < deadline
    finally:
        supervisor.kill()
    left = [row["why"] for row in rows(broker, "agent left")]
    assert left
    assert all("has stopped" in why for why in left)


def test_workers_do_not_outlive_a_killed_supervisor_and_clear_up_after_it(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = programs.broker()
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of the workers, and not of the broker
    supervisor = pool(programs, url, 2)
    pids = [row["pid"] for row in rows(supervisor, "offering")]
    assert list(tmp_path.iterdir()) == []  # a kill of all processes at once leaves nothing
    with session(url):  # also with a session
        supervisor.process.kill()
        for pid in pids:
            wait_for_end(pid)
    assert list(tmp_path.iterdir()) == []


# --- agents ---------------------------------------------------------------------------------------


def test_the_least_loaded_agent_gets_the_session(programs: Programs) -> None:
    _, url = programs.broker()
    agents = {programs.env_agent(url, *POOL).process.pid for _ in range(2)}
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(session(url)) for _ in range(4)]
        assert Counter(pid for _, pid in held) == dict.fromkeys(agents, 2)
        gone = held[0][1]
        for env, pid in held:
            if pid == gone:
                env.close()
        for _ in range(2):
            assert stack.enter_context(session(url))[1] == gone


def test_an_agent_joins_while_learners_train(programs: Programs) -> None:
    _, url = programs.broker()
    first = programs.env_agent(url, *POOL, "--max-sessions", "1")
    with session(url) as (env, pid):
        assert pid == first.process.pid
        with pytest.raises(NoFreeSlot):
            ProxyEnv("pool", url)
        second = programs.env_agent(url, *POOL, "--max-sessions", "1")
        for count in range(1, 10):
            assert env.step(1)[0] == count
        with session(url) as (_, joined):
            assert joined == second.process.pid
            assert env.step(1)[4]["pid"] == pid


VANISHES = """
import sys
from gymwire import ProxyEnv
env = ProxyEnv("pool", sys.argv[1])
env.reset()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_vanished_learner_frees_its_slot_within_the_lease(programs: Programs) -> None:
    _, url = programs.broker("tcp://127.0.0.1:*", "--lease", "1")
    agent = programs.env_agent(url, *POOL, "--max-sessions", "1")
    with subprocess.Popen(
        [sys.executable, "-c", VANISHES, url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as learner:
        assert learner.stdout is not None
        assert learner.stdout.readline() == "ready\n"
        with pytest.raises(NoFreeSlot):
            ProxyEnv("pool", url)
        learner.kill()
    with contextlib.closing(open_when_free(url)) as env:
        env.reset()
    agent.wait_for("session lost")


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
