"""What `gymwire serve --record` writes, without sockets."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import structlog.testing
from gymnasium.spaces import Box, Discrete

from gymwire.env_agent import recorder as recorder_module
from gymwire.env_agent.environments import Service
from gymwire.env_agent.factory import Factory
from gymwire.env_agent.recorder import Recorder
from gymwire.env_agent.sessions import SessionHost
from gymwire.protocol import recordings, spaces, values
from gymwire.protocol.codec import HEADER as LAYOUT
from gymwire.protocol.codec import MAGIC, PLAIN, Codec, read_header
from gymwire.protocol.errors import ConfigurationError, DecodingError
from gymwire.protocol.messages import (
    VERSION,
    Act,
    Call,
    Close,
    Error,
    Kind,
    Message,
    Open,
    Opened,
    Percept,
    Render,
    Reset,
)
from gymwire.protocol.recordings import COMPLETE, RUNNING, RecordedPart
from tests.processes import PATIENCE_S
from tests.wire import close_all

MIB = 1024 * 1024
SID = 9
HEADER = {name: None if kind is object else kind() for name, kind in recordings.KEYS.items()}


class Count(gymnasium.Env[Any, Any]):
    """An observation that is always the same array; the episode has three steps. 8 is an error."""

    observation_space = Box(0, 255, (40_000,), np.uint8)  # in the tail, from the env's own memory
    action_space = Discrete(9)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps, self._seen = 0, np.zeros(40_000, np.uint8)
        return self._seen, {"first": self.np_random.random()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 8:
            raise ValueError("eight")
        self._steps += 1
        self._seen += 1
        return self._seen, 0.5, self._steps == 3, False, {"drawn": self.np_random.random()}

    def render(self) -> Any:
        return "drawn"


class Learner:
    """A learner of one session, whose env agent records it."""

    def __init__(self, folder: Path, limit: int = 64 * MIB, num_envs: int = 0) -> None:
        self.recorder = Recorder(folder, limit)
        factory = Factory("tests:Count", Count)
        self.host = SessionHost([Service("count", factory, recorder=self.recorder)])
        request = Open("count", bytes(16), num_envs=num_envs, autoreset_mode="NextStep")
        opened = PLAIN.decode(self.host.open(SID, 1, request, None))
        assert isinstance(opened, Opened), opened
        self.opened = opened
        self.codec = Codec(
            spaces.compile(spaces.build(opened.observation_space)),
            spaces.compile(spaces.build(opened.action_space)),
        )
        self.seq = 0

    def do(self, *messages: Message) -> list[Message]:
        slot = self.host.slots[SID]
        replies = []
        for message in messages:
            self.seq += 1
            frame = self.codec.encode(message, SID, self.seq)
            reply = None
            if isinstance(message, Act):
                reply = self.host.requests.step(slot, frame)
            if reply is None:
                reply = self.host.requests.handle(slot, read_header(frame), frame)
            assert reply is not None
            replies.append(self.codec.decode(bytes(reply)))
        return replies

    def call(self, head: bytes) -> Message:
        """Send a CALL with this head, whatever it is."""
        self.seq += 1
        frame = LAYOUT.pack(MAGIC, VERSION, Kind.CALL, 0, len(head), SID, self.seq) + head
        reply = self.host.requests.handle(self.host.slots[SID], read_header(frame), frame)
        assert reply is not None
        return self.codec.decode(bytes(reply))

    def leave(self) -> None:
        close_all(self.host)
        self.recorder.close()


@pytest.fixture(autouse=True)
def _a_busy_machine_may_take_long_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WRITE_S", PATIENCE_S)


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[Learner]:
    learner = Learner(tmp_path)
    yield learner
    learner.recorder.close()


def files(folder: Path) -> list[RecordedPart]:
    assert not list(folder.glob(f"*{RUNNING}"))
    return [recordings.read(path) for path in sorted(folder.glob(f"*{COMPLETE}"))]


def same(a: Any, b: Any) -> bool:
    return values.encode(a) == values.encode(b)


def test_each_episode_is_a_file_with_all_that_was_exchanged(
    learner: Learner, tmp_path: Path
) -> None:
    replies = learner.do(Reset(3, {"a": 1}), Act(1), Act(np.int64(2)), Act(3))
    replies += learner.do(Reset(), Act(4), Call("call", "np_random_seed"), Render(), Close())
    learner.leave()
    first, second = files(tmp_path)
    assert (first.end, second.end) == ("ended", "closed")
    assert [(one.header["episode"], one.header["part"]) for one in (first, second)] == [
        (1, 1), (2, 1),
    ]  # fmt: skip
    seen = [exchange for part in (first, second) for exchange in part.exchanges()]
    assert [type(one.request).__name__ for one in seen] == [
        *("Reset", "Act", "Act", "Act"),
        *("Reset", "Act", "Call"),
    ]
    for exchange, reply in zip(seen, replies[:7], strict=True):
        fields = [getattr(reply, name) for name in reply.__slots__]
        assert same([getattr(exchange.reply, name) for name in reply.__slots__], fields)
    assert seen[2].request == Act(2)


def test_the_header_says_how_the_episode_began(learner: Learner, tmp_path: Path) -> None:
    assert learner.opened.limits["recorded"] is True
    learner.do(Reset(3, {"a": np.float32(1)}), Act(1), Reset(None))
    learner.leave()
    first, second = (one.header for one in files(tmp_path))
    assert (first["seed"], first["options"], second["seed"]) == (3, {"a": np.float32(1)}, None)
    assert (first["address"], first["spec"]["id"]) == ("count", "tests:Count")
    assert (first["env_kwargs"], first["num_envs"], first["steps_before"]) == ({}, 0, 0)
    assert {"gymnasium", "numpy"} <= first["packages"].keys()
    assert second["generator"]["bit_generator"] == "PCG64"
    # It is the state before the reset: an environment in this state begins the same episode.
    env = Count()
    env.np_random.bit_generator.state = second["generator"]
    assert files(tmp_path)[1].end == "closed"
    [exchange] = files(tmp_path)[1].exchanges()
    assert same(exchange.reply.info, env.reset()[1])  # type: ignore[union-attr]


def test_an_unrecorded_session_says_nothing(tmp_path: Path) -> None:
    host = SessionHost([Service("count", Factory("tests:Count", Count))])
    opened = PLAIN.decode(host.open(SID, 1, Open("count", bytes(16)), None))
    assert isinstance(opened, Opened)
    assert "recorded" not in opened.limits
    assert type(host.slots[SID].session).__name__ == "Session"


def test_a_file_can_be_read_with_msgpack_alone(learner: Learner, tmp_path: Path) -> None:
    import msgpack

    learner.do(Reset(3), Act(1))
    learner.leave()
    with next(tmp_path.glob(f"*{COMPLETE}")).open("rb") as file:
        header, *exchanges, end = msgpack.Unpacker(file)
    assert (header["format"], header["version"]) == ("gymwire-episode", 1)
    assert [[frame[2] for frame in pair] for pair in exchanges] == [[1, 2], [3, 4]]  # the kinds
    assert end == {"end": "closed", "steps": 1}


def test_what_comes_between_two_episodes_is_in_the_file_of_the_second(
    learner: Learner, tmp_path: Path
) -> None:
    change, look = Call("set", "steps", (1,)), Call("get", "np_random_seed")
    learner.do(change, look, Reset(1), Act(1), Act(1), Act(1), Act(2), look, change, Reset("x"))
    learner.do(Reset(2), change, Act(3))
    learner.leave()
    first, second = files(tmp_path)
    kinds = [[type(one.request).__name__ for one in part.exchanges()] for part in (first, second)]
    assert kinds == [
        ["Call", "Reset", "Act", "Act", "Act"],
        ["Act", "Call", "Reset", "Reset", "Call", "Act"],
    ]
    assert (first.changes_before, second.changes_before) == (0, 1)
    assert (first.header["seed"], second.header["seed"]) == (1, 2)


def test_what_is_not_kept_between_two_episodes_is_counted(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_LATER", 10_000)
    learner.do(*[Call("set", "steps", (bytes(4_000),))] * 4, Reset(1))
    learner.leave()
    [part] = files(tmp_path)
    assert (len(part.frames), part.changes_before) == (3, 2)


def test_calls_while_the_disk_is_too_slow_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_BACKLOG", 300_000)
    monkeypatch.setattr(Recorder, "_run", lambda self: None)
    learner = Learner(tmp_path, num_envs=2)
    learner.do(Reset([1, 2]), *[Act(np.array([1, 2]))] * 7, Call("set", "steps", (1,)))
    learner.recorder._drain()
    learner.do(Reset([3, 4]))
    learner.leave()
    learner.recorder._drain()
    assert [part.changes_before for part in files(tmp_path)][1:] == [1], files(tmp_path)


MALFORMED = [b"", b"\xc1", b"\x80", b"\x92\xa1\xff\xa1x", b"\x92\x90\x90", b"\x91" * 2000]


@pytest.mark.parametrize("head", MALFORMED)
def test_a_malformed_call_ends_no_recording(learner: Learner, tmp_path: Path, head: bytes) -> None:
    assert isinstance(learner.call(head), Error)
    learner.do(Reset(1), Act(1))
    learner.call(head)
    learner.do(Act(1), Act(1))
    learner.call(head)
    learner.do(Reset(2), Act(1))
    learner.leave()
    first, second = files(tmp_path)
    assert (first.end, len(first.frames)) == ("ended", 5)
    assert (second.end, len(second.frames), second.changes_before) == ("closed", 2, 0)


@pytest.mark.parametrize("size", [8, 24])  # without the tag of a signed session, and with it
def test_a_malformed_call_is_no_change_while_the_disk_is_too_slow(
    learner: Learner, size: int
) -> None:
    episode = learner.recorder.none()
    episode.cut = True
    frame = LAYOUT.pack(MAGIC, VERSION, Kind.CALL, 0, 0, SID, 1)[:size]
    learner.recorder.put(episode, frame, b"")
    assert episode.unrecorded == 0


def test_whatever_one_episode_raises_ends_no_other_one(learner: Learner, tmp_path: Path) -> None:
    broken = learner.recorder.none()
    with structlog.testing.capture_logs() as log:
        learner.recorder.put(broken, b"", b"")  # no kind
        learner.do(Reset(1))
        learner.leave()
    assert [row["event"] for row in log] == ["recording failed"]
    assert [part.end for part in files(tmp_path)] == ["closed"]


def test_an_error_of_a_step_is_recorded(learner: Learner, tmp_path: Path) -> None:
    learner.do(Reset(1), Act(8))
    learner.leave()
    [part] = files(tmp_path)
    assert [type(one.reply).__name__ for one in part.exchanges()] == ["Status", "Error"]


def test_an_episode_is_complete_when_it_has_ended(learner: Learner, tmp_path: Path) -> None:
    learner.do(Reset(1), Act(1), Act(1), Act(1))
    learner.recorder.close()  # the session goes on
    assert [part.end for part in files(tmp_path)] == ["ended"]


def test_the_episode_of_a_vector_ends_with_the_next_reset(tmp_path: Path) -> None:
    learner = Learner(tmp_path, num_envs=2)
    learner.do(Reset([1, 2]), *[Act(np.array([1, 2]))] * 7, Reset(None), Act(np.array([0, 0])))
    learner.leave()
    first, second = files(tmp_path)
    assert (first.end, len(first.frames), first.header["seed"]) == ("reset", 8, [1, 2])
    assert [one["bit_generator"] for one in second.header["generator"]] == ["PCG64", "PCG64"]


def test_a_long_episode_has_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_PART", 100_000)
    learner = Learner(tmp_path, num_envs=2)
    learner.do(Reset([1, 2]), *[Act(np.array([1, 2]))] * 7)
    learner.leave()
    parts = files(tmp_path)
    assert [part.header["part"] for part in parts] == [1, 2, 3, 4]
    assert [part.end for part in parts][:3] == ["continued"] * 3
    counts = [part.header["steps_before"] for part in parts]
    assert counts == sorted(counts)
    assert sum(len(part.frames) for part in parts) == 8


def test_the_folder_is_bounded_and_the_oldest_episodes_go(tmp_path: Path) -> None:
    learner = Learner(tmp_path, limit=MIB)
    for seed in range(60):  # 160 kB each
        learner.do(Reset(seed), Act(1), Act(1), Act(1))
    learner.leave()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= MIB * 1.25
    seeds = [part.header["seed"] for part in files(tmp_path)]
    assert seeds == list(range(60))[-len(seeds) :]
    assert len(seeds) >= 4


def test_a_killed_process_loses_no_finished_step(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        Recorder._run = lambda self: None  # type: ignore[method-assign]
        learner = Learner(tmp_path)
        learner.do(Reset(1), Act(1))
        learner.recorder._drain()
        os._exit(9)
    os.waitpid(pid, 0)
    [running] = tmp_path.glob(f"*{RUNNING}")
    with running.open("ab") as file:
        file.write(b"\x92\xc4")  # the beginning of an exchange
    alive = Learner(tmp_path)
    alive.do(Reset(2))
    Recorder(tmp_path, MIB).close()  # of another worker: it leaves the files of a live one alone
    alive.leave()
    lost, whole = files(tmp_path)
    assert (lost.end, len(lost.frames), whole.end) == ("", 2, "closed")


def test_the_folder_stays_the_same_if_an_environment_changes_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    learner = Learner(Path("recorded"))
    monkeypatch.chdir("/")
    learner.do(Reset(1), Act(1))
    learner.leave()
    [part] = files(tmp_path / "recorded")
    assert len(part.frames) == 2


def test_a_full_disk_ends_the_recording_but_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Recorder, "_run", lambda self: None)
    learner = Learner(tmp_path)
    with structlog.testing.capture_logs() as log:
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "_flush", fail)
            for seed in (1, 2):
                replies = learner.do(Reset(seed), Act(1))
                learner.recorder._drain()
        assert isinstance(replies[1], Percept)
        learner.do(Reset(3), Act(1))
        close_all(learner.host)
        learner.recorder._drain()
    assert [row["event"] for row in log if row["log_level"] == "error"] == ["recording failed"]
    assert [part.header["seed"] for part in files(tmp_path)] == [3]


def test_a_slow_disk_cuts_the_episode_but_delays_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_BACKLOG", 300_000)
    monkeypatch.setattr(Recorder, "_run", lambda self: None)
    learner = Learner(tmp_path, num_envs=2)
    with structlog.testing.capture_logs() as log:
        learner.do(Reset([1, 2]), *[Act(np.array([1, 2]))] * 7)
    assert [row["event"] for row in log] == ["recording cut"]
    learner.recorder._drain()
    [part] = files(tmp_path)
    assert (part.end, len(part.frames)) == ("cut", 4)


def test_many_short_exchanges_count_with_what_they_take_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_BACKLOG", 100_000)
    monkeypatch.setattr(Recorder, "_run", lambda self: None)
    learner = Learner(tmp_path)
    with structlog.testing.capture_logs() as log:
        learner.do(Reset(1), *[Call("get", "np_random_seed")] * 400)
    assert [row["event"] for row in log] == ["recording cut"]
    learner.recorder._drain()
    assert 100 < len(files(tmp_path)[0].frames) < 200


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used for recordings"):
        Recorder(path if kind == "file" else path / "more", MIB)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xc1", b"hello", values.encode({"format": "other"}), values.encode([1, 2])),
        *(b"\xdf", b"\x81\x90\xc0", b"\xdd\x0f\xff\xff\xff" * 1000, b"\x91" * 5000),
        *(b"\xc6\x20\x00\x00\x00", b"\xd6\xff\x00\x00\x00\x00", b"\xc7\x05\x01abcde"),
        b"\x91" * 200 + b"\xc0",
    ],
)
def test_a_file_that_is_not_a_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.episode"
    path.write_bytes(content)
    with pytest.raises(DecodingError, match=r"x\.episode is not a recorded episode"):
        recordings.read(path)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.episode"
    os.mkfifo(path)
    with pytest.raises(DecodingError, match=r"x\.episode is not a file"):
        recordings.read_header(path)


def test_the_objects_of_a_hostile_file_are_decoded_as_those_of_a_peer(tmp_path: Path) -> None:
    path = tmp_path / "x.episode"
    path.write_bytes(recordings.pack_header(HEADER) + b"\x81\x90\xc0")
    with pytest.raises(DecodingError, match="malformed"):
        recordings.read(path)


def test_a_request_that_is_none_of_an_episode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.episode"
    spaces = {f"{name}_space": [["Discrete", "<i8", 2, 0]] for name in ("observation", "action")}
    frame = bytes(PLAIN.encode(Close(), 1, 1))
    path.write_bytes(
        recordings.pack_header({**HEADER, **spaces}) + recordings.pack_exchange(frame, frame)
    )
    with pytest.raises(DecodingError, match="Close is not a request of an episode"):
        list(recordings.read(path).exchanges())


def test_a_later_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.episode"
    path.write_bytes(values.encode({"format": recordings.FORMAT, "version": 2}))
    with pytest.raises(DecodingError, match="has version 2 of the format"):
        recordings.read_header(path)


@pytest.mark.parametrize("damage", [b"\x01", b"\x92\x01\x02", b"\x80", b"\xa1x"])
def test_an_unknown_object_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.episode"
    header = HEADER
    path.write_bytes(recordings.pack_header(header) + damage)
    with pytest.raises(DecodingError, match="is damaged: it has an unknown object"):
        recordings.read(path)
    for name in recordings.KEYS:
        path.write_bytes(recordings.pack_header({**header, name: b"wrong"}))
        if recordings.KEYS[name] is not object:
            with pytest.raises(DecodingError, match=f"damaged: '{name}'"):
                recordings.read_header(path)
        path.write_bytes(recordings.pack_header({k: v for k, v in header.items() if k != name}))
        with pytest.raises(DecodingError, match=f"damaged: '{name}'"):
            recordings.read_header(path)
