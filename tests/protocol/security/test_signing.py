from __future__ import annotations

import pytest
import zmq
from gymnasium import spaces as gym_spaces

from gymwire.protocol import spaces
from gymwire.protocol.codec import PLAIN, Codec, read_header
from gymwire.protocol.errors import DecodingError, Denied
from gymwire.protocol.messages import Act, Error, Opened
from gymwire.protocol.security import keys, signing
from gymwire.protocol.security.keys import KeyPair
from gymwire.protocol.security.signing import Challenge, SignedCodec, Signer

AGENT = KeyPair(*zmq.curve_keypair())
IMPOSTOR = KeyPair(*zmq.curve_keypair())
PIN = keys.identity(AGENT.public)
NONCE, SID = b"n" * 16, 7


def opened_by(pair: KeyPair, challenge: Challenge, named: bytes = b"") -> tuple[bytes, Signer]:
    signed = signing.answer_challenge(pair, challenge.public, NONCE, SID)
    assert signed is not None
    opened = Opened(None, None, None, None, {}, {}, None, 0, {}, "", key=named or pair.public)
    return bytes(signed.sign(PLAIN.encode(opened, SID, 1))), signed


def both() -> tuple[Signer, Signer]:
    challenge = Challenge()
    frame, agent = opened_by(AGENT, challenge)
    return challenge.signer(PIN, AGENT.public, NONCE, SID, frame), agent


def test_learner_and_agent_derive_the_same_keys_crosswise() -> None:
    learner, agent = both()
    assert (learner.mine, learner.theirs) == (agent.theirs, agent.mine)
    assert learner.mine != learner.theirs


def test_an_agent_with_another_key_is_denied() -> None:
    challenge = Challenge()
    frame, _ = opened_by(IMPOSTOR, challenge)
    with pytest.raises(Denied, match=f"the pinned {PIN}"):
        challenge.signer(PIN, IMPOSTOR.public, NONCE, SID, frame)


def test_an_agent_that_names_the_pinned_key_without_having_it_is_denied() -> None:
    challenge = Challenge()
    frame, _ = opened_by(IMPOSTOR, challenge, named=AGENT.public)
    with pytest.raises(Denied):
        challenge.signer(PIN, AGENT.public, NONCE, SID, frame)


def test_a_proof_is_good_for_its_own_session_only() -> None:
    challenge = Challenge()
    frame, _ = opened_by(AGENT, challenge)
    for nonce, sid in ((b"m" * 16, SID), (NONCE, SID + 1)):
        with pytest.raises(Denied):
            challenge.signer(PIN, AGENT.public, nonce, sid, frame)
    with pytest.raises(Denied):  # a recorded one does not answer a new challenge
        Challenge().signer(PIN, AGENT.public, NONCE, SID, frame)


def test_a_changed_opened_is_denied() -> None:
    challenge = Challenge()
    frame, _ = opened_by(AGENT, challenge)
    for at in (0, 8, 30, len(frame) - 1):
        changed = bytearray(frame)
        changed[at] ^= 1
        with pytest.raises(Denied):
            challenge.signer(PIN, AGENT.public, NONCE, SID, bytes(changed))


@pytest.mark.parametrize("challenge", [b"x", bytes(32), b"\x01" + bytes(31)])
def test_an_invalid_or_low_order_challenge_gets_no_signer(challenge: bytes) -> None:
    assert signing.answer_challenge(AGENT, challenge, NONCE, SID) is None


def test_a_signed_frame_is_accepted_and_a_changed_one_is_not() -> None:
    learner, agent = both()
    space = spaces.compile(gym_spaces.Discrete(3))
    mine, theirs = SignedCodec(learner, space, space), SignedCodec(agent, space, space)
    frame = bytes(mine.encode(Act(2), SID, 5))
    assert theirs.decode(frame, read_header(frame)) == Act(2)
    assert mine.encode(Act(2), SID, 5) == frame  # sent again, it is the same to the byte
    for at in range(len(frame)):
        changed = bytearray(frame)
        changed[at] ^= 1
        with pytest.raises(DecodingError):
            theirs.decode(bytes(changed))


def test_a_frame_is_not_reflected_to_its_sender() -> None:
    learner, _ = both()
    codec = SignedCodec(learner)
    frame = codec.encode(Act(2), SID, 5)
    with pytest.raises(DecodingError):
        codec.decode(frame, read_header(frame))


def test_without_a_tag_only_an_error_is_taken() -> None:
    learner, _ = both()
    codec = SignedCodec(learner)
    error = Codec().encode(Error("denied", "no"), SID, 5)
    assert codec.decode(error, read_header(error)) == Error("denied", "no")
    act = Codec().encode(Act(2), SID, 5)
    with pytest.raises(DecodingError, match="changed or forged it"):
        codec.decode(act, read_header(act))
