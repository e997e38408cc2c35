"""Factories: make environments from what a user writes after `--env`."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec, VectorizeMode, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent import closing, env_names, event_loop
from gymwire.env_agent.adapters import foreign, openenv, pettingzoo, same_step, vectors
from gymwire.env_agent.closing import closed_on_error
from gymwire.env_agent.failure_reports import WrongKeywords, naming_known
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.env_agent.wrappers import Wrapper, wrap
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import MULTI_AGENT, EnvKind

Env = gymnasium.Env[Any, Any]
Vector = VectorEnv[Any, Any, Any]
_OWN = VectorizeMode.VECTOR_ENTRY_POINT
# What Python says of a class without a constructor.
NO_ARGUMENTS = re.compile(r"^(\w+)\(\) takes no arguments$")
UNKNOWN_KEYWORD = re.compile(r"got an unexpected keyword argument '(\w+)'")
NO_RENDER_MODE = (
    "takes no render_mode. Open it without one (gymwire run: without --render or --video). If it "
    "has another keyword argument for rendering, pass that in env_kwargs (--env-kwargs)."
)
_FROM_LEARNER = {"autoreset_mode", "num_envs", "render_mode"}  # they have options of their own
_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@dataclass(frozen=True)
class Factory:
    """Makes environments: from a Gymnasium id, or from the user's own class or function.

    Attributes:
        name: the Gymnasium id, or the name of the class or function.
        make_one: the class or function, or None for a Gymnasium id.
        kwargs: the operator's keyword arguments; those of the learner override them.
        wrappers: what each environment is wrapped in, the first one innermost.
        seen: what earlier calls found out: "vector": it makes vectors; "foreign": environments of
            old gym or dm_env.
    """

    name: str
    make_one: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Sequence[Wrapper] = ()
    seen: dict[str, bool] = field(default_factory=dict, compare=False)

    def make(
        self, render_mode: str | None, kwargs: Mapping[str, Any], kind: str = EnvKind.ENV
    ) -> Env:
        """Make one environment of this kind, but not a vector.

        Raises ConfigurationError, or what its constructor raises.
        """
        merged = {**self.kwargs, **kwargs}
        if self.make_one is None:
            if kind in MULTI_AGENT:
                raise pettingzoo.has_one_agent(self.name)
            merged.pop("vectorization_mode", None)
            if render_mode is not None:  # some constructors do not take it
                merged["render_mode"] = render_mode
            with self._naming_keywords(merged):
                return wrap(_make_registered(self.name, **merged), self.wrappers)
        if self.makes_vectors:
            raise only_vectors(self.name)
        make = self.make_one
        if isinstance(make, pettingzoo.EnvModule):
            make = make.constructor(kind)
        if render_mode is not None and ("foreign" not in self.seen or _takes(make, "render_mode")):
            merged["render_mode"] = render_mode
        with self._naming_keywords(merged):
            made = event_loop.create(make, merged)
        return self._accept(made, render_mode, kind)

    def _accept(self, made: Any, render_mode: str | None, kind: str) -> Env:
        """Return what the class or function has made, wrapped, as an environment of this kind.

        Raises ConfigurationError, or what a wrapper's constructor raises; what was made is closed
        then.
        """
        if kind in MULTI_AGENT or pettingzoo.kind_of(made) in MULTI_AGENT:
            return pettingzoo.adapt(wrap(made, self.wrappers), kind, self.name)
        with closed_on_error([made]):
            vectors.check_of_gym(made, self.name)
            if (adapted := foreign.adapt(made, render_mode)) is not made:
                self.seen["foreign"], made = True, adapted
            # EnvPool's vectors are both.
            if not isinstance(made, gymnasium.Env) or isinstance(made, VectorEnv):
                raise ConfigurationError(
                    f"{self.name} returned {type(made).__name__}, not a gymnasium.Env. Check the "
                    f"class or factory that the env agent was started with."
                )
        return wrap(made, self.wrappers)

    def _check_no_wrappers(self) -> None:
        if self.wrappers:
            raise ConfigurationError(
                f"{self.name} makes vectors, which --wrap cannot wrap. Wrap them in a factory of "
                f"your own."
            )

    @contextmanager
    def _naming_keywords(self, given: Mapping[str, Any], *, vector: bool = False) -> Iterator[None]:
        """Name the keyword arguments in the TypeError about an unknown or a missing one."""
        try:
            yield
        except TypeError as error:
            wrong = self._wrong_keywords(str(error), given, vector=vector)
            if not wrong:
                raise
            if wrong.endswith(NO_RENDER_MODE):
                raise WrongKeywords(wrong) from error
            known = ", ".join(self._keywords(vector=vector))
            raise WrongKeywords(naming_known(wrong, known)) from error

    def _wrong_keywords(self, text: str, given: Mapping[str, Any], *, vector: bool) -> str:
        """Return what is wrong with these keyword arguments according to the text of a TypeError.

        "" if the text is about another call.
        """
        unknown = UNKNOWN_KEYWORD.search(text)
        bare = NO_ARGUMENTS.search(text)
        is_bare = bare is not None and bare[1] == self._constructor_name(vector=vector)
        if "render_mode" in given and (is_bare or (unknown and unknown[1] == "render_mode")):
            return f"{self.name} {NO_RENDER_MODE}"
        if unknown and unknown[1] in given:
            return f"{self.name} takes no keyword argument {unknown[1]!r}"
        missing = [
            name
            for name, one in self._keywords(vector=vector).items()
            if one.default is one.empty and name not in given
        ]
        return f"{self.name} needs the keyword argument {missing[0]!r}" if missing else ""

    def _constructor(self, *, vector: bool) -> Callable[..., Any] | None:
        if self.make_one is not None:
            return self.make_one
        spec = gymnasium.spec(self.name)
        entry_point = spec.vector_entry_point if vector else spec.entry_point
        return None if entry_point is None else _loaded(entry_point)

    def _constructor_name(self, *, vector: bool) -> str:
        return getattr(self._constructor(vector=vector), "__name__", "")

    def _keywords(self, *, vector: bool) -> dict[str, inspect.Parameter]:
        """Return the keyword arguments that the environment accepts; empty if unknown.

        `vector`: those of the vector class that is registered with it.
        """
        make = self._constructor(vector=vector)
        registered = {} if self.make_one is not None else gymnasium.spec(self.name).kwargs
        if make is None or _takes_any(make):
            return {}
        return {
            name: one.replace(default=registered.get(name, one.default))
            for name, one in _parameters(make).items()
            if name not in _FROM_LEARNER and one.kind in _BY_NAME
        }

    def make_first(self) -> Env | Vector:
        """Make one environment to learn its spaces: a vector of one if it only makes vectors."""
        if self.make_one is not None and self.makes_vectors:
            with self._naming_keywords(self.kwargs):
                return _from_factory(self.make_one, self.name, 1, None, dict(self.kwargs))
        if self.make_one is None:
            return self.make(None, {})
        with self._naming_keywords(self.kwargs):
            made = event_loop.create(self.make_one, self.kwargs)
        if isinstance(made, VectorEnv):
            with closed_on_error([made]):
                self._check_no_wrappers()
            self.seen["vector"] = True
            return vectors.adapt(made, self.name)
        made = self._accept(made, None, pettingzoo.kind_of(made))
        with closed_on_error([made]):
            self._check_spaces(made)
        return made

    def _check_spaces(self, made: Env) -> None:
        for name in ("observation_space", "action_space"):
            space = getattr(made, name, None)
            if not isinstance(space, Space):
                kind = type(space).__name__
                raise ConfigurationError(
                    f"{self.name}: its {name} is {kind}, not a gymnasium.Space. Set it in the "
                    f"constructor of {type(made).__name__}."
                )

    @property
    def makes_elsewhere(self) -> bool:
        """Whether its environments run elsewhere, and may end by themselves."""
        return self.name.startswith(openenv.SCHEME)

    @property
    def makes_vectors(self) -> bool:
        """Whether this is a VectorEnv class, or a function that makes vectors.

        It makes them if it has a parameter `num_envs`, or has made one.
        """
        make = self.make_one
        if "vector" in self.seen:
            return True
        if isinstance(make, type):
            return issubclass(make, VectorEnv)
        return make is not None and _takes(make, "num_envs")

    def make_vector(
        self,
        num_envs: int,
        mode: AutoresetMode,
        render_mode: str | None,
        kwargs: Mapping[str, Any],
    ) -> Vector:
        """Make a vector as `gymnasium.make_vec` does: of the environment's own vector class.

        Use a SyncVectorEnv if there is no such class, if its only autoreset mode is not `mode`, or
        if `vectorization_mode="sync"` is among the keyword arguments. Raises ConfigurationError, or
        what a constructor raises, for example if it takes an autoreset mode but rejects this one.
        """
        merged = {**self.kwargs, **kwargs}
        if render_mode is not None:
            merged["render_mode"] = render_mode
        wanted = _wanted(self.name, merged, self.wrappers) if self.make_one is None else None
        with self._naming_keywords(merged, vector=wanted is _OWN):
            if wanted is not None:
                return _registered(self.name, wanted, num_envs, mode, merged, self.wrappers)
            if self.makes_vectors:
                assert self.make_one is not None
                self._check_no_wrappers()
                return _from_factory(self.make_one, self.name, num_envs, mode, merged)
        return _sync([lambda: self.make(render_mode, kwargs)] * num_envs, mode)


def _registered(
    name: str,
    wanted: VectorizeMode,
    num_envs: int,
    mode: AutoresetMode,
    kwargs: dict[str, Any],
    wrappers: Sequence[Wrapper],
) -> Vector:
    kwargs.pop("vectorization_mode", None)
    if wanted is _OWN:
        made = _own_vector(name, num_envs, mode, kwargs)
        if made.metadata["autoreset_mode"] == mode:
            with closed_on_error([made]):
                vectors.check_request(made, name, num_envs, mode, takes_num_envs=True)
            return made
        closing.close(made)
    return _sync([lambda: wrap(_make_registered(name, **kwargs), wrappers)] * num_envs, mode)


def _wanted(name: str, kwargs: Mapping[str, Any], wrappers: Sequence[Wrapper]) -> VectorizeMode:
    """Return how to make a vector of a registered environment, as `vectorize_mode` does."""
    own = gymnasium.spec(name).vector_entry_point
    default = _OWN if own and not wrappers else VectorizeMode.SYNC
    return vectorize_mode(kwargs.get("vectorization_mode", default))


def vectorize_mode(text: str) -> VectorizeMode:
    """Return a mode that a vector can have here. Raises ConfigurationError, and ValueError."""
    wanted = VectorizeMode(text)
    if wanted is VectorizeMode.ASYNC:
        raise ConfigurationError(
            'A remote vector cannot have vectorization_mode="async". Use "sync" or '
            '"vector_entry_point"; for several processes, start the env agent with --workers and '
            "open as many sessions."
        )
    return wanted


def only_vectors(name: str) -> ConfigurationError:
    """Return the error that a learner without `num_envs` gets."""
    return ConfigurationError(
        f"{name} only makes vectors of environments. Open it with ProxyVectorEnv."
    )


def _make_registered(name: str, **kwargs: Any) -> Env:
    """Return what `gymnasium.make` makes. Its wrappers do not await: a `Bridge` is below them."""
    spec = gymnasium.spec(name)
    make = None if spec.entry_point is None else _loaded(spec.entry_point)
    if make is None or not event_loop.is_asynchronous(make):
        return gymnasium.make(name, **kwargs)
    spec = copy(spec)
    spec.entry_point = lambda **merged: event_loop.create(make, merged)
    return gymnasium.make(spec, **kwargs)


def _loaded(entry_point: str | Callable[..., Any]) -> Callable[..., Any]:
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _own_vector(name: str, num_envs: int, mode: AutoresetMode, kwargs: dict[str, Any]) -> Vector:
    """Make a vector of the registered vector class, in this autoreset mode if it has a choice."""
    entry_point = gymnasium.spec(name).vector_entry_point
    make = None if entry_point is None else _loaded(entry_point)

    def make_vector(**more: Any) -> Any:
        return same_step.make_vec(name, mode, num_envs=num_envs, **{**kwargs, **more})

    if make is not None and _takes(make, "autoreset_mode"):
        pid = os.getpid()
        try:
            return vectors.adapt(make_vector(autoreset_mode=mode), name)
        except Exception as error:
            end_if_forked(pid, error)
            # It may take the mode in another form, but have this one by default.
            with suppress(Exception):
                made = vectors.adapt(make_vector(), name)
                if made.metadata["autoreset_mode"] == mode:
                    return made
                closing.close(made)
            raise
    if make is not None and _takes_any(make):
        pid = os.getpid()
        try:
            return vectors.adapt(make_vector(autoreset_mode=mode), name)
        except TypeError as error:  # another function, with fewer parameters, may come behind it
            end_if_forked(pid, error)
    return vectors.adapt(make_vector(), name)


def _sync(makers: Sequence[Callable[[], Env]], mode: AutoresetMode) -> Vector:
    made = HostedVector(makers, mode)
    made.spec = made.envs[0].spec
    return made


def _from_factory(
    make: Callable[..., Any],
    name: str,
    num_envs: int,
    mode: AutoresetMode | None,
    kwargs: dict[str, Any],
) -> Vector:
    if mode is not None and _takes(make, "autoreset_mode"):
        kwargs["autoreset_mode"] = mode
    if _takes(make, "num_envs") or _takes_any(make):
        kwargs["num_envs"] = num_envs
    made = vectors.adapt(make(**kwargs), name)
    if mode is not None:
        with closed_on_error([made]):
            takes_num_envs = "num_envs" in kwargs
            vectors.check_request(made, name, num_envs, mode, takes_num_envs=takes_num_envs)
        vectors.warn_of_equal_seeds(made, name)
    return made


def _takes(make: Callable[..., Any], parameter: str) -> bool:
    return parameter in _parameters(make)


def _takes_any(make: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in _parameters(make).values())


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}


def resolve(name: str, kwargs: Mapping[str, Any]) -> Factory:
    """Return the factory for a name; `kwargs` are the operator's keyword arguments.

    The name is `CartPole-v1`, `module:Id-v0`, `package.module:MyEnv`, `./file.py:MyEnv`, or
    `openenv:URL` for an OpenEnv server. Modules are imported from Python's path and from the
    current folder. Raises ConfigurationError.
    """
    if name.startswith(openenv.SCHEME):
        url = openenv.check_url(name.removeprefix(openenv.SCHEME))
        return Factory(name, partial(openenv.OpenEnv, url), kwargs)
    env_names.check_name(name)
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        env_names.add_current_folder()
        _check_registered(name)
        return Factory(name, None, kwargs)
    target, given = env_names.look_up(name), name
    if module_name.endswith(".py"):
        # The agents of a pool may have the file in different folders.
        name = f"{Path(module_name).stem}:{attribute}"
    if pettingzoo.is_env_module(target):
        return Factory(name, pettingzoo.EnvModule(target), kwargs)
    if target is not None:
        if not callable(target):
            raise ConfigurationError(
                f"{given}: {attribute} is neither a class nor a factory. Name one that is."
            )
        return Factory(name, target, kwargs)
    if attribute not in gymnasium.registry:
        raise ConfigurationError(
            f"{given}: {module_name} has no {attribute!r}, and does not register an environment "
            f"with that id. Check the spelling."
        )
    # The module has registered the id by now; `gymnasium.spec` does not know ids with a module.
    return Factory(attribute, None, kwargs)


def resolve_wrapper(text: str) -> Wrapper:
    """Return the wrapper that a text names: `module:Wrapper`, or that and a JSON object.

    Raises ConfigurationError.
    """
    name, brace, rest = text.partition("{")
    name = name.strip()
    try:
        kwargs = json.loads(brace + rest) if brace else {}
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"--wrap {name}: {brace + rest} is not JSON: {error}. Write keyword arguments as in "
            f'module:Wrapper{{"size": 4}}.'
        ) from None
    if ":" not in name:
        raise ConfigurationError(f"--wrap {name}: write module:Wrapper or ./file.py:Wrapper.")
    found = env_names.look_up(name, "--wrap ")
    if not callable(found):
        raise ConfigurationError(
            f"--wrap {name}: there is no such class or function. Check the spelling."
        )
    return Wrapper(name, found, kwargs)


def _check_registered(name: str) -> None:
    try:
        spec: EnvSpec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        env_names.check_no_file(name)
        raise ConfigurationError(
            f"There is no environment {name!r}: {str(error).rstrip('.?')}. If another package "
            f"registers it, write package:{name}; for a class of your own, write "
            f"package.module:MyEnv or ./file.py:MyEnv."
        ) from None
    entry_point = spec.entry_point
    if isinstance(entry_point, str):
        module_name = entry_point.partition(":")[0]
        env_names.import_(module_name, name, lambda: importlib.import_module(module_name))
