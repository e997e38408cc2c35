"""The bytes of every message, so that no change of the wire format goes unnoticed.

After an intended change, `python -m tests.protocol.test_golden` writes the file again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gymwire.protocol.codec import read_header
from gymwire.protocol.messages import TYPES
from tests.protocol.examples import CODEC, EXAMPLES
from tests.sameness import assert_same

FILE = Path(__file__).parents[1] / "golden" / "messages.txt"


def read(path: Path) -> dict[str, bytes]:
    """Name → bytes, from a file."""
    found: dict[str, bytes] = {}
    for block in path.read_text(encoding="ascii").strip().split("\n\n"):
        name, *rows = block.splitlines()
        found[name.removeprefix("# ")] = bytes.fromhex("".join(rows))
    return found


def golden() -> dict[str, bytes]:
    """Name → bytes, of this release."""
    return read(FILE)


def write() -> None:
    """Write the file from what the code does now."""
    blocks = []
    for name, example in EXAMPLES.items():
        text = bytes(CODEC.encode(*example)).hex()
        rows = [text[i : i + 96] for i in range(0, len(text), 96)]
        blocks.append("\n".join([f"# {name}", *rows]))
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("\n\n".join(blocks) + "\n", encoding="ascii")


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, *_ in EXAMPLES.values()} == set(TYPES.values())
    assert golden().keys() == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_is_these_bytes(name: str) -> None:
    assert bytes(CODEC.encode(*EXAMPLES[name])) == golden()[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_these_bytes_are_the_message(name: str) -> None:
    message, *number = EXAMPLES[name]
    header = read_header(golden()[name])
    assert [header.sid, header.seq] == number
    back = CODEC.decode(golden()[name], header)
    assert type(back) is type(message)
    for field in type(message).__dataclass_fields__:
        assert_same(getattr(back, field), getattr(message, field), field)


if __name__ == "__main__":
    write()
