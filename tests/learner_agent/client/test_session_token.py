"""Session tokens are kept in files, so their bytes stay those of release 0.1.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gymwire.learner_agent.client import session_token
from gymwire.learner_agent.client.session_token import SessionToken
from gymwire.protocol.dialogue import State
from gymwire.protocol.security.signing import Signer
from tests.protocol.test_golden import read

KEPT = read(Path(__file__).parents[2] / "golden" / "session-tokens-0.1.0.txt")
KWARGS: dict[str, Any] = {
    "address": "cartpole",
    "broker": "tcp://127.0.0.1:5555",
    "key": None,
    "broker_key": None,
    "direct": "auto",
    "on_lost": "raise",
    "render_mode": None,
    "env_kwargs": {},
    "timeout_s": 60.0,
    "step_timeout_s": None,
    "wait_s": 0.0,
}
SIGNERS = {"plain": None, "signed": Signer(bytes(range(32)), bytes(range(32, 64)))}


@pytest.mark.parametrize("name", KEPT)
def test_a_token_is_the_same_in_release_0_1_0(name: str) -> None:
    token = SessionToken(KWARGS, 5, bytes(16), 3, State.EPISODE, b"", SIGNERS[name])
    assert session_token.decode(KEPT[name]) == token
    assert token.encode() == KEPT[name]
