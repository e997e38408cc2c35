"""The command line as a whole: help, errors, completion, and what it imports."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gymwire.cli import app, main
from gymwire.cli.app import COMMANDS, SHELLS
from gymwire.cli.interruption import Interrupted
from gymwire.cli.kinds import FLAG
from gymwire.cli.options import options_of
from gymwire.env_agent.workers import Supervisor
from tests.cli.reading import read
from tests.processes import ROOT


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GYMWIRE_"):
            monkeypatch.delenv(name)


# --- help -----------------------------------------------------------------------------------------


def test_the_command_alone_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"│ {name} " in shown for name in COMMANDS)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gymwire ")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_one_or_two_examples_that_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    examples = [
        line.strip().split()
        for line in capsys.readouterr().out.partition("Examples:")[2].splitlines()
        if line.strip()
    ]
    assert 1 <= len(examples) <= 2
    for program, command, *arguments in examples:
        assert (program, command) == ("gymwire", name)
        read(name, *arguments)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("lss", "gymwire: No such command 'lss'."),
        ("ls --wate 3", "gymwire ls: No such option '--wate'. Did you mean '--wait'?"),
        ("run cartpole --steps 5", "gymwire run: No such option '--steps'. See"),
        ("ls --wait nan", "gymwire ls: --wait: expected seconds, 0 or more, got 'nan'."),
        ("ls --timeout 0", "gymwire ls: --timeout: expected at least 0.5 seconds, got '0'."),
        ("train --steps 0", "gymwire train: --steps: expected a whole number of 1 or more"),
        ("train --steps many", "gymwire train: --steps: expected a whole number of 1 or more"),
        ("train --seed -1", "gymwire train: --seed: expected a whole number of 0 or more"),
        ("train --env-kwargs {", "gymwire train: --env-kwargs: this is not JSON"),
        ("train --env-kwargs " + "[" * 50_000, "gymwire train: --env-kwargs: this is nested too"),
        ("train --save " + "x" * 300, "gymwire train: --save: xxx"),
        ("train --env-kwargs []", "gymwire train: --env-kwargs: expected a JSON object"),
        ("train No/Address", "gymwire train: ADDRESS: 'No/Address' is not an address"),
        ("train a --address b", "gymwire train: Give either ADDRESS or --address, not both."),
        ("run line --episodes 0", "gymwire run: --episodes: expected a whole number of 1"),
        ("ls --broker here:5555", "gymwire ls: --broker: 'here:5555' is not a broker URL"),
        ("broker --bind here", "gymwire broker: --bind: 'here' is not a broker URL"),
        ("ls --broker tcp://here:80000", "gymwire ls: --broker: 'tcp://here:80000' has no valid"),
        ("broker --policy x.toml", "gymwire broker: --policy: A policy needs keys"),
        ("broker --key nowhere.key", "gymwire broker: --key: There is no key file at nowhere.key"),
        ("broker --log-level loud", "gymwire broker: --log-level: expected one of debug, info"),
        (
            "serve CartPole-v1 cartpole",
            (
                "gymwire serve: ADDRESS: 'CartPole-v1' is not an address: use lower-case letters, "
                "digits and . _ - in parts joined by /, such as 'cartpole' or 'lab/price-market' "
                "(at most 128 characters). The address comes first, then the environment: gymwire "
                "serve cartpole CartPole-v1."
            ),
        ),
        ("serve", "gymwire serve: Nothing to serve: pass ADDRESS and ENV, or --config FILE."),
        ("serve cartpole", "gymwire serve: No environment given for cartpole: pass ADDRESS and"),
        ("serve a Nope-v0", "gymwire serve: ENV: There is no environment 'Nope-v0'"),
        ("replay nowhere", "gymwire replay: FOLDER: There is no folder nowhere."),
        ("fleet up nowhere.toml", "gymwire fleet: FILE: There is no file nowhere.toml."),
        ("serve a --env Nope-v0", "gymwire serve: --env: There is no environment 'Nope-v0'"),
        ("serve a@abcdefgh234567ab CartPole-v1", "gymwire serve: ADDRESS: 'a@abcdefgh234567ab'"),
        ("serve a CartPole-v1 --direct x", "gymwire serve: --direct: expected 'host', 'never' or"),
        ("serve --config nowhere.toml", "gymwire serve: --config: There is no file nowhere.toml"),
        ("check", "gymwire check: No address given: pass ADDRESS, or set GYMWIRE_ADDRESS."),
        ("stop", "gymwire stop: No target given: pass TARGET"),
        ("serve a CartPole-v1 --wrap nowhere", "gymwire serve: --wrap nowhere: write module:"),
        ("serve a CartPole-v1 --wrap nope:X", "gymwire serve: --wrap nope:X: there is no module"),
        ("serve a CartPole-v1 --wrap ./x.py:X", "gymwire serve: --wrap ./x.py:X: there is no file"),
        ("serve a CartPole-v1 --wrap .a:X", "gymwire serve: --wrap .a:X: '.a' is not the name of"),
        ("serve a X --python p --spaces nope:X", "gymwire serve: --spaces nope:X: there is no mod"),
        ("serve a X --python p --spaces ./x.py:X", "gymwire serve: --spaces ./x.py:X: there is no"),
        (
            "serve a X --python p --spaces math:nope",
            "gymwire serve: --spaces math:nope: math has no 'nope'. Check the spelling.",
        ),
        (
            "serve a CartPole-v1 --spaces ./a.py:B",
            "gymwire serve: --spaces: Only an environment in",
        ),
        ("serve a CartPole-v1 --python p --wrap a:B", "gymwire serve: --wrap: Wrappers work with"),
        ("keygen", "gymwire keygen: No name given: pass NAME."),
        ("keygen a/b", "gymwire keygen: NAME: 'a/b'"),
        ("keygen a --role cook", "gymwire keygen: --role: expected one of broker, agent"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    arguments: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(text)
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("variable", "value", "command"),
    [
        ("GYMWIRE_WAIT", "soon", "serve a CartPole-v1"),
        ("GYMWIRE_JSON", "perhaps", "ls"),
        ("GYMWIRE_POLICY", "x.toml", "broker"),
        ("GYMWIRE_NAME", "a/b", "keygen"),
        ("GYMWIRE_DIR", os.devnull, "keygen a"),
        ("GYMWIRE_BIND", "tcp://127.0.0.1:5555 nonsense", "broker"),
        ("GYMWIRE_BROKER", "nonsense", "ls"),
        ("GYMWIRE_ADDRESS", "No/Address", "train"),
        ("GYMWIRE_KEY", "nowhere.key", "broker"),
        ("GYMWIRE_ENV", "Nope-v0", "serve a"),
        ("GYMWIRE_PLOT", "curves.doc", "train"),
    ],
)
def test_an_error_names_the_variable_that_the_value_came_from(
    variable: str,
    value: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(command.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"gymwire {command.split()[0]}: {variable}: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "keygen"])
def test_the_variable_of_a_flag_takes_1_or_0_and_the_error_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in options_of(name):
        if option.kind is FLAG and option.variable is not None:
            monkeypatch.setenv(option.variable, "maybe")
            assert main([name]) == 2
            said = f"gymwire {name}: {option.variable}: expected 1 or 0, got 'maybe'."
            assert capsys.readouterr().err.startswith(said)
            monkeypatch.delenv(option.variable)


def test_the_command_line_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMWIRE_BROKER", "ipc:///tmp/x")
    monkeypatch.setenv("GYMWIRE_ADDRESS", "lab/arm")
    assert read("ls", "--broker", "ipc:///tmp/y").broker == "ipc:///tmp/y"
    assert read("check", "other").address == "other"
    assert read("check").address == "lab/arm"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMWIRE_BROKER", "")
    assert read("ls").broker == "tcp://127.0.0.1:5555"


def test_a_variable_of_spaces_does_not_replace_several_values_by_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GYMWIRE_BIND", " ")
    assert read("broker").bind == ("tcp://127.0.0.1:5555",)


def test_workers_take_the_arguments_of_serve_in_every_form() -> None:
    for given in (["cartpole", "CartPole-v1"], ["--", "cartpole", "CartPole-v1"]):
        supervisor = Supervisor(["--workers", "2", *given], 2, 10.0)
        options = read("serve", *supervisor.arguments_of(1, "--report-once", "7"))
        assert (options.address, options.env) == ("cartpole", "CartPole-v1")
        assert (options.workers, options.worker, options.report_once) == (2, 1, 7)


def test_ctrl_c_while_modules_are_imported_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", interrupted)
    assert main(["ls"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_command_is_imported_gives_its_own_status(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(_: str) -> None:
        raise Interrupted(number)

    monkeypatch.setattr(app, "import_module", import_module)
    assert main(["ls"]) == 128 + number


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", ["", "--version", "ls --help", "--completion zsh"])
def test_an_output_that_cannot_be_written_is_one_line(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gymwire", *arguments.split()],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "gymwire: cannot write the output: No space left on device.\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.py"), "cannot open enough files"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "in system. Raise the limit"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "use /x/y: Permission denied"),
    ],
)
def test_an_error_of_the_system_is_one_line_and_not_the_outputs(
    error: OSError,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def import_module(_: str) -> None:
        raise error

    def open_file(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(app, "import_module", import_module)
    monkeypatch.setattr(os, "open", open_file)
    assert main(["ls"]) == 1
    line = capsys.readouterr().err
    assert text in line
    assert line.startswith("gymwire: cannot ")
    assert line.count("\n") == 1
    assert "output" not in line


def test_a_reader_that_ends_first_is_not_an_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "gymwire", "--version"],
        cwd=ROOT,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_variable_holds_several_values_with_spaces_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GYMWIRE_EXPOSE", "gravity length")
    assert read("serve").expose == ("gravity", "length")


def test_the_demo_address_is_the_default_of_train_only() -> None:
    assert (read("train").address, read("check").address) == ("price-market", None)


def test_serve_takes_address_and_environment_as_arguments() -> None:
    short = read("serve", "cartpole", "CartPole-v1")
    long = read("serve", "--address", "cartpole", "--env", "CartPole-v1")
    assert (short.address, short.env) == (long.address, long.env) == ("cartpole", "CartPole-v1")


# --- keygen ---------------------------------------------------------------------------------------


def test_an_existing_key_is_the_fault_of_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["keygen", "alice", "--dir", str(tmp_path)]
    assert [main(words), main(words)] == [0, 2]
    assert capsys.readouterr().err.startswith(f"gymwire keygen: NAME: {tmp_path}/alice.pub exists")


def test_keygen_says_what_each_role_does_with_its_public_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keygen", "broker", "--dir", str(tmp_path)]) == 0
    assert f"they pass it with --broker-key {tmp_path}/broker.pub" in capsys.readouterr().out
    assert main(["keygen", "alice", "--dir", str(tmp_path)]) == 0
    assert "if the broker has a policy, send the key to its operator" in capsys.readouterr().out
    assert main(["keygen", "hub", "--dir", str(tmp_path), "--role", "broker"]) == 0
    assert f"they pass it with --broker-key {tmp_path}/hub.pub" in capsys.readouterr().out


# --- completion -----------------------------------------------------------------------------------


def complete(shell: str, line: str) -> list[str]:
    """Return what a shell is offered at the end of a line."""
    words = line.split(" ")
    variables = {
        "_GYMWIRE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "gymwire"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return re.split(r"[,\t\n]", done.stdout)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_and_values(shell: str) -> None:
    assert set(COMMANDS) <= set(complete(shell, "gymwire "))
    assert any("--max-sessions" in line for line in complete(shell, "gymwire serve --max"))
    assert any("warning" in line for line in complete(shell, "gymwire ls --log-level w"))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_script_is_for_its_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("bash") is None and shell == "bash":
        pytest.skip("click asks bash for its version")
    assert main(["--completion", shell]) == 0
    assert f"_GYMWIRE_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "gymwire"
    program.write_text(f"#!/bin/sh\ncd '{ROOT}' && exec '{sys.executable}' -m gymwire \"$@\"\n")
    program.chmod(0o755)
    script = (
        'eval "$(gymwire --completion bash)"; COMP_WORDS=(gymwire serve --max-s); COMP_CWORD=2; '
        '_gymwire_completion gymwire; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["--max-sessions"], done.stderr


# --- modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("gymwire", ["ls"]),
        ("gymwire.broker", []),
        ("gymwire.env_agent", []),
        ("gymwire.learner_agent", ["ls"]),
        ("gymwire.protocol", ["keygen"]),
    ],
)
def test_every_part_runs_the_same_command(module: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = {"gymwire.broker": "broker", "gymwire.env_agent": "serve"}.get(module, arguments[:1])
    assert f"Usage: gymwire {name if isinstance(name, str) else name[0]}" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_does_not_wait_for_gymnasium(arguments: list[str]) -> None:
    code = (
        "import sys; from gymwire.cli import main; main(sys.argv[1:]); "
        "print({'numpy', 'gymnasium', 'zmq', 'structlog'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("set()\n")
