from __future__ import annotations

from typing import Any

import pytest
from gymnasium import spaces

from gymwire.cli.ls import as_json, group, table
from gymwire.protocol.spaces import describe


def an_entry(**changes: Any) -> dict[str, Any]:
    return {
        "address": "line",
        "env_id": "Line-v0",
        "observation_space": describe(spaces.Discrete(4)),
        "action_space": describe(spaces.MultiDiscrete([10, 100])),
        "metadata": {},
        "capacity": 8,
        "used": 3,
        "host": "lab",
        "software": "gymwire 0.2.0",
        "identity": "",
        "direct": "",
        "state": "ready",
        **changes,
    }


def lines(*entries: dict[str, Any], **settings: Any) -> list[str]:
    return [line.plain for line in table(group(entries), **settings)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_an_address_is_one_row_with_its_spaces_in_short() -> None:
    _, row = lines(an_entry())
    assert cells(row) == [
        "line", "Line-v0", "Discrete(4)", "MultiDiscrete(10, 100)", "3/8", "lab", "ready",
    ]  # fmt: skip


def test_the_processes_of_an_address_are_one_row_together() -> None:
    _, row = lines(an_entry(), an_entry(host="other", used=1, capacity=2))
    assert "4/10" in row
    assert "2 hosts" in row


def test_verbose_lists_the_processes_below_their_address() -> None:
    _, row, first, second = lines(
        an_entry(), an_entry(host="other", direct="tcp://other:5600"), verbose=True
    )
    assert cells(row)[0] == "line"
    assert cells(first) == ["process 1", "gymwire 0.2.0", "3/8", "lab", "ready"]
    assert cells(second)[2:] == ["direct: tcp://other:5600", "3/8", "other", "ready"]


def test_verbose_tells_env_agents_from_their_workers() -> None:
    entries = [
        an_entry(pid=11, agent_pid=10, used=1, capacity=4),
        an_entry(pid=12, agent_pid=10, used=0, capacity=4, direct="tcp://lab:5600"),
        an_entry(pid=10, agent_pid=10, host="other"),  # the same number on another host
        an_entry(pid=20, agent_pid=20, state="silent"),
        an_entry(),  # of release 0.1.0
        an_entry(pid=31, agent_pid=30, state="draining"),
    ]
    rows = [cells(line) for line in lines(*entries, verbose=True)[2:]]
    assert [(row[0], *row[-3:]) for row in rows] == [
        ("agent 1 (pid 10)", "1/8", "lab", "ready"),
        ("worker 1 (pid 11)", "1/4", "lab", "ready"),
        ("worker 2 (pid 12)", "0/4", "lab", "ready"),
        ("agent 2 (pid 10)", "3/8", "other", "ready"),
        ("agent 3 (pid 20)", "3/8", "lab", "silent"),
        ("process 4", "3/8", "lab", "ready"),
        ("agent 5 (pid 30)", "3/8", "lab", "draining"),
        ("worker 1 (pid 31)", "3/8", "lab", "draining"),
    ]
    (listing,) = group(entries)
    processes: Any = as_json(listing)["processes"]
    assert [(one["pid"], one["agent_pid"]) for one in processes] == [
        (11, 10), (12, 10), (10, 10), (20, 20), (None, None), (31, 30),
    ]  # fmt: skip


@pytest.mark.parametrize("width", [10, 80, 120, None])
def test_no_width_shortens_an_address(width: int | None) -> None:
    address = "lab/a-robot-with-a-very-long-name/" + "x" * 90
    _, first, second = lines(an_entry(), an_entry(address=address), width=width)
    assert address in first + second
    assert "3/8" in first
    assert "3/8" in second


def test_a_narrow_terminal_shortens_spaces() -> None:
    _, row = lines(an_entry(), width=66)
    assert "MultiDiscre…" in row
    assert len(row) <= 66


def test_identities_have_a_column_only_if_there_are_any() -> None:
    assert "identity" not in lines(an_entry())[0]
    heading, row = lines(an_entry(identity="abcdefghij234567"))
    assert "identity" in heading
    assert "abcdefghij234567" in row


@pytest.mark.parametrize(
    ("states", "state", "slots"),
    [
        (["ready", "silent"], "ready", "3/8"),
        (["draining", "ready"], "ready", "6/16"),
        (["silent", "silent"], "silent", "6/16"),
        (["silent", "draining"], "draining", "3/8"),
    ],
)
def test_silent_processes_count_only_if_there_are_no_others(
    states: list[str], state: str, slots: str
) -> None:
    _, row = lines(*(an_entry(state=each) for each in states))
    assert cells(row)[-1] == state
    assert slots in row


def test_names_of_other_parties_cannot_steer_the_terminal() -> None:
    _, row = lines(an_entry(env_id="\x1b[2Jx[red]y\nz"))
    assert "\x1b" not in row
    assert "x[red]y z" in row


def test_an_address_whose_space_is_unknown_is_still_listed() -> None:
    assert " ? " in lines(an_entry(observation_space={"type": "Riddle"}))[1]


def test_the_json_object_of_an_address() -> None:
    (listing,) = group([an_entry(), an_entry(host="other", identity="abcdefghij234567")])
    assert as_json(listing) == {
        "address": "line",
        "env_id": "Line-v0",
        "observation_space": "Discrete(4)",
        "action_space": "MultiDiscrete(10, 100)",
        "used": 6,
        "capacity": 16,
        "state": "ready",
        "processes": [
            {
                "host": host, "software": "gymwire 0.2.0", "identity": identity, "direct": None,
                "used": 3, "capacity": 8, "state": "ready", "pid": None, "agent_pid": None,
            }
            for host, identity in (("lab", ""), ("other", "abcdefghij234567"))
        ],
    }  # fmt: skip
