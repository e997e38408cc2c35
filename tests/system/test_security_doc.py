"""The commands of docs/security.md, run as they are written, on one host and a free port."""

from __future__ import annotations

import re
from pathlib import Path

from gymwire.broker import auth
from tests.docs.pages import blocks, commands
from tests.docs.terminals import Terminals

PAGE = "docs/security.md"


def test_a_remote_host_with_keys_as_the_page_shows_it(tmp_path: Path) -> None:
    [script] = blocks(PAGE, "python")
    with Terminals(tmp_path) as terminals:
        *_, printed = [terminals.run(line) for line in commands(PAGE)]
        assert "10 episodes" in printed
        terminals.script(f"from gymwire import ProxyEnv\n{script.text}\nenv.close()")


def test_the_policy_that_the_page_shows_is_valid() -> None:
    [block] = [one for one in blocks(PAGE, "toml") if "[peer." in one.text]
    keys = iter(["a" * 40, "b" * 40, "c" * 40])
    text = re.sub(
        r'^key = "[^"]*"', lambda _: f'key = "{next(keys)}"', block.text, flags=re.MULTILINE
    )
    policy = auth.parse(text)
    assert [rights.name for rights in policy.peers.values()] == ["lab", "alice", "operator"]
    assert policy.anyone is not None
