"""Test which module may import what, which modules are pure, and how large they may get."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gymwire"
# The program for other interpreters, where its package has another name.
PROGRAM = PACKAGE / "env_agent/interpreter/child"

# What the modules of a part may import besides their own part. `gymwire` stands for the modules
# at the top of the package.
MAY_IMPORT = {
    "protocol": [],
    "broker": ["protocol"],
    "env_agent": ["protocol"],
    "learner_agent": ["protocol"],
    "gateway": ["protocol", "learner_agent.client", "learner_agent.proxies"],
    "conformance": ["protocol"],
    "fleet": ["protocol", "env_agent.config", "env_agent.signals", "env_agent.workers"],
    "cli": [
        *("gymwire", "protocol", "broker", "env_agent", "learner_agent", "gateway", "conformance"),
        "fleet",
    ],
    "gymwire": ["protocol", "env_agent", "learner_agent"],
}
PARTS = sorted(MAY_IMPORT.keys() - {"gymwire"})

# A pure module uses no sockets, clocks, files, threads, logs or global randomness: time comes in
# as an argument, and what to send goes out as a return value. Every module is pure, except these.
IMPURE = {
    "__init__.py": "loads the public names",
    "__main__.py": "starts the command",
    "*/__main__.py": "starts the command",
    "sb3.py": "loads a proxy",
    "otel.py": "loads a proxy",
    "aio.py": "loads a proxy",
    "registration.py": "registers environments with Gymnasium",
    "cli/*.py": "reads the command line and prints",
    "protocol/ending_signals.py": "reads handlers of signals",
    "protocol/extras.py": "looks where gymwire is installed",
    "protocol/files.py": "reads files",
    "protocol/logs.py": "writes the log",
    "protocol/outside_exceptions.py": "knows which modules are Python's own",
    "protocol/recordings.py": "reads files",
    "protocol/security/*.py": "reads key files and makes CURVE sockets",
    "protocol/transport/*.py": "sends and receives",
    "broker/local_channels.py": "listens on Unix sockets",
    "broker/policy_file.py": "reads the policy",
    "broker/server.py": "receives, asks the core, and sends",
    "env_agent/adapters/*.py": "make environments",
    "env_agent/agent.py": "runs the serving loops",
    "env_agent/bad_frames.py": "logs invalid frames and sends replies",
    "env_agent/closing.py": "closes environments and logs their failures",
    "env_agent/config.py": "reads the configuration",
    "env_agent/crew.py": "starts threads, and wakes them",
    "env_agent/environments.py": "makes environments and logs their failures",
    "env_agent/event_loop.py": "runs environments in an event loop",
    "env_agent/env_names.py": "imports the user's code",
    "env_agent/factory.py": "makes environments",
    "env_agent/forks.py": "ends a process",
    "env_agent/interpreter/child/agents.py": "imports PettingZoo",
    "env_agent/interpreter/child/asynchronous.py": "runs an event loop",
    "env_agent/interpreter/child/channel.py": "reads and writes pipes",
    "env_agent/interpreter/child/dm_envs.py": "runs an environment",
    "env_agent/interpreter/child/failures.py": "asks values for their text",
    "env_agent/interpreter/child/generators.py": "imports NumPy",
    "env_agent/interpreter/child/hosted.py": "runs an environment",
    "env_agent/interpreter/child/hosted_vector.py": "runs a vector",
    "env_agent/interpreter/child/libraries.py": "looks at what is imported",
    "env_agent/interpreter/child/making.py": "makes environments",
    "env_agent/interpreter/child/packing.py": "asks values for their text",
    "env_agent/interpreter/child/program.py": "is a program",
    "env_agent/interpreter/child/spaces.py": "asks whether NumPy is imported",
    "env_agent/interpreter/child/targets.py": "imports the user's code",
    "env_agent/interpreter/child/vectors.py": "makes vectors",
    "env_agent/interpreter/child_env.py": "runs an environment in a process",
    "env_agent/interpreter/child_factory.py": "starts processes",
    "env_agent/interpreter/child_process.py": "starts a process and waits for it",
    "env_agent/interpreter/child_vector.py": "runs a vector in a process",
    "env_agent/interpreter/process_watch.py": "starts processes and logs what they print",
    "env_agent/jobs.py": "runs environments and logs bugs",
    "env_agent/lifecycle.py": "opens and logs sessions",
    "env_agent/loop.py": "receives, steps and sends",
    "env_agent/memory.py": "changes settings of the process",
    "env_agent/many_threads.py": "changes settings of the process",
    "env_agent/unfinished.py": "has a lock, because all loops share it",
    "env_agent/progress_reporter.py": "is a thread with a socket",
    "env_agent/recorded_session.py": "passes frames to the recorder",
    "env_agent/recorder.py": "writes files in a thread",
    "env_agent/registration.py": "logs what the broker accepts",
    "env_agent/requests.py": "runs environments and logs their failures",
    "env_agent/runners/*.py": "run environments",
    "env_agent/sessions.py": "opens and logs sessions",
    "env_agent/shared_reading.py": "receives for other threads",
    "env_agent/signals.py": "handles signals in a thread",
    "env_agent/simulation/simulation.py": "hands requests from one thread to another",
    "env_agent/slot.py": "runs an environment",
    "env_agent/timed_steps.py": "runs an environment and takes times",
    "env_agent/transports.py": "listens for direct sessions",
    "env_agent/watching.py": "renders environments and sends frames",
    "env_agent/workers.py": "starts processes",
    "env_agent/wrappers.py": "wraps environments",
    "conformance/agent.py": "sends and waits",
    "conformance/as_broker.py": "sends and waits",
    "conformance/as_learner.py": "sends and waits",
    "conformance/checks/*.py": "wait for an env agent",
    "conformance/session.py": "waits for replies",
    "conformance/suite.py": "opens sockets and reads the clock",
    "conformance/wires.py": "sends and receives",
    "fleet/commands.py": "waits, and reads the clock",
    "fleet/description.py": "reads files",
    "fleet/engine.py": "loads engines",
    "fleet/local.py": "starts a process and asks it",
    "fleet/processes.py": "starts processes",
    "fleet/ray_driver.py": "starts processes on Ray",
    "fleet/ray_engine.py": "starts a process and asks it",
    "fleet/slurm.py": "writes files and submits jobs",
    "fleet/slurm_job.py": "runs a process",
    "fleet/slurm_queue.py": "runs commands",
    "fleet/state.py": "writes files",
    "fleet/supervisor.py": "is a program",
    "gateway/*.py": "serves web requests",
    "learner_agent/adapters/otel.py": "steps a proxy",
    "learner_agent/adapters/sb3.py": "is a proxy",
    "learner_agent/aio/calls.py": "awaits in an event loop, and keeps stacks for its thread",
    "learner_agent/aio/connection.py": "sends and receives",
    "learner_agent/aio/proxy_env.py": "reads variables of the process and waits for replies",
    "learner_agent/client/connection.py": "sends and receives",
    "learner_agent/client/connection_use.py": "asks which thread this is",
    "learner_agent/client/direct.py": "dials the env agent",
    "learner_agent/client/moving.py": "waits for replies",
    "learner_agent/client/observing.py": "asks a broker",
    "learner_agent/client/open_sessions.py": "draws nonces and waits for replies",
    "learner_agent/client/plain_group.py": "waits for replies",
    "learner_agent/client/readiness.py": "looks at sessions",
    "learner_agent/client/session.py": "waits for replies",
    "learner_agent/client/session_timers.py": "lets sessions send again what is due",
    "learner_agent/client/session_group.py": "waits for replies",
    "learner_agent/client/steps_ahead.py": "waits for replies",
    "learner_agent/client/threads.py": "looks at other threads and waits for them",
    "learner_agent/client/truncating_group.py": "waits for replies",
    "learner_agent/client/truncating_plain_group.py": "waits for replies",
    "learner_agent/client/waiting.py": "polls sockets",
    "learner_agent/proxies/*.py": "read variables of the process and wait for replies",
    "learner_agent/training/learners.py": "saves and loads learners",
    "learner_agent/training/ppo.py": "saves models and measures time",
    "learner_agent/training/report.py": "prints and draws",
    "learner_agent/training/task.py": "measures time",
}
IMPURE_LIBRARIES = {
    "asyncio", "ctypes", "datetime", "fcntl", "io", "logging", "multiprocessing", "os", "pathlib",
    "queue", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "structlog",
    "subprocess", "sys", "tempfile", "threading", "time", "zmq",
}  # fmt: skip
# (a pure module, the impure one that it imports) → why that does no harm
EXCUSED = {
    ("broker/auth.py", "protocol/security/keys.py"): "checks whether a text is a key",
    ("env_agent/description.py", "env_agent/factory.py"): "names its types",
    ("env_agent/failure_reports.py", "protocol/outside_exceptions.py"): (
        "asks where an exception is from"
    ),
    ("env_agent/hosted_vector.py", "env_agent/closing.py"): "closes environments",
    ("learner_agent/client/session_token.py", "protocol/security/signing.py"): "names its types",
    **{
        (f"protocol/{name}.py", "protocol/outside_exceptions.py"): "asks where an exception is from"
        for name in (
            *("codec", "dialogue", "generators", "layout_functions", "space_codecs", "spaces"),
            *("values", "vector_infos"),
        )
    },
}
# Randomness at module level is global; a Random or a Generator that is passed in is not.
RANDOM = {"random": {"Random"}, "numpy.random": {"Generator", "BitGenerator"}}

ZMQ = {
    "protocol/transport/*.py": "makes the sockets",
    "protocol/security/keys.py": "makes and checks CURVE keys",
    "protocol/security/zap.py": "answers libzmq's questions about keys",
    "protocol/security/signing.py": "signs what agents send each other through the broker",
}

MAX_CLASS_LINES, MAX_MODULE_LINES = 300, 400


class Import(NamedTuple):
    module: str
    names: tuple[str, ...]  # empty: `import module`
    for_types: bool  # under `if TYPE_CHECKING`


def python_files(folder: Path) -> list[Path]:
    """Return all modules in the folder, also behind the links in gymwire/."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(".py")
    )


