"""Gymnasium's SyncVectorEnv as an env agent serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import SyncVectorEnv

from gymwire.env_agent.space_watch import SpaceWatch

if TYPE_CHECKING:
    _Vector = SyncVectorEnv[Any, Any]
else:
    _Vector = SyncVectorEnv  # has no type parameters in gymnasium 1.2


class HostedVector(_Vector):
    """A SyncVectorEnv that remembers the info values that it casts, and watches the spaces.

    The array of an info has the dtype of the first value under its key, and later values are cast
    to it. If this vector is only a part of the learner's, another value may come first there, with
    another dtype: the learner then needs the original values.

    Attributes:
        cast: the values cast since it was last cleared, by the id of the array:
            [[index of the environment, value], ...].
    """

    cast: dict[int, list[list[Any]]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cast = {}
        super().__init__(*args, **kwargs)
        for env in self.envs:
            # A step resets environments, too, and must not take longer for this check.
            vars(env)["reset"] = SpaceWatch(env).reset

    def _add_info(
        self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int
    ) -> dict[str, Any]:
        if not env_info:  # the usual case, which `super` takes longer to find out
            return vector_infos
        infos = super()._add_info(vector_infos, env_info, env_num)
        for key, value in env_info.items():
            array = infos[key]
            if (
                type(array) is np.ndarray
                and array.dtype.kind != "O"
                and array.dtype != _dtype(value)
            ):
                self.cast.setdefault(id(array), []).append([env_num, value])
        return infos


_PLAIN: dict[type, np.dtype[Any]] = {kind: np.dtype(kind) for kind in (bool, int, float)}


def _dtype(value: Any) -> np.dtype[Any] | None:
    return _PLAIN.get(type(value)) or getattr(value, "dtype", None)
