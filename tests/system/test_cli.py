"""The commands as a person calls them: processes, their output and exit status."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import prefork
from tests.processes import PATIENCE_S, ROOT, WRITES_PROGRESS, Programs, programs
from tests.sampling import thorough

TIMEOUT_S = 90.0  # of a command that ends by itself, on a machine that may be busy
NOBODY = "tcp://127.0.0.1:1"
OFFERS = "".join(
    f'[[offer]]\naddress = "{address}"\nenv = "{env}"\n{more}'
    for address, env, more in (
        ("price-market", "gymwire/PriceMarket-v0", ""),
        ("cartpole", "CartPole-v1", ""),
        ("single", "CartPole-v1", "max_sessions = 1\n"),
        ("frozen-lake", "FrozenLake-v1", "env_kwargs = {is_slippery = false}\n"),
        ("blackjack", "Blackjack-v1", ""),
        ("unmakeable", "tests.odd_envs:Unmakeable", ""),
    )
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a broker for this module alone, so that `ls` shows only its addresses."""
    config = tmp_path_factory.mktemp("cli") / "offers.toml"
    config.write_text(OFFERS)
    with programs() as started:
        url = started.broker()[1]
        started.env_agent(url, "--threads", "1", "--config", str(config))
        yield url


def call(broker: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONWARNINGS": "ignore"}
    variables.pop("GYMWIRE_ADDRESS", None)
    arguments = ("gymwire", *arguments, "--broker", broker)
    return prefork.run(arguments, timeout=TIMEOUT_S, env=variables)


def test_train_learns_prints_saves_and_draws(broker: str, tmp_path: Path) -> None:
    plot, saved = tmp_path / "market.png", tmp_path / "market.npz"
    done = call(
        broker, "train", "--steps", "600", "--seed", "1", "--plot", str(plot), "--save", str(saved)
    )
    assert done.returncode == 0, done.stderr
    assert "PriceAgent after 600 steps at price-market, seed 1" in done.stdout
    assert "in the first tenth" in done.stdout
    assert "[info] training" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    with np.load(saved) as learned:
        assert learned["a"].shape == (10, 100)


def test_train_says_with_which_command_to_play_the_same(broker: str, tmp_path: Path) -> None:
    saved = tmp_path / "my lake.npz"
    given = ('--env-kwargs={"map_name": "8x8"}', "--steps", "100", "--save", str(saved))
    done = call(broker, "train", "frozen-lake", *given)
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout.partition("Play with it: ")[2].partition("\n")[0])
    assert command[0] == "gymwire"
    played = prefork.run((*command, "--episodes", "1"), timeout=TIMEOUT_S, env={**os.environ})
    assert "1 episode: return" in played.stdout, played.stderr


def test_train_without_an_address_asks_for_one_if_nobody_offers_its_default(
    programs: Programs,
) -> None:
    _, url = programs.broker()
    done = call(url, "train")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("gymwire train: No address given: pass ADDRESS, or set GYMWIRE_ADDRESS.")
    assert "No env agent offers 'price-market'" in line


def test_swapping_the_address_swaps_the_task(broker: str) -> None:
    done = call(broker, "train", "frozen-lake", "--steps", "300", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "QLearner after 300 steps at frozen-lake" in done.stdout
    assert "states seen" in done.stdout


def test_ls_shows_each_address_on_a_line(broker: str) -> None:
    done = call(broker, "ls")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "frozen-lake" in line)
    for part in ("FrozenLake-v1", "Discrete(16)", "Discrete(4)", "0/64", "ready"):
        assert part in line


def test_ls_says_that_nothing_is_on_offer(programs: Programs) -> None:
    _, url = programs.broker()
    done = call(url, "ls")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Nothing is on offer at {url}.")


def test_check_runs_the_checker_and_measures(broker: str) -> None:
    done = call(broker, "check", "cartpole", "--steps", "50")
    assert done.returncode == 0, done.stderr
    assert "Gymnasium's checker: passed, 2 warnings" in done.stdout
    assert "Latency of 50 steps" in done.stdout


def test_check_shows_where_the_time_of_a_step_goes(broker: str) -> None:
    done = call(broker, "check", "cartpole", "--steps", "50")
    assert done.returncode == 0, done.stderr
    assert "Where the time goes (50 relayed steps)" in done.stdout
    for part in ("network", "broker", "queue", "environment", "codec", "total"):
        assert any(line.split()[:1] == [part] for line in done.stdout.splitlines())


def test_check_needs_only_a_single_slot(broker: str) -> None:
    done = call(broker, "check", "single", "--steps", "50", "--wait", "600")  # not for itself
    assert done.returncode == 0, done.stderr
    assert "not checked: render modes and closing" in done.stdout


def test_run_plays_and_renders(broker: str) -> None:
    done = call(broker, "run", "frozen-lake", "--episodes", "2", "--seed", "3", "--render")
    assert done.returncode == 0, done.stderr
    assert "SFFF" in done.stdout
    assert "episode    2" in done.stdout
    assert "2 episodes: return" in done.stdout


JSON_KEYS = {
    ("ls",): {"broker", "offers"},
    ("check", "cartpole", "--steps", "20"): {
        "address", "broker", "passed", "failure", "warnings", "not_checked", "latency", "timings",
    },
    ("run", "frozen-lake", "--episodes", "1", "--render"): {
        "address", "broker", "seed", "policy", "complete", "episodes", "summary", "video",
    },
    ("train", "--steps", "50"): {
        "address", "broker", "learner", "seed", "steps", "complete", "seconds", "steps_per_s",
        "episodes", "reward_per_step", "episode_return", "recent_return", "saved", "plot",
    },
}  # fmt: skip