MODULES = python_files(PACKAGE)
OTHERS = [
    path for name in ("tests", "benchmarks", "examples") for path in python_files(ROOT / name)
]


def name_of(path: Path) -> str:
    """Return `broker/core.py` for gymwire/broker/core.py, `tests/wire.py` for itself."""
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


def dotted_name(path: Path) -> str:
    """Return `gymwire.broker` for gymwire/broker/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BY_DOTTED_NAME = {dotted_name(path): path for path in MODULES}


def part_of(path: Path) -> str:
    """Return the part that a module of the package belongs to."""
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else "gymwire"


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[Import]:
    """Return all imports of a file, also those inside functions."""
    package = dotted_name(path.with_name("__init__.py"))
    return list(_imports(parse(path), package, for_types=False))


def _imports(tree: ast.AST, package: str, for_types: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from (Import(alias.name, (), for_types) for alias in node.names)
            case ast.ImportFrom():
                names = tuple(alias.name for alias in node.names)
                parts = [package] * node.level + [node.module or ""]
                yield Import(".".join(filter(None, parts)), names, for_types)
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                yield from _imports(node, package, for_types=True)
            case _:
                yield from _imports(node, package, for_types)


def imported_modules(path: Path) -> dict[Path, bool]:
    """Map each module of the package that a file imports to whether only types need it."""
    found: dict[Path, bool] = {}
    for module, names, for_types in imports(path):
        targets = [f"{module}.{name}" for name in names] or [module]
        for target in targets:
            ours = BY_DOTTED_NAME.get(target) or BY_DOTTED_NAME.get(module)
            if ours is not None and ours != path:
                found[ours] = for_types and found.get(ours, True)
    return found


def libraries(path: Path) -> set[str]:
    """Return the top-level packages that a file imports at run time."""
    return {found.module.partition(".")[0] for found in imports(path) if not found.for_types}


def listed(name: str, patterns: dict[str, str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def called_name(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def each(paths: Iterable[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Make one test of a check of many files; it names each file that fails."""

    def decorate(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            faults = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    faults.append(f"{name_of(path)}: {error}")
            if faults:
                pytest.fail("\n\n".join(faults))

        return test

    return decorate


# Which part imports which


@each([*MODULES, *OTHERS])
def test_a_part_is_imported_by_its_full_name(path: Path) -> None:
    for node in ast.walk(parse(path)):
        may_be_relative = path.parent == PROGRAM and path.name != "__main__.py"
        if isinstance(node, ast.ImportFrom):
            assert node.level <= may_be_relative, "imports are absolute"
    bare = {found.module.partition(".")[0] for found in imports(path)} & set(PARTS)
    assert not bare, f"write `from gymwire.{bare.pop()} import …`"


def test_no_command_or_text_names_a_part_without_gymwire() -> None:
    bare = re.compile(rf"python3? -m ({'|'.join(PARTS)})\b")
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Procfile", *MODULES, *OTHERS]
    named = [
        f"{path.name}: {match[0]}" for path in texts for match in bare.finditer(path.read_text())
    ]
    assert not [one for one in named if not one.startswith("CHANGELOG.md")]


@each(MODULES)
def test_imports_point_down(path: Path) -> None:
    own = part_of(path)
    allowed = [own, *MAY_IMPORT[own]]
    if path.name == "__main__.py":
        allowed.append("cli")  # `gymwire broker` runs the command
    for target in imported_modules(path):
        assert target.name != "__main__.py", f"{name_of(target)} is a program, not a module"
        if target == PACKAGE / "__init__.py":
            continue  # see the next test
        name = dotted_name(target).removeprefix("gymwire.")
        fine = part_of(target) in allowed or any(
            name == one or name.startswith(f"{one}.") for one in allowed
        )
        assert fine, f"{own} must not import {dotted_name(target)}"


@each(MODULES)
def test_parts_take_only_the_version_from_the_public_names(path: Path) -> None:
    names = {name for module, names, _ in imports(path) if module == "gymwire" for name in names}
    modules = {name for name in names if f"gymwire.{name}" in BY_DOTTED_NAME}
    assert part_of(path) == "gymwire" or names - modules <= {"__version__"}


def test_there_are_no_import_cycles() -> None:
    # Imports in functions count, too; those for the type checker never run. gymwire/__init__.py
    # is left out: it loads the public names only when they are used.
    facade = PACKAGE / "__init__.py"
    graph = {
        name_of(path): [
            name_of(target)
            for target, for_types in imported_modules(path).items()
            if target != facade and not for_types
        ]
        for path in MODULES
        if path != facade
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@each(MODULES)
def test_the_package_imports_neither_tests_nor_benchmarks(path: Path) -> None:
    assert not libraries(path) & {"tests", "benchmarks", "examples"}


def test_only_the_transport_and_the_keys_know_zeromq() -> None:
    users = [name_of(path) for path in MODULES if "zmq" in libraries(path)]
    assert [name for name in users if not listed(name, ZMQ)] == []


@each(MODULES)
def test_nothing_can_unpickle(path: Path) -> None:
    assert not libraries(path) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


# Pure modules

PURE = [path for path in MODULES if not listed(name_of(path), IMPURE)]


@each(PURE)
def test_a_pure_module_imports_nothing_impure(path: Path) -> None:
    assert not libraries(path) & IMPURE_LIBRARIES
    name = name_of(path)
    for target, for_types in imported_modules(path).items():
        other = name_of(target)
        fine = for_types or not listed(other, IMPURE) or (name, other) in EXCUSED
        assert fine, f"{name} imports {other}, which is not pure"


@each(PURE)
def test_a_pure_module_uses_no_global_randomness_and_opens_nothing(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module in RANDOM:
            assert {alias.name for alias in node.names} <= RANDOM[node.module]
        if isinstance(node, ast.Call):
            called = called_name(node.func)
            forbidden = {"open", "input", "print", "exec", "eval"}
            if name_of(path) == "protocol/layout_functions.py":
                forbidden.remove("exec")  # of source text that it has made
            assert called not in forbidden, f"{called}()"
            module, _, attribute = called.removeprefix("np.").rpartition(".")
            if module == "random":
                seeded = attribute == "default_rng" and node.args
                assert seeded or attribute in {"Random", "Generator"}, f"{called}()"


def test_each_module_that_may_be_impure_is() -> None:
    shells = [path for path in MODULES if listed(name_of(path), IMPURE)]
    impure = {
        name_of(path)
        for path in shells
        if libraries(path) & IMPURE_LIBRARIES or set(shells) & imported_modules(path).keys()
    }
    assert [one for one in IMPURE if not any(fnmatch(name, one) for name in impure)] == []


# The header of a frame and the sizes in it

FRAMES = {"data", "frame"}  # what variables with a frame are called


@each([path for path in MODULES if name_of(path) != "protocol/codec.py"])
def test_offsets_and_sizes_have_names(path: Path) -> None:
    named = {
        id(inner)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for inner in ast.walk(node.value)
        if isinstance(node.value, ast.Constant | ast.BinOp)
    }
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value == 16:
            assert id(node) in named, f"line {node.lineno}: a bare 16"
        if isinstance(node, ast.Subscript) and called_name(node.value).rpartition(".")[2] in FRAMES:
            raw = [one for one in ast.walk(node.slice) if isinstance(one, ast.Constant)]
            assert not [one for one in raw if one.value], f"line {node.lineno}: a raw offset"


# Size


@cache
def code_lines(path: Path) -> frozenset[int]:
    """Return the numbers of the lines that hold code, not comments, docstrings or nothing."""
    source = path.read_text(encoding="utf-8")
    no_code = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in no_code:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())) as docstring, *_]:
                    assert docstring.end_lineno is not None
                    lines.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return frozenset(lines)


