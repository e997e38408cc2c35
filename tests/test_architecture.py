"""Who may import what, and which modules are pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "broker", "env_agent", "learner_agent")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))

# No sockets, clocks, files, threads or global randomness: time comes in, what to send goes out.
PURE = [
    "protocol/messages.py", "protocol/dialogue.py", "protocol/values.py", "protocol/arrays.py",
    "protocol/faults.py", "protocol/spaces.py", "protocol/space_codecs.py", "protocol/codec.py",
    "protocol/address.py", "protocol/errors.py", "protocol/generators.py", "protocol/stamps.py",
    "broker/core.py", "broker/tables.py", "broker/events.py", "broker/connections.py",
    "broker/recovery.py", "broker/peers.py", "broker/sessions.py", "broker/session_messages.py",
    "broker/offers.py", "broker/directory.py", "broker/auth.py", "broker/quotas.py",
    "broker/rate_limit.py", "broker/refusals.py",
    "env_agent/session.py", "env_agent/watch.py", "learner_agent/client/timings.py",
    "learner_agent/client/requests.py", "learner_agent/client/exchange.py",
    "learner_agent/client/failures.py", "protocol/step_codec.py",
    "learner_agent/training/price_bandits.py",
]  # fmt: skip
# (who, what it imports all the same) → why that does no harm
EXCUSED = {
    (
        "broker/auth.py",
        "gymwire.protocol.security.keys",
    ): "asks whether a text is a key, and opens no file",
}
IMPURE = {
    "asyncio", "ctypes", "datetime", "io", "multiprocessing", "os", "pathlib", "queue", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile",
    "threading", "time", "zmq",
}  # fmt: skip
# Module-level randomness is global; a Random or a Generator that is handed in is not.
RANDOM = {"random": {"Random"}, "numpy.random": {"Generator", "BitGenerator"}}
ZMQ = {
    "protocol/transport/zmq_sockets.py": "makes the sockets",
    "protocol/security/keys.py": "makes and checks CURVE keys",
    "protocol/security/zap.py": "answers libzmq's questions about keys",
    "protocol/security/signing.py": "seals what agents tell each other through the broker",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add(node.module or "")
    return found


def roots(path: Path) -> set[str]:
    return {name.removeprefix("gymwire.").partition(".")[0] for name in imports(path)}


def dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_no_other_but_protocol(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    assert roots(path) & set(PACKAGES) <= {own, "protocol"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_the_tests_or_the_benchmarks(path: Path) -> None:
    assert not roots(path) & {"tests", "benchmarks", "examples"}


def test_only_the_transport_and_the_keys_know_zeromq() -> None:
    assert {name_of(path) for path in MODULES if "zmq" in roots(path)} <= set(ZMQ)


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_imports_nothing_impure(name: str) -> None:
    path = ROOT / name
    assert not roots(path) & IMPURE
    pure = {ROOT / one for one in PURE}
    for module in imports(path):
        ours = ROOT / (module.removeprefix("gymwire.").replace(".", "/") + ".py")
        fine = not ours.exists() or ours in pure or (name, module) in EXCUSED
        assert fine, f"{name} imports {module}, which is not pure"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_uses_no_global_randomness_and_opens_nothing(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in RANDOM:
            assert {alias.name for alias in node.names} <= RANDOM[node.module]
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in ("open", "input", "print", "exec", "eval"), f"{name}: {called}()"
            home, _, attribute = called.removeprefix("np.").rpartition(".")
            if home == "random":
                seeded = attribute == "default_rng" and node.args
                assert seeded or attribute in {"Random", "Generator"}, f"{name}: {called}()"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_can_unpickle(path: Path) -> None:
    assert not roots(path) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_drawer_for_odds_and_ends(package: str) -> None:
    names = {path.stem for path in (ROOT / package).rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}
