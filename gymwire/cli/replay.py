"""`gymwire replay`: play recorded actions again, and compare the results bit for bit."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gymwire.cli.connection import LearnerOptions, connected, naming, shortening
from gymwire.cli.output import Output
from gymwire.cli.terminal import counted, printable
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.learner_agent.client.failures import error_for
from gymwire.learner_agent.client.session import RemoteSession
from gymwire.protocol import recordings, values
from gymwire.protocol.errors import (
    AttributeDenied,
    ConfigurationError,
    DecodingError,
    EnvironmentFailed,
    EnvironmentSideError,
    GymwireError,
)
from gymwire.protocol.messages import Act, Call, Error, Message, Reset, Status
from gymwire.protocol.recordings import COMPLETE, CONTINUED, READS, Exchange, RecordedPart
from gymwire.protocol.values import Opaque

SAME, DIFFERS, UNKNOWN = "same", "differs", "cannot compare"
DIFFER_STATUS, UNKNOWN_STATUS = 3, 4  # exit statuses


@dataclass(frozen=True, kw_only=True)
class Options(LearnerOptions):
    """The options of `gymwire replay`."""

    folder: Path | None
    address: str | None


@dataclass(frozen=True)
class Verdict:
    """What the replay of an episode says.

    Attributes:
        session: the recorded session.
        episode: the number of the episode in it.
        steps: how many steps were compared.
        result: SAME, DIFFERS or UNKNOWN.
        why: what differs and where, or why the episode cannot be compared; "" if it is the same.
    """

    session: str
    episode: int
    steps: int
    result: str
    why: str


class _Incomparable(Exception):
    """The episode cannot be compared; the text says why."""


class _Different(Exception):
    """The replay differs; the text says where."""


@dataclass(frozen=True)
class Episode:
    """The files of an episode, as their headers say."""

    header: dict[str, Any]
    paths: Sequence[Path]


def command(options: Options, output: Output) -> int:
    """Replay all episodes of a folder. Returns the exit status."""
    with naming(options, "folder"):
        episodes, damaged = find(options.folder)
    verdicts = [Verdict("", 0, 0, UNKNOWN, text) for text in damaged]
    number = counted(len(episodes), "episode")
    with connected(options) as connection:
        try:
            with output.errors.status(f"replaying {number} at {options.broker} …"):
                for _, group in groupby(episodes, lambda one: one.header["session"]):
                    for verdict in _replay(connection, options, list(group)):
                        verdicts.append(verdict)
                        if verdict.why:
                            _say(output, verdict)
        finally:
            total = len(damaged) + len(episodes)
            counts = _report(options, verdicts, damaged, total, output)
    if counts[DIFFERS]:
        return DIFFER_STATUS
    return UNKNOWN_STATUS if counts[UNKNOWN] else 0


def _report(
    options: Options,
    verdicts: Sequence[Verdict],
    damaged: Sequence[str],
    total: int,
    output: Output,
) -> dict[str, int]:
    """Print the verdicts together. Returns how many there are of each result."""
    counts = {
        each: sum(one.result == each for one in verdicts) for each in (SAME, DIFFERS, UNKNOWN)
    }
    for text in damaged:
        output.say(f"cannot compare: {printable(text)}")
    done = f"only {len(verdicts):,} of " if len(verdicts) < total else ""
    output.say(
        f"{done}{counted(total, 'episode')}: {counts[SAME]:,} the same, "
        f"{counts[DIFFERS]:,} differ, {counts[UNKNOWN]:,} cannot be compared"
    )
    output.result(
        broker=options.broker,
        address=options.address,
        folder=str(options.folder),
        same=counts[SAME],
        differ=counts[DIFFERS],
        cannot_compare=counts[UNKNOWN],
        episodes=[asdict(one) for one in verdicts],
    )
    return counts


def _say(output: Output, verdict: Verdict) -> None:
    where = f"session {verdict.session}, episode {verdict.episode}"
    output.say(printable(f"{where}: {verdict.result}: {verdict.why}"))


# --- the recordings -------------------------------------------------------------------------------


def find(folder: Path | None) -> tuple[list[Episode], list[str]]:
    """Return the episodes in a folder, by session and in their order; and what cannot be read.

    Raises ConfigurationError if there is none.
    """
    if folder is None:
        raise ConfigurationError("No folder given: pass FOLDER, that of gymwire serve --record.")
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}.")
    found: list[tuple[dict[str, Any], Path]] = []
    damaged: list[str] = []
    for path in sorted(folder.glob(f"*{COMPLETE}")):
        try:
            found.append((recordings.read_header(path), path))
        except (OSError, DecodingError) as error:
            damaged.append(str(error))
    if not found and not damaged:
        raise ConfigurationError(
            f"{folder} has no recorded episodes (files that end in {COMPLETE})."
        )
    found.sort(key=lambda one: (*_key(one[0]), one[0]["part"]))
    episodes = []
    for _, group in groupby(found, lambda one: _key(one[0])):
        files = list(group)
        episodes.append(Episode(files[0][0], [path for _, path in files]))
    return episodes, damaged


def _key(header: dict[str, Any]) -> tuple[str, int]:
    return header["session"], header["episode"]


def _parts(episode: Episode) -> Iterator[RecordedPart]:
    """Yield the parts of an episode. Raises _Incomparable if one is missing."""
    number, continues = 0, True
    for number, path in enumerate(episode.paths, 1):
        part = recordings.read(path)
        if part.header["part"] != number or not continues:
            raise _Incomparable(f"its part {number} is missing: it was removed to save space.")
        continues = part.end == CONTINUED
        yield part


# --- the replay -----------------------------------------------------------------------------------


def _replay(
    connection: BrokerConnection, options: Options, episodes: Sequence[Episode]
) -> Iterator[Verdict]:
    """Replay the episodes of a recorded session, in one session as well."""
    header = episodes[0].header
    with shortening(options):
        [session] = connection.open_all(
            options.address or header["address"],
            [header["num_envs"]],
            render_mode=header["render_mode"],
            env_kwargs=header["env_kwargs"],
            autoreset_mode=header["autoreset_mode"],
            kind=header["env_kind"],
        )
    try:
        replay = _Replay(session)
        for episode in episodes:
            yield replay.compare(episode)
    finally:
        session.close()


class _Replay:
    """The replay of a recorded session, episode by episode."""

    def __init__(self, session: RemoteSession) -> None:
        self._session = session
        self._changes = 0  # how many requests of `RecordedPart.changes_before` were repeated
        self._whole = 0  # the number of the last episode that was repeated to its end

    def compare(self, episode: Episode) -> Verdict:
        """Replay an episode until something differs."""
        header, steps, result, why = episode.header, 0, SAME, ""
        try:
            _check_spaces(self._session, header)
            has_begun = False
            for part in _parts(episode):
                if part.header["part"] == 1:
                    self._check_beginning(part)
                for exchange in part.exchanges():
                    request = exchange.request
                    is_change = isinstance(request, Call) and recordings.is_change(
                        request.mode, request.name
                    )
                    self._changes += is_change
                    if isinstance(exchange.reply, Status):
                        _prepare(self._session, part.header)
                        has_begun = True
                    if not has_begun:
                        self._changes += not is_change
                        _repeat(self._session, exchange)
                        continue
                    steps += isinstance(request, Act)
                    what = "reset" if isinstance(request, Reset) else f"step {steps}"
                    _compare(self._session, exchange, what)
            self._whole = header["episode"]
        except (_Incomparable, DecodingError, OSError) as reason:
            result, why = UNKNOWN, str(reason)
        except _Different as difference:
            result, why = DIFFERS, str(difference)
        return Verdict(header["session"], header["episode"], steps, result, why)

    def _check_beginning(self, part: RecordedPart) -> None:
        """Raise _Incomparable if the episode depends on what was not repeated."""
        missing = part.changes_before - self._changes
        if missing > 0:
            raise _Incomparable(
                f"earlier calls of its session ({missing}), which may have changed the "
                f"environment, could not be repeated: their episode was removed, cut off, or "
                f"differs."
            )
        mask = (part.header["options"] or {}).get("reset_mask")
        if mask is None or np.all(mask) or self._whole == part.header["episode"] - 1:
            return
        raise _Incomparable(
            "its reset left some environments in the episode before, which could not be repeated."
        )


def _repeat(session: RemoteSession, exchange: Exchange) -> None:
    """Send a request again that was not in an episode. Raises _Incomparable if it is denied."""
    with suppress(EnvironmentFailed):
        try:
            session.request(exchange.request)
        except AttributeDenied as error:
            raise _Incomparable(
                f"a call before its reset cannot be repeated: {error.args[0]}"
            ) from None


def _check_spaces(session: RemoteSession, header: dict[str, Any]) -> None:
    for name in ("observation_space", "action_space"):
        if values.encode(getattr(session.opened, name)) != values.encode(header[name]):
            raise _Different(f"the {name.replace('_', ' ')} has changed")


def _prepare(session: RemoteSession, header: dict[str, Any]) -> None:
    """Set the environment's generator as it was, if the seed does not do so.

    Raises _Incomparable if it is not known how the episode began.
    """
    seed, state = header["seed"], header["generator"]
    seeds = seed if isinstance(seed, list | tuple) else [seed]
    if None not in seeds:
        return
    if state is None:
        raise _Incomparable("its reset had no seed, and the environment has no known generator.")
    if header["num_envs"]:
        state = list(state) if isinstance(state, list | tuple) else [state]
    try:
        session.request(Call("set", "np_random", (state,)))
    except (AttributeDenied, EnvironmentFailed) as error:
        raise _Incomparable(
            f"its reset had no seed, and the generator cannot be set: {error.args[0]}"
        ) from None


def _compare(session: RemoteSession, exchange: Exchange, what: str) -> None:
    """Send a request again. Raises _Different if the reply is not the recorded one."""
    request, expected = exchange.request, exchange.reply
    if isinstance(request, Call):
        if request.mode in READS:
            return
        what = f"{request.name} after {what}"
    failure: GymwireError | None = None
    reply: Message | None = None
    try:
        reply = session.request(request)
    except (EnvironmentFailed, AttributeDenied) as error:
        failure = error
    known = error_for(expected) if isinstance(expected, Error) else None
    if failure is not None or known is not None:
        if _kind(failure) != _kind(known):
            raise _Different(f"{what}: {_outcome(known)} was recorded, now {_outcome(failure)}")
        return
    if type(reply) is not type(expected):
        raise _Different(f"{what}: another kind of reply")
    for name in type(expected).__slots__:
        before, now = getattr(expected, name), getattr(reply, name)
        if _bits(before) != _bits(now):
            raise _Different(
                f"{what}: {name} {reprlib.repr(before)} was recorded, now {reprlib.repr(now)}"
            )


def _kind(error: GymwireError | None) -> str:
    """Return what two failures must have in common: not their texts, which may name addresses."""
    if isinstance(error, EnvironmentSideError):
        return str(getattr(error, "remote_type", ""))
    return type(error).__name__


def _outcome(error: GymwireError | None) -> str:
    return "a result" if error is None else f"{_kind(error)}: {str(error.args[0])[:100]}"


def _bits(value: Any) -> bytes:
    """Return bytes that are equal for values whose types and bits are equal."""
    return values.encode(_comparable(value))


def _comparable(value: Any) -> Any:
    """Return the value without texts that name places in memory."""
    match value:
        case Opaque():
            return Opaque(value.type, "")
        case dict():
            return {key: _comparable(each) for key, each in value.items()}
        case list():
            return [_comparable(each) for each in value]
        case tuple() if type(value) is tuple:
            return tuple(map(_comparable, value))
    return value
