"""The factory of environments in another interpreter."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gymnasium import Space
from gymnasium.envs.registration import VectorizeMode
from gymnasium.vector import AutoresetMode

from gymwire.env_agent import closing, env_names
from gymwire.env_agent.adapters import pettingzoo, vectors
from gymwire.env_agent.adapters.openenv import SCHEME
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.factory import (
    NO_ARGUMENTS,
    NO_RENDER_MODE,
    UNKNOWN_KEYWORD,
    Env,
    Vector,
    only_vectors,
    vectorize_mode,
)
from gymwire.env_agent.failure_reports import CodeRaised, WrongKeywords, naming_known
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.interpreter import child_errors
from gymwire.env_agent.interpreter.child import making
from gymwire.env_agent.interpreter.child.failures import WrongTarget
from gymwire.env_agent.interpreter.child_env import ChildEnv, ChildVector
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.interpreter.child_process import ChildProcess, check_version
from gymwire.env_agent.interpreter.child_vector import (
    ONE,
    AdaptedOwnVector,
    OwnVector,
    Request,
    make_in,
)
from gymwire.env_agent.interpreter.process_watch import ProcessWatch
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import EnvKind
from gymwire.protocol.named_tuples import MAX_NAME

DEPRECATED = "DeprecatedEnv"  # gymnasium's and gym's error for an old version of an id
NOT_INSTALLED = "DependencyNotInstalled"  # theirs for a missing package
WRONG_TARGET = (
    "gymwire_child.failures",
    WrongTarget.__name__,
)  # the module and the class where it is raised
# The environment chooses the texts that are searched: no pattern may take quadratic time.
_MISSING_KEYWORD = re.compile(
    r"missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'"
)
CHECK = "Check env_kwargs."
_FILE = re.compile(r'^  File "(.*)", line', re.MULTILINE)
# The files that call the constructor.
_CALLERS = str(Path(making.__file__).resolve()), "registration.py"
# What follows the traceback of a cause.
_MORE = re.compile(r"^(The above|During handling of the above) exception", re.MULTILINE)

_Made = TypeVar("_Made", bound=Env | Vector)


class ChildFactory:
    """Makes environments in processes of another interpreter, one for each session.

    Args:
        address: the address to name in the log.
        env: what to make there: `Id-v0`, `module:Id-v0`, `module:MyEnv` or `./file.py:MyEnv`.
        python: the interpreter.
        kwargs: the operator's keyword arguments; those of the learner override them.
        spaces: names an object here with the environment's spaces (`module:NAME`), or None.
    """

    makes_elsewhere = True

    def __init__(
        self,
        address: str,
        env: str,
        python: str,
        kwargs: Mapping[str, Any],
        spaces: str | None = None,
    ) -> None:
        env_names.check_name(env)
        if env.startswith(SCHEME):
            raise ConfigurationError(f"{env}: the server runs the environment. Omit --python.")
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
        self._makes_vectors = False  # as far as `make_first` knows
        self._spaces = {} if spaces is None else given_spaces(spaces)
        # The agents of a pool may have the file in different folders, as in `factory.resolve`.
        module, _, attribute = env.rpartition(":")
        self.name = f"{Path(module).stem}:{attribute}" if module.endswith(".py") else env

    def make_first(self) -> Env | Vector:
        """Make one environment to learn its spaces: a vector of one if it only makes vectors.

        Raises ConfigurationError, or what its constructor raises.
        """
        check_version(self.python)
        try:
            made = self._in_process(self._load_and_make, self._env)
        except RaisedInChild as error:
            if type(error).__name__ == DEPRECATED and _names(error, self._env):
                raise ConfigurationError(f"{self._env}: {str(error).rstrip('.')}.") from None
            raise
        if not isinstance(made, OwnVector):
            return made
        self._makes_vectors = True
        return vectors.adapt(made, self.name, AdaptedOwnVector)

    def make(
        self, render_mode: str | None, kwargs: Mapping[str, Any], kind: str = EnvKind.ENV
    ) -> ChildEnv:
        """Make one environment of this kind, but not a vector.

        Raises ConfigurationError, or what its constructor raises.
        """
        if self._makes_vectors:
            raise only_vectors(self.name)
        return self._in_process(lambda process: self._make(process, render_mode, kwargs, kind))

    def make_vector(
        self,
        num_envs: int,
        mode: AutoresetMode,
        render_mode: str | None,
        kwargs: Mapping[str, Any],
    ) -> Vector:
        """Make a vector in one process as `Factory.make_vector` does; it raises what that raises.

        It consists of single environments unless the class or factory makes vectors, or a vector
        class with this autoreset mode is registered with the id.
        """
        text = {**self.kwargs, **kwargs}.get("vectorization_mode", VectorizeMode.VECTOR_ENTRY_POINT)
        wanted = None if vectorize_mode(text) is VectorizeMode.SYNC else mode.value

        def make(process: ChildProcess) -> Vector:
            make_one = partial(self._make, process, render_mode, kwargs, EnvKind.ENV)
            first = make_one(0, (num_envs, wanted, self._makes_vectors))
            if not isinstance(first, OwnVector):
                later = [partial(make_one, i) for i in range(1, num_envs)]
                return _of_single([lambda: first, *later], mode)
            own = vectors.adapt(first, self.name, AdaptedOwnVector)
            if first.is_registered and own.metadata["autoreset_mode"] != mode:
                if first.refused is not None:
                    raise child_errors.build(first.refused)
                made = _of_single([partial(make_one, i + 1) for i in range(num_envs)], mode)
                closing.close(own, address=self._address)
                return made
            vectors.check_mode(own, self.name, mode)
            return own

        return self._in_process(make)

    def _load_and_make(self, process: ChildProcess) -> ChildEnv:
        try:
            process.call(0, "load", self._env)
        except RaisedInChild as error:
            if _is_wrong_target(error):
                raise
            if type(error).__name__ == NOT_INSTALLED:
                raise ConfigurationError(f"{self._env} cannot be used yet: {error}") from None
            module = self._env.rpartition(":")[0]
            raise CodeRaised(f"{self._env}: importing {module!r} raised", error) from error
        return self._make(process, None, {}, None)

    def _in_process(self, make: Callable[[ChildProcess], _Made], given: str = "") -> _Made:
        """Return what `make` makes; `given`: the name for errors, with the operator's path."""
        process = ChildProcess(self._watch, self.python, self._address)
        try:
            return make(process)
        except BaseException as error:
            process.kill()
            if not _is_wrong_target(error):
                raise
            if given and ":" not in given:
                env_names.check_no_file(given)
            raise ConfigurationError(f"{given or self.name}: {error}.") from None

    def _make(
        self,
        process: ChildProcess,
        render_mode: str | None,
        kwargs: Mapping[str, Any],
        kind: str | None,
        index: int = 0,
        request: Request = ONE,
    ) -> ChildEnv:
        """Make an environment; `kind` None: of whatever kind it is."""
        merged = {**self.kwargs, **kwargs}
        merged.pop("vectorization_mode", None)
        known, spaces = kind or EnvKind.ENV, self._spaces
        try:
            made = make_in(process, index, self._env, render_mode, merged, spaces, known, request)
        except RaisedInChild as error:
            modes = set() if render_mode is None else {"render_mode"}
            wrong = _wrong_keyword(error, {*merged, *modes}, self._env)
            if not wrong:
                raise
            # NO_RENDER_MODE already says what to do; an operator gets the env agent's advice.
            if wrong != NO_RENDER_MODE:
                wrong = naming_known(wrong, self._keywords(process))
                wrong += "" if kind is None else f" {CHECK}"
            raise WrongKeywords(f"{self.name} {wrong}") from error
        if kind is not None and (not isinstance(made, OwnVector) or request is ONE):
            with closed_on_error([made]):
                if isinstance(made, OwnVector):
                    raise only_vectors(self.name)
                pettingzoo.check_kind(made.kind, kind, self.name)
        return made

    def _keywords(self, process: ChildProcess) -> str:
        """Return the keyword arguments that are known, as a text."""
        try:
            return ", ".join(process.call(0, "keywords", self._env))[:MAX_NAME]
        except (RaisedInChild, EnvironmentGone, TypeError):
            return ""


def _of_single(makers: list[Callable[[], Any]], mode: AutoresetMode) -> ChildVector:
    made = ChildVector(makers, mode)
    made.spec = made.envs[0].spec
    return made


def _is_wrong_target(error: BaseException) -> bool:
    return (type(error).__module__, type(error).__name__) == WRONG_TARGET


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
    found, pid = env_names.look_up(name, "--spaces "), os.getpid()
    if found is None:
        module, _, attribute = name.rpartition(":")
        raise ConfigurationError(
            f"--spaces {name}: {module} has no {attribute!r}. Check the spelling."
        )
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