@pytest.mark.parametrize("arguments", JSON_KEYS, ids=" ".join)
def test_json_is_one_object_on_standard_output(broker: str, arguments: tuple[str, ...]) -> None:
    done = call(broker, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == JSON_KEYS[arguments]
    assert done.stdout.count("\n") == 1


def test_json_contains_the_error(broker: str) -> None:
    done = call(broker, "run", "nowhere", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "AddressUnknown"
    assert done.stderr.startswith("gymwire run: ")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["train", "frozen-lak"], 1, "Did you mean 'frozen-lake'?"),
        (["check", "nowhere"], 1, "No env agent offers 'nowhere'"),
        (["run", "nowhere"], 1, "Offered: blackjack, cartpole, frozen-lake, price-market"),
        (["train", "blackjack"], 2, "No learner fits"),
        (["train", "No/Address"], 2, "is not an address"),
        (["train", "--steps", "0"], 2, "1 or more"),
        (
            ["train", "--plot", "nowhere/file.png"],
            2,
            "--plot: nowhere/file.png: there is no folder nowhere",
        ),
        (["train", "--load", "nowhere.npz"], 2, "--load: Cannot read nowhere.npz"),
        (["check"], 2, "ADDRESS"),
        (["run", "cartpole", "--render"], 2, "human, rgb_array. Use --video FILE.mp4"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    broker: str, arguments: list[str], status: int, said: str
) -> None:
    done = call(broker, *arguments)
    lines = [line for line in done.stderr.splitlines() if not line.endswith("display.")]
    assert done.returncode == status
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"gymwire {arguments[0]}: ")
    assert said in lines[0]
    assert done.stdout == ""


def test_no_broker_is_an_error_for_every_command() -> None:
    for arguments in (["train"], ["ls"], ["check", "cartpole"], ["run", "cartpole"]):
        done = call(NOBODY, *arguments, "--timeout", "0.5")
        assert done.returncode == 1
        assert done.stderr.startswith(f"gymwire {arguments[0]}: No broker answers at {NOBODY}.")
        assert "Traceback" not in done.stderr


WRONG_KWARGS = ("run", "frozen-lake", "--env-kwargs", '{"is_slipperi": 1}')


def test_a_wrong_keyword_argument_is_an_error_of_one_line(broker: str) -> None:
    done = call(broker, *WRONG_KWARGS)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gymwire run: The environment at 'frozen-lake' could not be made")
    assert "FrozenLake-v1 takes no keyword argument 'is_slipperi'; it takes " in line
    assert "is_slippery" in line
    assert line.endswith("(--log-level debug shows the traceback.)")


def test_log_level_debug_shows_the_traceback_of_an_environment(
    broker: str,
) -> None:
    done = call(broker, *WRONG_KWARGS, "--log-level", "debug")
    assert done.returncode == 1
    said, _, trace = done.stderr.partition("\n\n")
    assert "is_slipperi" in said
    assert "Traceback" not in said
    assert trace.startswith("    Traceback at the env agent:\n")
    assert "gymwire/cli" not in done.stderr


def test_the_error_of_a_lost_agent_says_what_a_person_can_do(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "mortal", "--env", "tests.odd_envs:Mortal")
    done = call(url, "run", "mortal", "--seed", "1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gymwire run: The session at 'mortal'")
    assert "Run the command again when an env agent offers the address" in line
    assert "reset()" not in line


@pytest.mark.parametrize("direct", ["never", "host"])
def test_the_error_of_an_environment_that_ended_points_to_the_env_agents_log(
    programs: Programs, direct: str
) -> None:
    broker, url = programs.broker()
    mortal = ("--address", "mortal", "--env", "tests.odd_envs:Mortal", "--python", sys.executable)
    agent = programs.env_agent(url, *mortal, "--direct", direct)
    done = call(url, "run", "mortal", "--seed", "1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "SIGKILL" in line
    assert line.endswith(
        "The env agent is still running; its log may say why the environment ended."
    )
    assert "SIGKILL" in str(agent.wait_for("session lost")["why"])
    if direct == "never":
        assert "SIGKILL" in str(broker.wait_for("session lost")["why"])


def test_the_error_of_a_stopped_session_names_the_operator_only(programs: Programs) -> None:
    _, url = programs.broker()
    programs.env_agent(url, "--address", "lake", "--env", "FrozenLake-v1")
    arguments = ("lake", "--steps", "1000000", "--broker", url, "--log-format", "json")
    learner = programs.start("gymwire", "train", *arguments)
    learner.wait_for("training started")
    [session] = json.loads(call(url, "ps", "--json").stdout)["sessions"]
    assert call(url, "stop", session["id"]).returncode == 0
    assert learner.wait() == 1
    assert "Ask the operator why before you run the command again." in learner.output[-1]
    assert "--wait" not in learner.output[-1]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), thorough(signal.SIGTERM, 143)]
)
def test_an_interrupted_training_reports_what_it_has_learnt(
    broker: str, number: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_PROGRESS, "train", "--steps", "60000", "--broker", broker],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            while "training progress" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(number)
            out, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == status
    assert "in the first tenth" in out
    assert "Traceback" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_training_whose_report_cannot_be_written_is_saved(broker: str, tmp_path: Path) -> None:
    path = tmp_path / "learned.npz"
    arguments = ("train", "--steps", "50", "--save", str(path), "--broker", broker)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gymwire", *arguments], cwd=ROOT, stdout=full, check=False
        )
    assert done.returncode == 1
    assert path.exists()


def test_the_learner_waits_for_broker_and_address(programs: Programs, tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/broker"
    learner = programs.start(
        "gymwire", "train", "late", "--broker", url, "--wait", "30", "--steps", "50"
    )
    programs.broker(url)
    programs.env_agent(url, "--address", "late", "--env", "FrozenLake-v1")
    assert learner.wait() == 0, learner.output
