"""Close environments whatever they raise, also those whose session could not be opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gymwire.env_agent import failure_reports
from gymwire.env_agent.forks import end_if_forked
from gymwire.protocol import logs


@contextmanager
def closed_on_error(envs: Sequence[Any]) -> Iterator[None]:
    """Close these environments if the block raises: their sessions will not be opened.

    `envs` may be a list to which the block appends, and may contain what is not an environment.
    """
    pid = os.getpid()
    try:
        yield
    except BaseException as error:
        end_if_forked(pid, error)  # the environments are those of the other process
        for env in envs:
            close(env)
        raise


def close(env: Any, **context: str) -> None:
    """Close an environment; log the exception if that fails, with this context.

    A class, or an object without a method `close`, is left alone.
    """
    pid = os.getpid()
    try:
        if not isinstance(env, type) and callable(getattr(env, "close", None)):
            env.close()
    except BaseException as error:  # noqa: BLE001 - the environment's, not ours
        end_if_forked(pid, error)
        logs.logger().warning(
            "environment failed to close", **context, error=failure_reports.summary(error)[:200]
        )


def close_all(envs: Iterable[Any]) -> None:
    """Close all environments, even if some raise; then raise the first exception."""
    pid, failed = os.getpid(), None
    for env in envs:
        try:
            env.close()
        except BaseException as error:  # noqa: BLE001 - raised below
            end_if_forked(pid, error)
            failed = failed or error
    if failed is not None:
        raise failed
