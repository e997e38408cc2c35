"""The factory of environments in another interpreter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gymnasium import Space
from gymnasium.vector import AutoresetMode

from gymwire.env_agent.adapters import pettingzoo
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.factory import NO_ARGUMENTS, NO_RENDER_MODE, UNKNOWN_KEYWORD, look_up
from gymwire.env_agent.failure_reports import CodeRaised, WrongKeywords
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.interpreter.child import NotFound
from gymwire.env_agent.interpreter.child_env import ChildEnv, ChildVector
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.interpreter.child_process import ChildProcess, check_version
from gymwire.env_agent.interpreter.process_watch import ProcessWatch
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import EnvKind

DEPRECATED = "DeprecatedEnv"  # gymnasium's and gym's error for an old version of an id
NOT_FOUND = ("__main__", NotFound.__name__)  # the module and the class where it is raised
# The environment chooses the texts that are searched: no pattern may take quadratic time.
_MISSING_KEYWORD = re.compile(
    r"missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'"
)
CHECK = "Check env_kwargs (--env-kwargs at the env agent)."
MAKES_VECTORS = "needs the keyword argument 'num_envs'"
_FILE = re.compile(r'^  File "(.*)", line', re.MULTILINE)
# Where the constructor is called, and what comes behind the traceback of a cause.
_CALLERS = "child.py", "registration.py"
_MORE = re.compile(r"^(The above|During handling of the above) exception", re.MULTILINE)

_Made = TypeVar("_Made", ChildEnv, ChildVector)


class ChildFactory:
    """Makes environments in processes of another interpreter, one for each session.

    Args:
        address: the address to name in the log.
        env: what to make there: `Id-v0`, `module:Id-v0`, `module:MyEnv` or `./file.py:MyEnv`.
        python: the interpreter.
        kwargs: the operator's keyword arguments; those of the learner override them.
        spaces: names an object here with the environment's spaces (`module:NAME`), or None.
    """

    makes_vectors = False
    makes_elsewhere = True

    def __init__(
        self,
        address: str,
        env: str,
        python: str,
        kwargs: Mapping[str, Any],
        spaces: str | None = None,
    ) -> None:
        self._address = address
        self._env = env
        # Before the module of the spaces is imported, which may change the working directory.
        self._watch = ProcessWatch(address)
        if not python or "\0" in python:
            raise ConfigurationError(
                f"--python {python!r} is not the name of a program. Give the name or the path of a "
                f"Python interpreter."
            )
        try:
            # `Path` alone makes ./python the program python of PATH.
            self.python = str(Path(python).expanduser().absolute()) if "/" in python else python
        except (RuntimeError, OSError) as error:  # there is no such user or working directory
            why = str(error).rstrip(".")
            raise ConfigurationError(f"--python {python}: {why}. Write the whole path.") from None
        self.kwargs = dict(kwargs)
        self._spaces = {} if spaces is None else given_spaces(spaces)
        # The agents of a pool may have the file in different folders, as in `factory.resolve`.
        module, _, attribute = env.rpartition(":")
        self.name = f"{Path(module).stem}:{attribute}" if module.endswith(".py") else env

    def make_first(self) -> ChildEnv:
        """Make one environment to learn its spaces.

        Raises ConfigurationError, or what its constructor raises.
        """
        check_version(self.python)
        try:
            return self._in_process(lambda process: self._make(process, 0, None, {}, None))
        except RaisedInChild as error:
            if (type(error).__module__, type(error).__name__) == NOT_FOUND:
                raise ConfigurationError(f"{self._env}: {error}.") from None
            if type(error).__name__ == DEPRECATED and _names(error, self._env):
                raise ConfigurationError(f"{self._env}: {str(error).rstrip('.')}.") from None
            raise

    def make(
        self, render_mode: str | None, kwargs: Mapping[str, Any], kind: str = EnvKind.ENV
    ) -> ChildEnv:
        """Make one environment of this kind.

        Raises ConfigurationError, or what its constructor raises.
        """
        return self._in_process(lambda process: self._make(process, 0, render_mode, kwargs, kind))

    def make_vector(
        self,
        num_envs: int,
        mode: AutoresetMode,
        render_mode: str | None,
        kwargs: Mapping[str, Any],
    ) -> ChildVector:
        """Make a vector of environments in one process; it raises what `make` raises."""
        kwargs = {k: v for k, v in kwargs.items() if k != "vectorization_mode"}

        def make(process: ChildProcess) -> ChildVector:
            makers = [
                lambda i=i: self._make(process, i, render_mode, kwargs, EnvKind.ENV)
                for i in range(num_envs)
            ]
            vector = ChildVector(makers, mode)
            vector.spec = vector.envs[0].spec
            return vector

        return self._in_process(make)

    def _in_process(self, make: Callable[[ChildProcess], _Made]) -> _Made:
        process = ChildProcess(self._watch, self.python, self._address)
        try:
            return make(process)
        except BaseException:
            process.kill()
            raise

    def _make(
        self,
        process: ChildProcess,
        index: int,
        render_mode: str | None,
        kwargs: Mapping[str, Any],
        kind: str | None,
    ) -> ChildEnv:
        """Make an environment; `kind` None: of whatever kind it is."""
        merged = {**self.kwargs, **kwargs}
        try:
            made = ChildEnv(
                process, index, self._env, render_mode, merged, self._spaces, kind or EnvKind.ENV
            )
        except RaisedInChild as error:
            modes = set() if render_mode is None else {"render_mode"}
            wrong = _wrong_keyword(error, {*merged, *modes}, self._env)
            if not wrong:
                raise
            if wrong == MAKES_VECTORS:
                raise ConfigurationError(
                    f"{self.name} {wrong}: it makes vectors of its own. With --python, a vector "
                    f"consists of single environments. Give a function that makes one of them, or "
                    f"leave --python out."
                ) from error
            # NO_RENDER_MODE already says what to do; an operator gets the env agent's advice.
            if wrong != NO_RENDER_MODE:
                wrong += "." if kind is None else f". {CHECK}"
            raise WrongKeywords(f"{self.name} {wrong}") from error
        if kind is not None:
            with closed_on_error([made]):
                pettingzoo.check_kind(made.kind, kind, self.name)
        return made


def _names(error: RaisedInChild, env: str) -> bool:
    """Return whether an error is about the registered id `env`, not about one that it makes."""
    name = env.rpartition(":")[2].rpartition("-v")[0].rpartition("/")[2]
    return bool(name) and name in str(error)


def _wrong_keyword(error: RaisedInChild, given: set[str], env: str) -> str:
    """Return which of the keyword arguments is unknown, or which other one is missing; else ""."""
    if type(error).__name__ != "TypeError":
        return ""
    text = str(error)
    unknown, bare = UNKNOWN_KEYWORD.search(text), NO_ARGUMENTS.search(text)
    is_bare = bare is not None and re.fullmatch(rf".*[:.]{bare[1]}", env) is not None
    if "render_mode" in given and (is_bare or (unknown and unknown[1] == "render_mode")):
        return NO_RENDER_MODE
    if unknown and unknown[1] in given:
        return f"takes no keyword argument {unknown[1]!r}"
    files = _FILE.findall(_MORE.split(error.remote_traceback)[0])
    missing = _MISSING_KEYWORD.search(text)
    # The same text may be about a call that the constructor makes.
    if missing and files and files[-1].endswith(_CALLERS):
        return f"needs the keyword argument {missing[1]!r}"
    return ""


def given_spaces(name: str) -> dict[str, Space[Any]]:
    """Return the spaces that `module:NAME` or `./file.py:NAME` gives in this interpreter.

    It is a class or an object with the attributes observation_space and action_space, a dict with
    these keys, or a function that returns one of these. Raises ConfigurationError.
    """
    if ":" not in name:
        raise ConfigurationError(f"--spaces {name}: write module:NAME or ./file.py:NAME.")
    names = ("observation_space", "action_space")
    found, pid = look_up(name), os.getpid()
    try:
        if callable(found) and not hasattr(found, "observation_space"):
            found = found()
        spaces = {
            one: found.get(one) if isinstance(found, Mapping) else getattr(found, one, None)
            for one in names
        }
    except (Exception, SystemExit) as error:
        end_if_forked(pid, error)
        raise CodeRaised(f"--spaces {name} raised", error) from error
    for one, space in spaces.items():
        if not isinstance(space, Space):
            raise ConfigurationError(
                f"--spaces {name}: its {one} is {type(space).__name__}, not a gymnasium.Space. It "
                f"must have the attributes or keys {' and '.join(names)}."
            )
    return spaces  # type: ignore[return-value]
