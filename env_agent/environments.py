"""The environments of one serving loop: what it serves, and how they are made and closed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from gymwire.env_agent import closing, description, failure_reports
from gymwire.env_agent.factory import Env, Factory, Vector
from gymwire.env_agent.forks import end_if_forked
from gymwire.env_agent.interpreter.child_factory import ChildFactory
from gymwire.env_agent.recorder import Recorder
from gymwire.env_agent.runners.runner import Runner
from gymwire.protocol import logs, space_descriptions, spaces
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.messages import MULTI_AGENT, EnvKind, Offer, Open
from gymwire.protocol.pictures import RENDER_MODES

MAX_NUM_ENVS = 4096  # of one session: a number from the wire must not exhaust the memory
WATCH_RATE, MAX_WATCH_RATE = 10, 20  # frames per second: the default and the maximum


@dataclass(frozen=True)
class Service:
    """One environment under one address, as the operator configured it.

    Attributes:
        address: the address to offer.
        factory: makes the environments.
        max_sessions: the number of slots.
        exposed: the attributes that learners may use, in addition to the default ones.
        strict_infos: whether an info value that would be converted, or replaced by its repr, is
            an error.
        recorder: records the episodes; None: they are not recorded.
        watchable: whether operators may watch the sessions.
        watch_rate: how many frames of a session to render per second, at most.
        watch_modes: how they can be shown, the best mode first; `describe` finds it out.
        source: the file and the number of the offer in it, for errors; "" without a file.
    """

    address: str
    factory: Factory | ChildFactory
    max_sessions: int = 64
    exposed: Sequence[str] = ()
    strict_infos: bool = False
    recorder: Recorder | None = None
    watchable: bool = False
    watch_rate: int = WATCH_RATE
    watch_modes: list[str] = field(default_factory=list, compare=False)
    source: str = field(default="", compare=False)


class Environments:
    """Makes, describes and closes the environments of one serving loop.

    `make` and `close` run in the thread of the session.

    Attributes:
        may_be_lost: whether some run elsewhere, and may end by themselves.
    """

    def __init__(self, services: Iterable[Service]) -> None:
        services = list(services)
        self._services = {service.address: service for service in services}
        self.may_be_lost = any(one.factory.makes_elsewhere for one in services)
        self._spares: dict[str, Runner] = {}
        self._log = logs.logger()

    def service(self, address: str) -> Service | None:
        """Return what is served under an address, or None."""
        return self._services.get(address)

    def describe(self, service: Service, capacity: int, direct: str | None) -> Offer:
        """Make the environment once to learn its spaces, and return the offer.

        The first session uses this environment. Raises what its constructor raises.

        Args:
            service: what to offer.
            capacity: the number of slots to offer.
            direct: the URL for direct sessions from other hosts, or None.
        """
        runner = Runner(service.factory.make_first())
        self._spares[service.address] = runner
        found = runner.describe(service.factory.name)
        if found.left_out:
            self._log.warning(
                "keyword arguments too large for the spec that learners see",
                address=service.address,
                arguments=found.left_out,
            )
        observation, action = (
            spaces.describe(space if single is None else single, root=name)
            for space, single, name in (
                (found.observation_space, found.single_observation_space, "observation_space"),
                (found.action_space, found.single_action_space, "action_space"),
            )
        )
        self._warn_of_foreign_spaces(service.address, found, runner.env)
        self._find_watch_modes(service, found.metadata)
        env_id = found.spec["id"]
        # The digest is that of the whole spaces: all env agents of a pool must share them.
        digest = space_descriptions.digest(env_id, observation, action)
        return Offer(
            address=service.address,
            env_id=env_id,
            observation_space=description.shorten(observation),
            action_space=description.shorten(action),
            spec=found.spec,
            metadata=found.metadata,
            capacity=capacity,
            digest=digest,
            direct=direct,
        )

    def _find_watch_modes(self, service: Service, metadata: Mapping[str, Any]) -> None:
        if not service.watchable:
            return
        modes = metadata.get("render_modes") or ()
        service.watch_modes[:] = [one for one in RENDER_MODES if one in modes]
        if not service.watch_modes:
            why = "its metadata has neither rgb_array nor ansi in render_modes"
            self._log.warning("environment not watchable", address=service.address, why=why)

    def _warn_of_foreign_spaces(
        self, address: str, found: description.Description, env: Any
    ) -> None:
        foreign = [*getattr(env, "foreign_spaces", ())]  # of an environment in another process
        for name in ("observation_space", "action_space"):
            single = getattr(found, f"single_{name}")
            space = getattr(found, name) if single is None else single
            foreign += [(one.path, one.kind, one.sent_as) for one in spaces.foreign(space, name)]
        for path, kind, sent_as in foreign:
            self._log.warning(
                "space is not Gymnasium's own",
                address=address,
                space=path,
                kind=kind,
                sent_as=sent_as,
            )

    def make(self, service: Service, request: Open, *, uses_spare: bool = True) -> Runner:
        """Make the environment or the vector that a learner requests.

        `uses_spare`: whether this is the thread that has made the spare environments.

        Raises ConfigurationError, or what the constructor raises.
        """
        num_envs = request.num_envs
        _check_kind(request.env_kind, num_envs)
        if not 0 <= num_envs <= MAX_NUM_ENVS:
            raise ConfigurationError(
                f"A session has at most {MAX_NUM_ENVS} environments, not {num_envs}. Spread them "
                f"over several sessions."
            )
        spare = self._spares.pop(service.address, None) if uses_spare else None
        if spare is not None:
            is_default = num_envs == 0 and request.render_mode is None and not request.env_kwargs
            is_default &= not service.watch_modes and not isinstance(spare.env, VectorEnv)
            if is_default and spare.kind == request.env_kind and not spare.lost:
                return spare
            self.close(spare, service.address)
        if request.render_mode is None and service.watch_modes:
            pid = os.getpid()
            try:
                made = self._make(service, request, service.watch_modes[0])
                return Runner(made, is_for_watchers=True)
            except Exception as error:
                end_if_forked(pid, error)
                if isinstance(error, ConfigurationError):
                    raise
                why = failure_reports.summary(error)[:200]
                self._log.warning("environment not watchable", address=service.address, why=why)
        return Runner(self._make(service, request, request.render_mode))

    @staticmethod
    def _make(service: Service, request: Open, render_mode: str | None) -> Env | Vector:
        make, kwargs = service.factory, request.env_kwargs
        if request.num_envs == 0:
            return make.make(render_mode, kwargs, request.env_kind)
        mode = AutoresetMode(request.autoreset_mode)
        return make.make_vector(request.num_envs, mode, render_mode, kwargs)

    def close(self, runner: Runner, address: str) -> None:
        """Close an environment; log the exception if that fails."""
        closing.close(runner, address=address)

    def close_spare(self, address: str) -> None:
        """Close the environment of an address that no session has used, if there is one."""
        spare = self._spares.pop(address, None)
        if spare is not None:
            self.close(spare, address)

    def close_spares(self) -> None:
        """Close the environments that no session has used."""
        for address in list(self._spares):
            self.close_spare(address)


def _check_kind(kind: str, num_envs: int) -> None:
    """Raise ConfigurationError if there is no such kind, or if a session cannot be of it."""
    if kind not in (EnvKind.ENV, EnvKind.VECTOR, *MULTI_AGENT):
        raise ConfigurationError(
            f"There is no kind of environment {kind!r:.100}. A learner can open env, vector, "
            f"parallel or aec."
        )
    if (kind == EnvKind.VECTOR) != (num_envs != 0):
        raise ConfigurationError(
            f"The kind {kind!r} contradicts num_envs={num_envs}. A vector has at least one "
            f"environment, and for every other kind num_envs is 0."
        )
