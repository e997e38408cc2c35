"""Test the script `run` in a folder of its own, with a pip that only records its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run"

# Stands in for the pip package. BEHAVIOUR=fail ends like a failed installation, and
# BEHAVIOUR=kill like one whose terminal was closed: it kills the script and all its children.
PIP = """
import os, pathlib, signal, sys
here = pathlib.Path(os.environ["PIP_NOTES"])
if sys.argv[1:] == ["--version"]:
    sys.exit(print(f"pip 99.0 from {os.path.dirname(__file__)} (python 3.11)"))
with here.open("a") as notes:
    print(sys.executable, *sys.argv[1:], file=notes)
print("Collecting numpy<3,>=2 (from gymwire==0.2.0)")
print("Processing /some/where/rich-15.0.0-py3-none-any.whl (from gymwire==0.2.0)")
print("Installing collected packages: numpy, rich")
print("a line that only pip prints")
match os.environ.get("BEHAVIOUR"):
    case "fail":
        sys.exit(1)
    case "kill":
        os.killpg(0, signal.SIGKILL)
"""

# What `python -m pip` amounts to where there is no pip.
NO_PIP = "raise SystemExit(1)\n"

TOOLS = ("cat", "cksum", "echo", "ln", "mkdir", "readlink", "rm", "sed", "sh")


@dataclass(frozen=True)
class Clone:
    """A fresh clone in miniature, and what its user has: a Python with a pip, a few tools."""

    root: Path
    path: Path
    site: Path
    notes: Path

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that the script sees; `extra` overrides them."""
        return {
            "PATH": str(self.path),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(self.site),
            "PIP_NOTES": str(self.notes),
            **extra,
        }

    def run(
        self, *command: str, script: Path | None = None, cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `./run COMMAND` to its end."""
        return subprocess.run(
            [script or self.root / "run", *command],
            env=self.environment(extra),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            start_new_session=True,
        )

    @property
    def installations(self) -> list[str]:
        """What pip was asked for so far, a line each time."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root = tmp_path / "a clone"
    root.mkdir()
    shutil.copy(SCRIPT, root / "run")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").touch()
    site = tmp_path / "site"
    put_pip(site, PIP)
    path = tmp_path / "bin"
    path.mkdir()
    for tool in TOOLS:
        real = shutil.which(tool)
        assert real is not None, f"these tests need {tool}"
        (path / tool).symlink_to(real)
    return Clone(root, path, site, tmp_path / "notes")


def put_pip(site: Path, program: str) -> None:
    package = site / "pip"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(program)


def put_program(clone: Clone, name: str, script: str) -> None:
    program = clone.path / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_first_start_installs_and_says_so(clone: Clone) -> None:
    done = clone.run("echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    first, *progress = done.stderr.splitlines()
    assert first.startswith("gymwire: making ")
    assert [line.split(maxsplit=1)[1] for line in progress] == [
        "numpy",
        "rich",
        "unpacking all of them",
    ]
    (line,) = clone.installations
    assert line.startswith(f"{clone.root}/.venv/bin/python ")
    assert line.endswith("--constraint constraints.txt --editable .[demo]")


@pytest.mark.parametrize(
    "command",
    [
        ("honcho", "start"),
        ("gymwire", "serve", "cartpole", "CartPole-v1"),
        ("python", "my_script.py"),
        ("python", "-m", "gymwire", "ls"),
        ("pip", "list"),
    ],
)
def test_the_demo_and_the_command_do_without_the_test_tools(
    clone: Clone, command: tuple[str, ...]
) -> None:
    put_program(clone, command[0], "echo up")
    clone.run(*command)
    assert clone.installations[0].endswith(" .[demo]")


@pytest.mark.parametrize(
    "command",
    [
        ("pytest",),
        ("pytest", "-n", "3", "tests/protocol"),
        ("ruff", "check", "."),
        ("mypy",),
        ("codespell",),
        ("twine", "check", "dist/x"),
        ("python", "-m", "pytest"),
        ("python", "-m", "build", "--no-isolation"),
        ("python", "-m", "tests.chaos", "--seconds", "600"),
        ("python", "-m", "benchmarks"),
    ],
)
def test_the_first_test_or_check_installs_its_tools(clone: Clone, command: tuple[str, ...]) -> None:
    put_program(clone, command[0], "echo up")
    clone.run(*command)
    assert clone.installations[0].endswith(" .[demo,test]")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_command_it_says_how_it_is_used(clone: Clone, words: tuple[str, ...]) -> None:
    done = clone.run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert clone.installations == []


def test_pip_installs_into_the_environment_and_nowhere_else(clone: Clone) -> None:
    clone.run("echo")
    put_program(clone, "pip", "echo another pip")
    done = clone.run("pip", "install", "a package", "-e", ".[peers]")
    assert done.returncode == 0
    assert "another pip" not in done.stdout
    assert clone.installations[1:] == [
        f"{clone.root}/.venv/bin/python --disable-pip-version-check install a package -e .[peers]"
    ]


def test_a_second_start_is_silent_and_starts_no_python(clone: Clone) -> None:
    clone.run("echo")
    done = clone.run("echo", "hello", PYTHON="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert len(clone.installations) == 1


def test_the_command_runs_in_the_environment(clone: Clone) -> None:
    done = clone.run("python", "-c", "import sys, os; print(sys.prefix, os.environ['VIRTUAL_ENV'])")
    assert done.stdout.strip() == f"{clone.root}/.venv {clone.root}/.venv"


def test_arguments_and_status_pass_through(clone: Clone) -> None:
    program = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = clone.run("python", "-c", program, "two  words", "*", "", "$HOME")
    assert done.returncode == 7
    assert done.stdout == "['two  words', '*', '', '$HOME']\n"


def test_the_caller_stays_in_its_folder_and_may_come_through_a_link(
    clone: Clone, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to("../a clone/run")
    program = "import os, sys; print(os.getcwd(), sys.prefix)"
    done = clone.run(
        "python", "-c", program, script=tmp_path / "elsewhere" / "link", cwd=tmp_path / "elsewhere"
    )
    assert done.stdout.strip() == f"{tmp_path}/elsewhere {clone.root}/.venv"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed(clone: Clone, name: str) -> None:
    clone.run("echo")
    (clone.root / name).write_text("# changed\n")
    done = clone.run("echo")
    assert done.stderr.startswith("gymwire: updating ")
    assert len(clone.installations) == 2
    assert clone.run("echo").stderr == ""


def test_the_documentation_installs_its_own_tools(clone: Clone) -> None:
    clone.run("sphinx-build", "docs", "build/docs")
    assert clone.installations[0].endswith(" .[demo,docs]")


def test_the_test_tools_are_added_to_what_the_demo_needs(clone: Clone) -> None:
    put_program(clone, "honcho", "echo up")
    put_program(clone, "pytest", "echo passed")
    assert clone.run("honcho").stdout == "up\n"
    done = clone.run("pytest")
    assert done.stdout == "passed\n"
    assert done.stderr.startswith(f"gymwire: installing into {clone.root}/.venv what pytest needs")
    assert clone.run("honcho").stderr == ""
    assert [line.rpartition(" ")[2] for line in clone.installations] == [".[demo]", ".[demo,test]"]


def test_a_failed_installation_shows_the_output_of_pip_and_starts_again(clone: Clone) -> None:
    failed = clone.run("echo", "hello", BEHAVIOUR="fail")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "a line that only pip prints" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("gymwire: the installation failed")
    (clone.root / ".venv" / "left over").touch()
    assert clone.run("echo", "hello").stdout == "hello\n"
    assert not (clone.root / ".venv" / "left over").exists()


def test_an_interrupted_installation_does_not_count(clone: Clone) -> None:
    assert clone.run("echo", "hello", BEHAVIOUR="kill").returncode != 0
    done = clone.run("echo", "hello")
    assert done.stdout == "hello\n"
    assert done.stderr.startswith("gymwire: making ")


def test_a_moved_folder_gets_a_new_environment(clone: Clone, tmp_path: Path) -> None:
    clone.run("echo")
    moved = clone.root.rename(tmp_path / "moved")
    done = clone.run("python", "-c", "import sys; print(sys.prefix)", script=moved / "run")
    assert done.stdout.strip() == f"{moved}/.venv"
    assert done.stderr.startswith("gymwire: making ")


def test_a_python_that_is_gone_is_replaced(clone: Clone) -> None:
    clone.run("echo")
    python = clone.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert clone.run("python", "-c", "print('back')").stdout == "back\n"


def test_first_starts_at_the_same_time_install_once(clone: Clone) -> None:
    starts = [
        subprocess.Popen(
            [clone.root / "run", "python", "-c", "print('up')"],
            env=clone.environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [start.communicate(timeout=60)[0] for start in starts]
    assert outputs == ["up\n"] * 3
    assert len(clone.installations) == 1


def test_a_python_that_is_too_old_is_named(clone: Clone) -> None:
    put_program(clone, "python3", "echo 3 9 /usr/bin/python3.9")
    done = clone.run("echo", PYTHON="")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer, but python3 is Python 3.9." in done.stderr
    assert not (clone.root / ".venv").exists()


def test_a_chosen_python_that_is_too_old_is_named_once(clone: Clone) -> None:
    put_program(clone, "my python", "echo 3 9 /usr/bin/python3.9")
    done = clone.run("echo", PYTHON="my python")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer, but my python is Python 3.9. Install" in done.stderr


def test_a_later_candidate_serves_where_python3_is_too_old(clone: Clone) -> None:
    put_program(clone, "python3", "echo 3 9 /usr/bin/python3.9")
    put_program(clone, "python3.12", f'exec {sys.executable} "$@"')
    assert clone.run("echo", "hello", PYTHON="").stdout == "hello\n"


def test_having_no_python_is_said(clone: Clone) -> None:
    done = clone.run("echo", PYTHON="")
    assert done.returncode == 1
    assert "found no Python" in done.stderr


def test_a_pip_that_is_only_a_command_serves(clone: Clone) -> None:
    put_program(clone, "pip", f"echo 'pip 22.0.2 from {clone.site}/pip (python 3.10)'")
    broken = clone.site.parent / "broken"
    put_pip(broken, NO_PIP)
    assert clone.run("echo", "hello", PYTHONPATH=str(broken)).stdout == "hello\n"
    assert len(clone.installations) == 1


def test_having_no_pip_is_said(clone: Clone) -> None:
    put_pip(clone.site, NO_PIP)
    done = clone.run("echo")
    assert done.returncode == 1
    assert "found no pip for " in done.stderr


def test_no_command_is_a_usage_error(clone: Clone) -> None:
    done = clone.run()
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert clone.installations == []


def test_an_unknown_command_is_named(clone: Clone) -> None:
    put_program(clone, "gymwire", '[ "$1" = serve ]')
    clone.run("true")
    done = clone.run("srve", "x")
    assert done.returncode == 127
    assert done.stderr.startswith("gymwire: there is no command 'srve' in ")
    assert "Did you mean" not in done.stderr


def test_a_command_of_gymwire_without_gymwire_gets_a_suggestion(clone: Clone) -> None:
    put_program(clone, "gymwire", '[ "$1" = serve ]')
    clone.run("true")
    done = clone.run("serve", "cartpole", "CartPole-v1")
    assert done.returncode == 127
    assert "there is no command 'serve' in " in done.stderr
    suggestion = f"Did you mean: {clone.root / 'run'} gymwire serve cartpole CartPole-v1\n"
    assert done.stderr.endswith(suggestion)
    assert done.stderr.count("\n") == 1


def test_the_script_is_executable_posix_shell() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")
