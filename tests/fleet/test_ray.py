"""A fleet on a simulated Ray cluster of several nodes: healed, moved, scaled, drained."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymwire.protocol.errors import Refused
from gymwire.protocol.security import keys
from tests.chaos.fleet import until
from tests.fleet.engine_tests import (  # noqa: F401 - pytest collects them
    go_on,
    heals,
    play,
    test_a_session_may_go_on_for_the_grace_period_and_is_lost_then,
    test_an_agent_that_is_killed_is_started_again,
    test_another_process_finds_the_fleet_again,
    test_scaling_under_load_loses_no_session,
    test_up_waits_until_all_agents_are_listed,
)
from tests.fleet.fleets import PATIENCE_S, Learner, Shell, write
from tests.processes import ROOT, Programs

with warnings.catch_warnings(action="ignore"):  # its own, at import
    pytest.importorskip(
        "ray", reason="Ray is not installed; .ci/groups ray installs it", exc_type=ImportError
    )
    import ray
    from ray._private import state
    from ray.cluster_utils import Cluster

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(600),  # Ray starts its own processes
]
CPUS = 3  # that each simulated node claims to have
FULL_DISK = """
import tempfile

make = tempfile.mkdtemp

def mkdtemp(*arguments, **keywords):
    if keywords.get("prefix") == "gymwire-fleet-":
        raise OSError(28, "No space left on device")
    return make(*arguments, **keywords)

tempfile.mkdtemp = mkdtemp
"""  # for the processes of actors


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for agents, and two nodes; each test leaves it so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(2):
            cluster.add_node(num_cpus=CPUS)
        patch.setenv("RAY_ADDRESS", cluster.address)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def shell(cluster: Any, tmp_path: Path, broker_url: str) -> Iterator[Shell]:
    """The shell of a fleet of two agents, which is down after the test."""
    shell = Shell(write(tmp_path, broker_url, "count = 2", grace_s=1), "ray")
    yield shell
    shell.run("down")
    assert shell.agents() == {}


def variable(pid: int, name: str) -> str:
    """Return a variable of a process's environment."""
    environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next(line for line in environ if line.startswith(f"{name}=")).partition("=")[2]


def actor_of(pid: int) -> int:
    """Return the process id of an agent's actor."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def node_of(name: str) -> str:
    """Return the id of the node on which Ray has placed an agent."""
    rows = (row for row in state.actors().values() if row["Name"] == name)
    return next(str(row["Address"]["NodeID"]) for row in rows if row["State"] == "ALIVE")


def test_agents_are_spread(shell: Shell) -> None:
    assert len({node_of(one["name"]) for one in shell.run("up")["agents"]}) == 2


def test_an_agent_ends_with_its_actor_which_ray_starts_again(
    shell: Shell, learners: list[Learner], broker_url: str
) -> None:
    shell.run("up")
    play(learners, broker_url, 3)
    before = shell.agents()
    name, agent = next(iter(before.items()))
    os.kill(actor_of(agent["pid"]), signal.SIGKILL)
    heals(shell, before, name)
    assert not Path(f"/proc/{agent['pid']}").exists()
    go_on(learners)


def test_agents_of_a_lost_node_move_to_others_and_new_nodes_are_used(
    cluster: Any, shell: Shell, learners: list[Learner], broker_url: str
) -> None:
    extra = cluster.add_node(num_cpus=CPUS)
    shell.run("up")
    play(learners, broker_url, 3)
    shell.run("scale", "--agents", "6")
    assert shell.status == 0
    before = shell.agents()
    lost = [name for name in before if node_of(name) == extra.node_id]
    assert lost
    cluster.remove_node(extra)
    heals(shell, before, *lost)
    go_on(learners)
    found = shell.run("scale", "--agents", "7", "--wait", "1")  # there is room for six
    assert shell.status == 1
    assert [one["state"] for one in found["agents"]] == [*["ready"] * 6, "pending"]
    assert "no node with room" in shell.errors
    added = cluster.add_node(num_cpus=CPUS)
    until(lambda: shell.ready() == 7, "the new node is used", PATIENCE_S)
    go_on(learners)
    shell.run("scale", "--agents", "0")
    until(lambda: shell.agents() == {}, "all agents have ended", PATIENCE_S)
    cluster.remove_node(added)
    shell.run("up")  # the learners wait for it


def test_an_agent_that_ray_cannot_create_says_why(
    cluster: Any, tmp_path: Path, broker_url: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    agents = f"count = 2\nruntime_env = {{ env_vars = {{ PYTHONPATH = '{path}' }} }}"
    shell = Shell(write(tmp_path, broker_url, agents), "ray")
    with pytest.raises(Refused, match=r"Ray cannot start .*/[01]: .*No space left on device"):
        shell.run("up")
    assert shell.agents() == {}


def test_labels_choose_the_node(cluster: Any, tmp_path: Path, broker_url: str) -> None:
    place = "count = 1\nplace = { zone = 'b' }"
    shell = Shell(write(tmp_path, broker_url, place), "ray")
    [agent] = shell.run("up", "--wait", "1")["agents"]
    assert (shell.status, agent["state"]) == (1, "pending")
    node = cluster.add_node(num_cpus=CPUS, labels={"zone": "b"})
    shell.run("up")
    assert shell.status == 0
    assert node_of(agent["name"]) == node.node_id
    shell.run("down")
    cluster.remove_node(node)


def test_a_key_reaches_agents_and_no_log_of_ray(
    cluster: Any, tmp_path: Path, programs: Programs
) -> None:
    broker_key, _ = keys.generate("broker", tmp_path)
    keys.generate("agent", tmp_path)
    _, url = programs.broker("tcp://127.0.0.1:*", "--key", str(broker_key))
    more = 'key = "agent.key"\nbroker_key = "broker.pub"'
    shell = Shell(write(tmp_path, url, "count = 1", more=more), "ray")
    agent = shell.run("up")["agents"][0]
    assert shell.status == 0
    secret = keys.load(tmp_path / "agent.key").secret
    copy = Path(variable(agent["pid"], "GYMWIRE_KEY"))
    assert secret in copy.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o600
    os.kill(agent["pid"], signal.SIGKILL)  # failures are logged
    heals(shell, shell.agents() | {agent["name"]: agent}, agent["name"])
    healed = shell.agents()
    os.kill(actor_of(healed[agent["name"]]["pid"]), signal.SIGKILL)
    until(lambda: not copy.exists(), "the copy of a killed actor was removed", PATIENCE_S)
    heals(shell, healed, agent["name"])
    copy = Path(variable(shell.agents()[agent["name"]]["pid"], "GYMWIRE_KEY"))
    assert copy.exists()
    shell.run("down")
    assert shell.status == 0
    until(lambda: not copy.exists(), "the copy of the key was removed", PATIENCE_S)
    logs = Path(cluster.head_node.get_logs_dir_path())
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if secret in path.read_bytes()]