@cache
def classes() -> dict[str, tuple[int, list[str]]]:
    """Map the name of each class to its number of code lines and the names of its bases."""
    found = {}
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                span = range(node.lineno, node.end_lineno + 1)
                bases = [called_name(base).rpartition(".")[2] for base in node.bases]
                found[f"{name_of(path)}:{node.name}"] = (len(code_lines(path) & {*span}), bases)
    return found


@each(MODULES)
def test_a_module_has_at_most_400_lines_of_code(path: Path) -> None:
    assert len(code_lines(path)) <= MAX_MODULE_LINES


USED_ALONE = {"BrokerConnection", "RemoteSession"}


@each(MODULES)
def test_a_class_has_at_most_300_lines_of_code(path: Path) -> None:
    own = [name for name in classes() if name.startswith(f"{name_of(path)}:")]
    assert [name for name in own if lines_with_mixins(name) > MAX_CLASS_LINES] == []


@cache
def heirs() -> Counter[str]:
    """Count the classes that have each name among the names of their bases."""
    return Counter(base for _, bases in classes().values() for base in set(bases))


def lines_with_mixins(name: str) -> int:
    """Count the lines of a class and of each base that no other class has.

    Such a base is part of the class: a mixin makes nothing smaller. But a class that is also used
    without its heir is none.
    """
    own, bases = classes()[name]
    for other in classes():
        base = other.rpartition(":")[2]
        if base in bases and base not in USED_ALONE and heirs()[base] == 1 and other != name:
            own += lines_with_mixins(other)
    return own


def test_no_module_is_named_utils_or_similar() -> None:
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
