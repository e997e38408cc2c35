"""docs/protocol.md agrees with the code.

Run `python -m tests.protocol.test_docs` to write the example frames and the diagram again.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gymwire.protocol import dialogue, stamps
from gymwire.protocol.codec import Frame
from gymwire.protocol.messages import KINDS, TYPES, BusyReason, Code, Kind, Percept
from tests.docs.dumps import dump
from tests.protocol.examples import CODEC, DOCUMENTED, OBSERVED, SID

PATH = Path(__file__).parents[2] / "docs" / "protocol.md"
DOC = PATH.read_text(encoding="utf-8")


def timed_frames() -> dict[str, Frame]:
    """Return an ACT of a learner, and a PERCEPT relayed by the broker, with time stamps."""
    act = stamps.request_stamps(CODEC.encode(*DOCUMENTED["ACT"]))
    _, request = stamps.strip_request(bytes(stamps.stamp_relay(bytes(act), 5_000, lambda: 8_000)))
    percept = CODEC.encode(Percept(OBSERVED, 0.0, False, False, {}), SID, 2)
    at = (90_000, 100_000, 102_000, 152_000)
    reply = stamps.append_reply(percept, request, *at, clock=lambda: 155_000)
    relayed = stamps.stamp_relay(bytes(reply), 205_000, lambda: 209_000)
    return {"ACT, timed": act, "PERCEPT, timed": bytes(relayed)}


def frames() -> dict[str, Frame]:
    """Return all examples, encoded."""
    return {name: CODEC.encode(*example) for name, example in DOCUMENTED.items()} | timed_frames()


def blocks(kind: str) -> dict[str, str]:
    """Return the fenced blocks of a language: title → content."""
    return {
        match[1].strip(): match[2]
        for match in re.finditer(rf"```{kind}([^\n]*)\n(.*?)\n```", DOC, re.DOTALL)
    }


def diagram() -> str:
    """Return the table of moves as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> ready: OPEN / OPENED"]
    for state, moves in dialogue.MOVES.items():
        for request, replies in moves.items():
            for reply, target in replies.items():
                label = f"{request.name} / {reply.name}"
                lines.append(f"    {state.value} --> {target.value}: {label}")
    lines.append("    closed --> [*]")
    return "\n".join(lines)


def test_the_diagram_is_that_of_the_table() -> None:
    assert list(blocks("mermaid").values()) == [diagram()]
    assert "    episode --> episode: ACT / PERCEPT" in diagram().splitlines()


@pytest.mark.parametrize("name", frames())
def test_each_example_is_what_the_codec_makes(name: str) -> None:
    assert blocks("hex").get(name) == dump(frames()[name])


def test_the_document_has_no_other_examples() -> None:
    assert set(blocks("hex")) == set(frames())


def test_every_message_is_listed_with_its_number_and_its_fields() -> None:
    rows = {
        int(match[1]): match[0]
        for match in re.finditer(r"^\| (\d+) \| [A-Z]+ \|.*$", DOC, re.MULTILINE)
    }
    assert set(rows) == {int(kind) for kind in Kind}
    for kind, row in rows.items():
        names = re.findall(r"`(\w+): [^`]+`", row)
        assert f"| {kind} | {Kind(kind).name} |" in row
        assert names == list(TYPES[Kind(kind)].__dataclass_fields__)


def test_the_table_of_moves_is_that_of_the_dialogue() -> None:
    text = DOC.partition("| state | request |")[2].partition("```mermaid")[0]
    moves, state = [], ""
    for line in text.splitlines()[2:]:
        if not line.startswith("|"):
            continue
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        state = first.partition(":")[0] or state
        moves.append((state, *rest))
    assert moves == [
        (state.value, request.name, reply.name, target.value)
        for state, requests in dialogue.MOVES.items()
        for request, replies in requests.items()
        for reply, target in replies.items()
    ]


def _constants(owner: type) -> set[str]:
    return {value for name, value in vars(owner).items() if name.isupper()}


def test_every_code_and_every_reason_for_busy_is_listed() -> None:
    first_cells = set(re.findall(r"^\| `([a-z-]+)` \|", DOC, re.MULTILINE))
    assert first_cells >= _constants(Code) | _constants(BusyReason)


def test_links_within_the_document_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", DOC, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert set(re.findall(r"\(#([^)]*)\)", DOC)) <= anchors


def test_clauses_that_are_cited_exist() -> None:
    cited = set(re.findall(r"§(\d+(?:\.\d+)*)", DOC))
    numbered = re.findall(r"^(?:\*\*|##+ )(\d+(?:\.\d+)*)\b", DOC, re.MULTILINE)
    assert cited <= set(numbered)


def test_every_message_type_has_a_kind() -> None:
    assert set(KINDS) == set(TYPES.values())


if __name__ == "__main__":
    for name, old in blocks("hex").items():
        new = dump(frames()[name])
        DOC = DOC.replace(f"```hex {name}\n{old}\n", f"```hex {name}\n{new}\n")
    for old in blocks("mermaid").values():
        DOC = DOC.replace(old, diagram())
    PATH.write_text(DOC, encoding="utf-8")
