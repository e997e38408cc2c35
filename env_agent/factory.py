"""From what a user writes after `--env` to environments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, VectorizeMode, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent.hosted_vector import HostedVector
from gymwire.protocol.errors import ConfigurationError

Env = gymnasium.Env[Any, Any]
Vector = VectorEnv[Any, Any, Any]
_UNKNOWN_KEYWORD = re.compile(r"got an unexpected keyword argument '(\w+)'")


@dataclass(frozen=True)
class Factory:
    """Makes environments: from a Gymnasium id, or from a class or function of the user's."""

    name: str
    make_one: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self, render_mode: str | None, kwargs: Mapping[str, Any]) -> Env:
        """One environment. What its constructor raises is passed on."""
        merged = {**self.kwargs, **kwargs}
        if self.make_one is None:
            merged.pop("vectorization_mode", None)
            with self._naming_keywords(merged):
                return gymnasium.make(self.name, render_mode=render_mode, **merged)
        if self.makes_vectors:
            raise ConfigurationError(
                f"{self.name} makes vectors of environments only: open it with ProxyVectorEnv."
            )
        if render_mode is not None:
            merged["render_mode"] = render_mode
        with self._naming_keywords(merged):
            made = self.make_one(**merged)
        if not isinstance(made, gymnasium.Env):
            raise ConfigurationError(
                f"{self.name} returned {type(made).__name__}, not a gymnasium.Env: check the "
                f"class or factory that the env agent was started with."
            )
        return made

    @contextmanager
    def _naming_keywords(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Say in a sentence of ours that a keyword argument is unknown, and which there are."""
        try:
            yield
        except TypeError as error:
            match = _UNKNOWN_KEYWORD.search(str(error))
            if match is None or match[1] not in given:
                raise
            known = ", ".join(self._keywords())
            raise TypeError(
                f"{self.name} takes no keyword argument {match[1]!r}"
                f"{f'; it takes {known}' if known else ''}."
            ) from error

    def _keywords(self) -> list[str]:
        """The keyword arguments that an environment takes, none if that is not known."""
        make = self.make_one
        if make is None:
            entry_point = gymnasium.spec(self.name).entry_point
            make = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        try:
            parameters = inspect.signature(make).parameters if make else {}
        except (TypeError, ValueError):  # some callables written in C have no signature
            return []
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return []
        return [name for name in parameters if name != "render_mode"]

    def make_first(self) -> Env | Vector:
        """What shows the spaces: one environment, or a vector of one if it makes only vectors."""
        if self.make_one is not None and self.makes_vectors:
            with self._naming_keywords(self.kwargs):
                return _from_factory(self.make_one, self.name, 1, None, dict(self.kwargs))
        return self.make(None, {})

    @property
    def makes_vectors(self) -> bool:
        """Whether this is a VectorEnv class, or a function that takes `num_envs`."""
        make = self.make_one
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
        """A vector, as `gymnasium.make_vec` makes it: of the environment's own kind if it has one.

        Where that kind has another autoreset mode, or `vectorization_mode="sync"` is among the
        keyword arguments, it is a SyncVectorEnv. What a constructor raises is passed on.
        """
        merged = {**self.kwargs, **kwargs}
        with self._naming_keywords(merged):
            if self.make_one is None:
                return _registered(self.name, num_envs, mode, render_mode, merged)
            if self.makes_vectors:
                if render_mode is not None:
                    merged["render_mode"] = render_mode
                return _from_factory(self.make_one, self.name, num_envs, mode, merged)
        return _sync([lambda: self.make(render_mode, kwargs)] * num_envs, mode)


def _registered(
    name: str,
    num_envs: int,
    mode: AutoresetMode,
    render_mode: str | None,
    kwargs: dict[str, Any],
) -> Vector:
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    own = gymnasium.spec(name).vector_entry_point is not None
    wanted = VectorizeMode(
        kwargs.pop("vectorization_mode", "vector_entry_point" if own else "sync")
    )
    if wanted is VectorizeMode.ASYNC:
        raise ConfigurationError(
            'vectorization_mode is "sync" or "vector_entry_point" here; for several processes, let '
            "the env agent have several workers and open as many sessions."
        )
    if wanted is VectorizeMode.VECTOR_ENTRY_POINT:
        made = gymnasium.make_vec(name, num_envs=num_envs, vectorization_mode=wanted, **kwargs)
        if made.metadata.get("autoreset_mode") == mode:
            return made
        made.close()
    return _sync([lambda: gymnasium.make(name, **kwargs)] * num_envs, mode)


def _sync(makers: Sequence[Callable[[], Env]], mode: AutoresetMode) -> Vector:
    # Observations go on the wire before the next step, so they need no copy of their own.
    made = HostedVector(makers, copy=False, autoreset_mode=mode)
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
    made = make(num_envs=num_envs, **kwargs)
    if not isinstance(made, VectorEnv):
        raise ConfigurationError(
            f"{name} returned {type(made).__name__}, not a gymnasium.vector.VectorEnv: check the "
            f"class or factory that the env agent was started with."
        )
    has = made.metadata.get("autoreset_mode")
    if mode is not None and (has != mode or made.num_envs != num_envs):
        made.close()
        raise ConfigurationError(
            f"{name} made {made.num_envs} environments in the autoreset mode "
            f"{getattr(has, 'value', has)!r}; {num_envs} in {mode.value!r} were asked for."
        )
    return made


def _takes(make: Callable[..., Any], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False


def resolve(name: str, kwargs: Mapping[str, Any]) -> Factory:
    """Understand `CartPole-v1`, `module:Id-v0`, `package.module:MyEnv` or `./file.py:MyEnv`.

    Modules are found as Python finds them, and in the current folder. Raises ConfigurationError.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    module_name, colon, attribute = name.rpartition(":")
    if not colon:
        if name.endswith(".py"):
            raise ConfigurationError(
                f"{name} is a file: name the class or factory in it, too, such as {name}:MyEnv."
            )
        _check_registered(name)
        return Factory(name, None, kwargs)
    if module_name.endswith(".py"):
        path = Path(module_name)
        module = _import(path.stem, name, lambda: _load(path, name))
        name = f"{path.stem}:{attribute}"  # a pool's agents may have the file in other places
    else:
        module = _import(module_name, name, lambda: importlib.import_module(module_name))
    target = module
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if target is not None:
        if not callable(target):
            raise ConfigurationError(f"{name}: {attribute} is neither a class nor a factory.")
        return Factory(name, target, kwargs)
    if attribute not in gymnasium.registry:
        raise ConfigurationError(
            f"{name}: the module {module_name!r} has no {attribute!r}, and registers no "
            f"environment of that id either. Check the spelling."
        )
    return Factory(attribute if module_name.endswith(".py") else name, None, kwargs)


def _load(path: Path, name: str) -> Any:
    """The module in a file, whose neighbours it can import as a script can."""
    if not path.is_file():
        raise ConfigurationError(f"{name}: there is no file {path} here.")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that it hides nothing
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    # A file may be called as a module that is in use already, such as random.py.
    called = path.stem if known is None else f"{path.stem} in {path.parent}"
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[called] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[called]
        raise
    return module


def _import(module_name: str, name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing == module_name or module_name.startswith(f"{missing}."):
            hint = (
                "install its package here, start the env agent in the folder that holds it, or "
                "write --env ./path/to/file.py:MyEnv"
            )
        else:
            hint = f"{module_name} needs it: pip install {missing.partition('.')[0]}"
        raise ConfigurationError(f"{name}: there is no module {missing!r}; {hint}.") from None
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigurationError(f"{name} cannot be used yet: {error}") from None
    except Exception as error:
        raise ConfigurationError(
            f"{name}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error


def _check_registered(name: str) -> None:
    try:
        spec: EnvSpec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        if Path(f"{name}.py").is_file():
            raise ConfigurationError(
                f"There is no environment {name!r} here, but a file {name}.py: name the class or "
                f"factory in it, too, such as {name}.py:MyEnv."
            ) from None
        raise ConfigurationError(
            f"There is no environment {name!r} here: {str(error).rstrip('.?')}. If another package "
            f"registers it, write --env package:{name}; for a class of your own, "
            f"--env package.module:MyEnv or --env ./file.py:MyEnv."
        ) from None
    entry_point = spec.entry_point
    if isinstance(entry_point, str):
        module_name = entry_point.partition(":")[0]
        _import(module_name, name, lambda: importlib.import_module(module_name))
