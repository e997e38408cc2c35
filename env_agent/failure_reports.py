"""Failures of an environment as ERROR messages, with the environment's traceback."""

from __future__ import annotations

import importlib
import re
import textwrap
import traceback
from itertools import pairwise
from typing import Any

from gymnasium.vector import SyncVectorEnv

from gymwire.env_agent.elsewhere import EnvironmentGone
from gymwire.env_agent.interpreter.child.results import WrongResult
from gymwire.env_agent.interpreter.child_errors import RaisedInChild
from gymwire.env_agent.space_watch import ChangedSpaceError
from gymwire.protocol.errors import ConfigurationError, EncodingError
from gymwire.protocol.messages import Code, Error
from gymwire.protocol.outside_exceptions import is_from_signal_handler

MAX_TRACEBACK = 20_000  # characters, counted from the end
MAX_CAUSES = 10  # exceptions of a chain in which a known cause is searched
# The files whose frames are above those of the user's code: ours, and Python's that import it.
_ABOVE = (__file__.removesuffix("failure_reports.py"), importlib.__file__, "<frozen importlib")
_SYNTAX_ERRORS = {"SyntaxError", "IndentationError", "TabError"}
_PLACE = re.compile(r'^  File "(.*)", line (\d+)', re.MULTILINE)
# What Python says if another thread calls signal.signal, signal.set_wakeup_fd or, in asyncio,
# add_signal_handler.
MAIN_THREAD_ONLY = "only works in main thread"


class WrongKeywords(TypeError):
    """The keyword arguments of an environment are wrong, and the text says how."""


def naming_known(wrong: str, known: str) -> str:
    """Return a sentence about a wrong keyword argument, with the known ones unless it names all."""
    return (
        f"{wrong}." if not known or wrong.endswith(repr(known)) else f"{wrong}; it takes {known}."
    )


