"""The program in another interpreter: it executes the env agent's requests, one after another."""

from __future__ import annotations

import faulthandler
import importlib
import inspect
import os
import signal
import sys
import threading
import time
from typing import Any

from .agents import ENV, PARALLEL, AECByAgent, DictSpace, ParallelByAgent, converted, kind_of
from .channel import Channel
from .dm_envs import DmEnv
from .failures import WrongTarget, describe_exception, is_not
from .frames import MAX_ANSWER, RAISED, STEP, VALUE
from .hosted import Hosted
from .hosted_vector import HostedOwnVector
from .libraries import use_numpy, vector_classes
from .making import make
from .packing import pack, unpack
from .targets import keywords, load
from .vectors import make_vector, makes_vectors

PARENT_CHECK_S = 1.0


class Child:
    """The environments of this process."""

    def __init__(self) -> None:
        self._envs: dict[int, Hosted] = {}
        self._targets: dict[str, Any] = {}
        self._uses_numpy = False
        self._pid = os.getpid()

    def execute(self, kind: int, index: int, body: bytes) -> tuple[int, bytes]:
        """Execute a request; return the kind and the body of its answer."""
        try:
            if kind == STEP:
                kind, answer = self._envs[index].step_compact(body)
            else:
                kind, answer = VALUE, pack(self._call(index, *unpack(body)))
        except BaseException as error:
            if os.getpid() != self._pid:  # the environment has forked, and its copy ends
                raise
            kind, answer = RAISED, pack(describe_exception(error))
        if len(answer) > MAX_ANSWER:
            too_large = ValueError(
                f"The answer of the environment's process has {len(answer)} bytes; the maximum is "
                f"{MAX_ANSWER}. The request has been executed. Let the environment return less at "
                f"once."
            )
            return RAISED, pack(describe_exception(too_large))
        return kind, answer

    def _call(self, index: int, name: str, args: list[Any]) -> Any:
        if name == "make":
            return self._make(index, *args)
        if name in ("load", "keywords"):
            target = self._target(*args)
            return keywords(target) if name == "keywords" else None
        env = self._envs[index]
        if name == "close":
            del self._envs[index]
        return getattr(env, name)(*args)

    def _target(self, name: str) -> Any:
        """Return what `load` does, and know whether it uses numpy."""
        if name not in self._targets:
            target = self._targets[name] = load(name)
            # Makers by id need numpy. An environment that does not use it returns lists.
            self._uses_numpy = isinstance(target, str) or "numpy" in sys.modules
            use_numpy()
        return self._targets[name]

    def _make(
        self, index: int, name: str, mode: Any, kwargs: bytes, kind: str, given: Any, vector: Any
    ) -> Any:
        """Make an environment, or a vector if that is what the class or factory makes.

        `vector`: the number of environments, the autoreset mode (None: any), and whether the
        class or factory is known to make vectors.
        """
        made, facts, target = None, None, self._target(name)
        num_envs, autoreset, is_known = vector
        if is_known or makes_vectors(target) or (isinstance(target, str) and autoreset):
            made, facts = make_vector(target, mode, unpack(kwargs), num_envs, autoreset)
        if facts is None:
            made = make(target, mode, unpack(kwargs), kind)
        if facts is not None or isinstance(made, vector_classes()):
            env: Any = HostedOwnVector(made, mode, given)
        else:
            env = self._hosted(made, mode, kind, given)
        self._envs[index] = env
        return dict(env.facts(), uses_numpy=self._uses_numpy, **(facts or {}))

    @staticmethod
    def _hosted(made: Any, mode: Any, kind: str, given: Any) -> Hosted:
        for name in ("reset", "step"):
            if inspect.isclass(made) or not callable(getattr(made, name, None)):
                raise WrongTarget(is_not(made, "an environment", name))
        inner = getattr(made, "unwrapped", made)  # wrappers of gymnasium 0.29 warn when asked
        is_of_dm_env = hasattr(inner, "observation_spec") and hasattr(inner, "action_spec")
        made = converted(DmEnv(made) if is_of_dm_env else made, kind)
        has = kind_of(made)
        if has != ENV:
            made = (ParallelByAgent if has == PARALLEL else AECByAgent)(made, DictSpace)
        return Hosted(made, mode, given)


def _end_with(parent: int) -> None:
    """Make this process end when its env agent does, also in a call that never returns."""
    try:
        ctypes: Any = importlib.import_module("ctypes")
        dies_with_parent = ctypes.CDLL(None).prctl(1, 9, 0, 0, 0) == 0  # PR_SET_PDEATHSIG, SIGKILL
    except (ImportError, OSError, AttributeError):
        dies_with_parent = False

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    if not dies_with_parent:
        threading.Thread(target=watch, daemon=True).start()
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def main(requests: int, answers: int, parent: int) -> None:
    """Execute the requests read from one descriptor until it closes; write replies to the other."""
    _end_with(parent)
    # SLURM and systemd send their signals to all processes of a job, but the env agent decides when
    # this one ends. Programs that it starts would inherit SIG_IGN.
    for ending in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ending, lambda number, frame: None)
    os.set_inheritable(requests, False)
    os.set_inheritable(answers, False)
    faulthandler.enable()
    sys.path.insert(0, "")
    channel = Channel(requests, answers)
    channel.answer(VALUE, 0, 0, pack([sys.version, sys.implementation.name]))
    channel.flush()
    channel.serve(Child().execute)
