from __future__ import annotations

import gymnasium.error
import pytest

from gymwire.protocol.dialogue import REQUESTS, State, after, check_request
from gymwire.protocol.errors import EnvironmentClosed, MoveError, ResetNeeded
from gymwire.protocol.messages import Kind

REPLIES = {
    Kind.RESET: Kind.STATUS,
    Kind.ACT: Kind.PERCEPT,
    Kind.RENDER: Kind.FRAME,
    Kind.CALL: Kind.RESULT,
    Kind.CLOSE: Kind.CLOSED,
}
LEGAL = {
    State.READY: {Kind.RESET, Kind.RENDER, Kind.CALL, Kind.CLOSE},
    State.EPISODE: {Kind.RESET, Kind.ACT, Kind.RENDER, Kind.CALL, Kind.CLOSE},
    State.CLOSED: {Kind.CLOSE},
}


def test_the_requests_are_those_of_the_gym_dialogue() -> None:
    assert REPLIES.keys() == REQUESTS


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", State)
def test_each_request_is_legal_in_its_states_and_nowhere_else(state: State, kind: Kind) -> None:
    if kind in LEGAL[state]:
        check_request(state, kind)
    else:
        with pytest.raises(MoveError):
            check_request(state, kind)


@pytest.mark.parametrize("request_", Kind)
@pytest.mark.parametrize("state", State)
def test_each_request_has_one_reply_and_error(state: State, request_: Kind) -> None:
    expected = {Kind.ERROR: state}
    if request_ in LEGAL[state]:
        target = {Kind.RESET: State.EPISODE, Kind.CLOSE: State.CLOSED}.get(request_, state)
        expected[REPLIES[request_]] = target
    for reply in Kind:
        if reply in expected:
            assert after(state, request_, reply) is expected[reply]
        else:
            with pytest.raises(MoveError):
                after(state, request_, reply)


def test_a_step_before_reset_is_also_gymnasiums_error() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        check_request(State.READY, Kind.ACT)
    assert issubclass(ResetNeeded, MoveError)


@pytest.mark.parametrize("kind", REQUESTS - {Kind.CLOSE})
def test_what_comes_after_close_is_also_gymnasiums_error(kind: Kind) -> None:
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        check_request(State.CLOSED, kind)
    assert issubclass(EnvironmentClosed, MoveError)
