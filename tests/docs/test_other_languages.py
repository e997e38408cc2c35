"""What docs/protocol.md says for implementations in other languages, against the code."""

from __future__ import annotations

import random

from gymwire.broker.tables import Tables
from gymwire.protocol.messages import Resume, Resumed, Role, Welcome
from tests.broker.harness import Broker, only
from tests.docs.test_protocol_text import clause

# Session ids, §13.3


def test_a_float_holds_every_sid_that_the_broker_chooses() -> None:
    assert "below 2^53" in clause("13.3")
    tables = Tables(random.Random(1))
    sids = [tables.new_sid() for _ in range(1000)]
    assert len({*sids}) == 1000
    assert max(sids) > 2**52  # they use all bits
    assert all(0 < sid < 2**53 and int(float(sid)) == sid for sid in sids)


def test_the_broker_takes_a_session_with_a_larger_sid() -> None:
    broker = Broker()
    sid, agent = 2**63 - 1, b"\x01agent"
    only(broker.hello(agent, Role.ENV, sessions=[[sid, bytes(16), "cartpole", ""]]), Welcome)
    learner = broker.learner()
    only(broker.say(learner, Resume(bytes(16), False), sid, 1), Resumed)
    assert broker.reaches(learner, sid) == agent
