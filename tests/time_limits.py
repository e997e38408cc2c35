"""A time limit for one call only: on a busy machine, any other call may take seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from gymwire import ProxyEnv, ProxyVectorEnv
from gymwire.protocol.errors import RequestTimeout

LIMIT_S = 0.3


@contextlib.contextmanager
def times_out(env: ProxyEnv | ProxyVectorEnv, match: str | None = None) -> Iterator[None]:
    """Expect that the call in the block ends after its `step_timeout_s`, which is short."""
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(env, ProxyVectorEnv):
            patch.setattr(env, "_step_timeout_s", LIMIT_S)
        else:
            limited = replace(env._owner.options, step_timeout_s=LIMIT_S)
            patch.setattr(env._owner, "options", limited)
        with pytest.raises(RequestTimeout, match=match):
            yield
