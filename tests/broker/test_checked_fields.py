"""The broker refuses offers and OPENED that no learner could use, and says why."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from gymwire.broker.core import Core
from gymwire.protocol.messages import Code, Error, Gone, Offered, Open, Opened, Role
from tests.broker.harness import DISCRETE, Broker, offer, only, opened

ENV = b"\x01env"
NONCE = b"n" * 16


@pytest.fixture
def broker() -> Broker:
    return Broker()


def notes(core: Core, event: str) -> list[dict[str, object]]:
    return [note.facts for note in core.take_notes() if note.event == event]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("env_id", ""),
        ("observation_space", None),
        ("observation_space", [["Box", "<f4", [2], 0.0]]),
        ("action_space", []),
        ("action_space", [*DISCRETE, *DISCRETE]),
        ("spec", {1: 2}),
        ("spec", {"id": 7}),
        ("capacity", 2**40),
        ("digest", b"short"),
    ],
)
def test_a_wrong_field_of_an_offer_is_named_and_logged(
    broker: Broker, field: str, value: Any
) -> None:
    broker.hello(ENV, Role.ENV)
    error = only(broker.say(ENV, replace(offer("cartpole"), **{field: value})), Error)
    assert error.code == Code.PROTOCOL
    assert f"OFFER.{field}" in error.text
    [note] = notes(broker.core, "offer refused")
    assert note["address"] == "cartpole"
    assert f"OFFER.{field}" in str(note["why"])


def test_a_repeated_wrong_offer_is_logged_once(broker: Broker) -> None:
    broker.hello(ENV, Role.ENV)
    for _ in range(3):
        only(broker.say(ENV, replace(offer("cartpole"), digest=b"short")), Error)
    assert len(notes(broker.core, "offer refused")) == 1


def test_an_empty_digest_is_computed_from_the_spaces(broker: Broker) -> None:
    digest = hashlib.sha256(msgpack.packb(["CartPole-v1", DISCRETE, DISCRETE])).digest()
    for rid, own in ((ENV, b""), (b"\x01other", digest)):
        broker.hello(rid, Role.ENV)
        only(broker.say(rid, replace(offer("cartpole"), digest=own)), Offered)
    broker.hello(b"\x01third", Role.ENV)
    error = only(broker.say(b"\x01third", offer("cartpole", digest=b"another")), Error)
    assert error.code == Code.ADDRESS_TAKEN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("observation_space", None),
        ("action_space", [["Cube"]]),
        ("single_action_space", []),
        ("spec", {"id": 7}),
        ("num_envs", -1),
    ],
)
def test_a_wrong_field_of_opened_ends_the_session_for_both(
    broker: Broker, field: str, value: Any
) -> None:
    env, learner = broker.env(ENV), broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", NONCE), seq=1)
    sid = forwarded.header.sid
    gone, refused = broker.say(env, replace(opened(), **{field: value}), sid, 1)
    assert (gone.rid, gone.header.sid) == (env, sid)
    assert (refused.rid, refused.header.sid, refused.header.seq) == (learner, sid, 1)
    assert isinstance(gone.message, Gone)
    assert isinstance(refused.message, Error)
    assert refused.message.code == Code.OPEN_FAILED
    assert f"OPENED.{field}" in refused.message.text
    assert f"OPENED.{field}" in gone.message.reason
    [note] = notes(broker.core, "session refused")
    assert f"OPENED.{field}" in str(note["why"])


@pytest.mark.parametrize(("code", "count"), [(Code.OPEN_FAILED, 2), (Code.NO_FREE_SLOT, 0)])
def test_a_refusal_that_learners_wait_out_is_not_logged(
    broker: Broker, code: str, count: int
) -> None:
    env, learner = broker.env(ENV), broker.learner()
    for seq in (1, 2):
        [forwarded] = broker.say(learner, Open("cartpole", NONCE), seq=seq)
        only(broker.say(env, Error(code, "why"), forwarded.header.sid, seq), Error)
    assert len(notes(broker.core, "session refused")) == count


def test_an_opened_with_the_content_of_an_earlier_one_is_not_checked_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Opened] = []
    monkeypatch.setattr("gymwire.broker.sessions.check_opened", checked.append)
    env, learner = broker.env(ENV), broker.learner()
    contents = [opened(), opened(), replace(opened(), num_envs=1), opened()]
    for number, content in enumerate(contents):
        [forwarded] = broker.say(learner, Open("cartpole", bytes([number]) * 16), seq=1)
        sent = only(broker.say(env, content, forwarded.header.sid, 1), Opened)
        assert sent.num_envs == content.num_envs
    assert [one.num_envs for one in checked] == [0, 1]


def test_a_malformed_opened_is_refused_each_time_also_after_a_valid_one(broker: Broker) -> None:
    env, learner = broker.env(ENV), broker.learner()
    wrong = replace(opened(), action_space=[])
    for number, content in enumerate([opened(), wrong, wrong]):
        [forwarded] = broker.say(learner, Open("cartpole", bytes([number]) * 16), seq=1)
        sent = broker.say(env, content, forwarded.header.sid, 1)
        assert [type(one.message) for one in sent] == ([Opened] if not number else [Gone, Error])


def test_a_vector_has_the_spaces_of_one_environment(broker: Broker) -> None:
    env, learner = broker.env(ENV), broker.learner()
    [forwarded] = broker.say(learner, Open("cartpole", NONCE, num_envs=2), seq=1)
    _, refused = broker.say(env, replace(opened(), num_envs=2), forwarded.header.sid, 1)
    assert isinstance(refused.message, Error)
    assert "single_observation_space" in refused.message.text


def test_a_message_of_several_parts_is_answered(broker: Broker) -> None:
    [send] = broker.core.multipart(ENV, broker.now)
    assert send.rid == ENV
    [note] = notes(broker.core, "frame refused")
    assert "exactly one part" in str(note["why"])