class CodeRaised(ConfigurationError):
    """Code of the operator has raised. The text ends with the traceback.

    Args:
        what: the beginning of a sentence, which the type and the text of `error` end.
        error: what the code raised.

    Attributes:
        why: the text without the traceback.
        traceback: the traceback.
    """

    def __init__(self, what: str, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        places: list[Any] = [(one.filename, one.lineno) for one in frames]
        self.traceback = _trace_of_user(error)
        if isinstance(error, RaisedInChild):
            places = _PLACE.findall(self.traceback)
        # The text of a SyntaxError has its own place.
        is_known = places and type(error).__name__ not in _SYNTAX_ERRORS
        where = f" ({places[-1][0]}, line {places[-1][1]})" if is_known else ""
        self.why = f"{what} {type(error).__name__}: {text_of(error)}{where}"
        super().__init__(f"{self.why}\n\n{textwrap.indent(self.traceback.rstrip(), '    ')}")


def request_failed(error: BaseException, env: object) -> Error:
    """Report an exception that `env`, an environment or a vector, raised during a request."""
    if isinstance(error, EnvironmentGone):
        return session_lost(text_of(error), error.ended_by)
    return Error(Code.ENVIRONMENT_FAILED, _with_remedy(text_of(error), error), _details(error, env))


def handling_failed(request: str, error: BaseException) -> Error:
    """Report that the env agent failed to handle a request.

    The reason is a bug of its own, or the signal handler of an environment, such as that of a
    timer, which Python runs in the main thread whatever that executes.
    """
    failed = f"The env agent failed to handle {request}"
    if is_from_signal_handler(error):
        text = f"{failed}, because a signal handler of an environment raised {summary(error)}"
        text = (
            f"{text.removesuffix('.')}. Let the environment cancel its timers before a method "
            f"returns."
        )
    else:
        text = f"{failed}: {summary(error)} This is a bug in gymwire, not in the environment."
    text = f"{text} The request may have been executed."
    return Error(Code.ENVIRONMENT_FAILED, text, _details(error, None))


def open_failed(address: str, error: BaseException) -> Error:
    """Report an exception that prevented a session at `address` from being opened."""
    details = _details(error, None)
    if isinstance(error, EncodingError):
        text = f"The environment at {address!r} cannot be offered: {text_of(error)}"
    elif isinstance(error, ConfigurationError):  # gymwire's own, whose text says what to do
        text = f"The environment at {address!r} could not be made: {text_of(error)}"
        details["traceback"] = ""
    else:
        text = f"The environment at {address!r} could not be made: {summary(error)}"
        text = _with_remedy(text, error)
        if isinstance(error, WrongKeywords):
            text = f"{text} Correct env_kwargs (--env-kwargs)."
    return Error(Code.OPEN_FAILED, text, details)


def reply_not_encodable(address: str, error: EncodingError) -> Error:
    """Report that a request was executed, but that its result cannot be serialized."""
    is_changed = isinstance(error, ChangedSpaceError)
    what = "has changed a space" if is_changed else "returned a value that cannot be serialized"
    text = f"The environment at {address!r} {what}: {text_of(error)} The request has been executed."
    if error.path.removeprefix("the key ").startswith("info"):
        text += (
            " The env agent has the option --strict-infos; without it, it would convert such a "
            "value, or send the value's repr instead."
        )
    return Error(Code.ENCODING, text)


def reply_too_large(address: str, size: int, limit: int) -> Error:
    """Report that a request was executed, but that its reply of `size` bytes is too large."""
    return Error(
        Code.TOO_LARGE,
        f"The reply of the environment at {address!r} has {size} bytes, but the broker accepts at "
        f"most {limit}. The request has been executed.",
    )


def summary(error: BaseException) -> str:
    """Return the type and the text of an exception in one line."""
    return f"{_type_of(error).__name__}: {text_of(error)}"


def text_of(error: BaseException) -> str:
    """Return the text of an exception, even if its own `__str__` raises."""
    try:
        return _printable(str(error))
    except BaseException as failure:  # noqa: BLE001 - the environment's
        return f"<no text: its __str__ raised {type(failure).__name__}>"


def trace_of(error: BaseException) -> str:
    """Return the traceback of an exception, at most MAX_TRACEBACK characters from its end."""
    if isinstance(error, RaisedInChild):
        return _printable(error.remote_traceback)[-MAX_TRACEBACK:]
    try:
        return _printable("".join(traceback.format_exception(error)))[-MAX_TRACEBACK:]
    except BaseException:  # noqa: BLE001 - code of the exception itself, such as its __str__
        return "<the traceback cannot be formatted>"


def _trace_of_user(error: BaseException) -> str:
    """Return the traceback of an exception without what is above the user's code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_ABOVE):
        trace = trace.tb_next
    # A syntax error has no frame in the file, which its text names.
    if trace is None and not isinstance(error, SyntaxError):
        return trace_of(error)
    whole = error.__traceback__
    try:
        return trace_of(error.with_traceback(trace))
    finally:
        error.__traceback__ = whole


def _with_remedy(text: str, error: BaseException) -> str:
    """Return the text of an error, followed by advice if its cause is known."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            break
        if isinstance(cause, ValueError | RuntimeError) and MAIN_THREAD_ONLY in text_of(cause):
            return (
                f"{text.removesuffix('.')}. The environment uses signals, which only the main "
                f"thread of a process may. Start the env agent with --threads 1, and with "
                f"--workers N for N sessions in processes of their own."
            )
        cause = cause.__cause__ or cause.__context__
    return text


def _details(error: BaseException, env: object) -> dict[str, Any]:
    kind = _type_of(error)
    is_builtin = kind.__module__ == "builtins"
    name = kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"
    trace = "" if isinstance(error, WrongResult) else trace_of(error)  # of our code only
    details: dict[str, Any] = {"type": _printable(name), "traceback": trace}
    if isinstance(env, SyncVectorEnv) and (index := _index_in(env, error)) is not None:
        details["env_index"] = index
    return details


def _type_of(error: BaseException) -> type[BaseException]:
    """Return the type of an exception, as a learner may know it."""
    if isinstance(error, WrongResult):
        return ValueError
    return TypeError if isinstance(error, WrongKeywords) else type(error)


def _printable(text: str) -> str:
    """Escape lone surrogates, which file names can contain and UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def _index_in(vector: SyncVectorEnv[Any, Any], error: BaseException) -> int | None:
    """Return the index of the environment that raised: the loop variable of SyncVectorEnv."""
    steps = [(frame, frame.f_code.co_name) for frame, _ in traceback.walk_tb(error.__traceback__)]
    for (frame, name), (_, inner) in pairwise(steps):
        if (
            "i" in frame.f_locals
            and name in ("step", "reset", "_check_observations")
            and inner in ("step", "reset", "_add_info", "check_step", "check_observation")
            and frame.f_locals.get("self") is vector
        ):
            return frame.f_locals.get("i")
    return None


def no_thread() -> Error:
    """Report that the system lets the env agent start no other thread for a session."""
    return Error(
        Code.OPEN_FAILED,
        "The env agent cannot start another thread for this session: the system's limit on "
        "threads or memory is reached. Lower --max-sessions, or raise the limit "
        "(ulimit -u).",
    )


def too_many_unfinished(address: str, count: int, slots: int) -> Error:
    """Report that the environments of `count` ended sessions are still busy."""
    return Error(
        Code.NO_FREE_SLOT,
        f"{count} environments of ended sessions at {address!r} are still busy: they execute a "
        f"step that their learner has abandoned, are being made, or close. That is too many for "
        f"{slots} {'slot' if slots == 1 else 'slots'}. Wait until some of them end, restart this "
        f"env agent, or find out why they take so long.",
    )


def session_lost(why: str = "", ended_by: str = "") -> Error:
    """Report that this agent does not have a session anymore. `ended_by`: see `EndedBy`."""
    return Error(
        Code.SESSION_LOST,
        why
        or "The env agent does not know this session. It was restarted, or the lease has ended.",
        {"ended_by": ended_by} if ended_by else {},
    )
