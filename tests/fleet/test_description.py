"""fleet.toml: what it means, and what its errors name."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gymwire.fleet.description import Fleet, load
from gymwire.fleet.toml_text import line_of, tables_text
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys

HEAD = '[fleet]\nname = "lab"\nbroker = "tcp://b:5555"\n'
OFFER = '[[offer]]\naddress = "cartpole"\nenv = "CartPole-v1"\n'


def read(tmp_path: Path, text: str) -> Fleet:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return load(path)


def test_a_short_file_describes_one_agent(tmp_path: Path) -> None:
    fleet = read(tmp_path, HEAD + OFFER)
    assert (fleet.name, fleet.broker, fleet.scale.least, fleet.scale.most) == (
        "lab",
        "tcp://b:5555",
        1,
        1,
    )
    assert fleet.scale.slots == {"cartpole": 64}
    assert (fleet.place, fleet.resources.cpus, fleet.resources.memory) == ("spread", 1.0, None)


def test_agents_say_how_many_and_where(tmp_path: Path) -> None:
    fleet = read(
        tmp_path,
        HEAD
        + "[agents]\nmin = 2\nmax = 8\nfree_slots = 5\ncpus = 0.5\ngpus = 1\nmemory = '1.5GiB'\n"
        + "place = { zone = 'a' }\n"
        + OFFER,
    )
    assert (fleet.scale.least, fleet.scale.most, fleet.scale.free_slots) == (2, 8, 5)
    assert (fleet.resources.cpus, fleet.resources.gpus) == (0.5, 1.0)
    assert fleet.resources.memory == 3 * 2**29
    assert fleet.place == {"zone": "a"}


def test_a_plan_has_the_offers_and_keys_in_files_only(tmp_path: Path) -> None:
    secret, _ = keys.generate("agent", tmp_path)
    _, public = keys.generate("broker", tmp_path)
    fleet = read(tmp_path, HEAD + f"key = '{secret.name}'\nbroker_key = '{public.name}'\n" + OFFER)
    plan = fleet.plan(3)
    assert (plan.name, plan.number) == ("lab/3", 3)
    text = {file.variable: file.text for file in plan.files}
    assert text["GYMWIRE_KEY"] == secret.read_text()
    assert tomllib.loads(text["GYMWIRE_CONFIG"])["offer"][0]["address"] == "cartpole"
    assert keys.load(secret).secret.decode() not in repr(plan)


def test_a_tilde_in_the_path_of_a_key_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    secret, _ = keys.generate("agent", home)
    _, public = keys.generate("broker", home)
    text = f"key = '~/{secret.name}'\nbroker_key = '~/{public.name}'\n"
    assert read(tmp_path, HEAD + text + OFFER).key == secret


@pytest.mark.parametrize(
    ("text", "line", "key", "allowed"),
    [
        (HEAD + "grace_s = 'x'\n" + OFFER, 4, "grace_s in [fleet]", "from 0 to"),
        (HEAD + "grace_s = 1e300\n" + OFFER, 4, "grace_s in [fleet]", "from 0 to 100000000"),
        (HEAD + "[agents]\nmax = 2\nidle_s = 1e9\n" + OFFER, 6, "idle_s in [agents]", "from 0"),
        ('[fleet]\nname = "La b"\nbroker = "tcp://b:1"\n' + OFFER, 2, "name", "a-z, 0-9"),
        ('[fleet]\nname = "lab"\nbroker = "b"\n' + OFFER, 3, "broker", "tcp://HOST:PORT"),
        (HEAD + OFFER + "[agents]\ncuont = 3\n", 8, "cuont in [agents]", "count, min, max"),
        (HEAD + "[agents]\ncount = 0\n" + OFFER, 5, "count", "from 1 to"),
        (HEAD + "[agents]\nmin = 3\nmax = 2\n" + OFFER, 5, "min", "at most max, which is 2"),
        (HEAD + "[agents]\ncount = 3\nmax = 2\n" + OFFER, 6, "max", "either count, or min and max"),
        (HEAD + "[agents]\nplace = 'far'\n" + OFFER, 5, "place", "'spread', 'packed' or labels"),
        (HEAD + "[agents]\nmemory = 'much'\n" + OFFER, 5, "memory", "'4GiB'"),
        (HEAD + "[agents]\nmemory = '0.5'\n" + OFFER, 5, "memory", "'4GiB'"),
        (HEAD + "[agents]\ndirect = 'x'\n" + OFFER, 5, "direct", "'never' or tcp://HOST:PORT"),
        (HEAD + OFFER + OFFER, 8, "address in [[offer]]", "offered twice"),
        (HEAD + OFFER + '[[offer]]\naddress = "a"\nenvv = "b"\n', 9, "envv", "env_kwargs"),
        (HEAD + OFFER + "max_sessions = 'x'\n", 7, "max_sessions", "a whole number"),
        (HEAD + OFFER + "max_sessions = 0\n", 7, "max_sessions", "from 1 to"),
        (HEAD + OFFER + "max_sessions = 1" + "0" * 30 + "\n", 7, "max_sessions", "from 1 to"),
        (HEAD + OFFER + 'python = "a\\u0000"\n', 7, "python", "a text of one line"),
        (HEAD + OFFER + "env_kwargs = { a = 0x" + "f" * 9999 + " }\n", 7, "env_kwargs", "digits"),
        (HEAD + OFFER + "expose = [1]\n", 7, "expose in [[offer]]", "a list of one-line texts"),
        (HEAD + OFFER + "wrap = [1]\n", 7, "wrap in [[offer]]", "a list of one-line texts"),
        (HEAD + OFFER + "spaces = 'x'\n", 7, "spaces in [[offer]]", "give python, too"),
        (HEAD + OFFER + "python = 'p'\nwrap = ['a']\n", 8, "wrap in [[offer]]", "leave out wrap"),
        (HEAD + OFFER + "python = ''\n", 7, "python in [[offer]]", "a text"),
        (HEAD + OFFER + "[slurm]\nminutes = -3\n", 8, "minutes in [slurm]", "from 1 to"),
        (HEAD + OFFER + "[slurm]\nminutes = 1" + "0" * 20 + "\n", 8, "minutes", "from 1 to"),
        (
            HEAD + OFFER + "[slurm]\nsetup = [1]\n",
            8,
            "setup in [slurm]",
            "a list of one-line texts",
        ),
        (HEAD + OFFER + "[slurm]\npartition = ''\n", 8, "partition in [slurm]", "a text"),
        (HEAD + OFFER + '[slurm]\npartition = "a\\nb"\n', 8, "partition", "a text of one line"),
        (HEAD + OFFER + '[slurm]\noptions = { "a\\nb" = 1 }\n', 8, "options", "one-line texts"),
        (
            HEAD + OFFER + "[slurm]\noptions = { a = [] }\n",
            8,
            "options in [slurm]",
            "numbers, true",
        ),
        (HEAD + OFFER + "[slurm]\noptions = { array = 1 }\n", 8, "options", "array finds the"),
        (HEAD + OFFER + "[kubernetes]\nsecret = 'A'\n", 8, "secret in [kubernetes]", "a-z, 0-9"),
        (HEAD + "[agents]\ngpus = 1.5\n" + OFFER, 5, "gpus in [agents]", "a part of one GPU"),
        (HEAD + "[agents]\ncpus = 1e30\n" + OFFER, 5, "cpus in [agents]", "from 0 to 10000"),
        (HEAD + "[agents]\nmemory = '9999999T'\n" + OFFER, 5, "memory", "'4GiB'"),
        (HEAD + "[agents]\nmemory = '1" + "0" * 400 + "'\n" + OFFER, 5, "memory", "'4GiB'"),
        (HEAD + '[agents]\nplace = { "a\\nb" = "c" }\n' + OFFER, 5, "place", "or labels"),
        (HEAD + "[agents]\nplace = { a = '' }\n" + OFFER, 5, "place", "or labels"),
        (HEAD, 1, "[[offer]]", "address, env"),
        (HEAD + OFFER + "[extra]\n", 7, "[extra]", "fleet, agents, offer"),
        (HEAD + 'key = "no.key"\n' + OFFER, 4, "key in [fleet]", "no.key"),
        (HEAD + 'key = "~nobody-here/a.key"\n' + OFFER, 4, "key in [fleet]", "~nobody-here"),
        (HEAD + 'key = "a\\u0000"\n' + OFFER, 4, "key in [fleet]", "a text of one line"),
    ],
)
def test_an_error_names_file_line_key_and_what_is_allowed(
    tmp_path: Path, text: str, line: int, key: str, allowed: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'fleet.toml'}, line {line}, "), message
    assert key in message
    assert allowed in message


def test_an_interpreter_that_this_machine_lacks_is_named(tmp_path: Path) -> None:
    fleet = read(tmp_path, HEAD + OFFER + "python = '/nonexistent'\n")
    with pytest.raises(
        ConfigurationError, match=r"line 7, python in \[\[offer\]\].*'/nonexistent'"
    ):
        fleet.check_interpreters()
    fleet = read(tmp_path, HEAD + OFFER + "python = '~nobody-here/python'\n")
    with pytest.raises(ConfigurationError, match="~nobody-here"):
        fleet.check_interpreters()
    for python in (sys.executable, "python3"):
        read(tmp_path, HEAD + OFFER + f"python = '{python}'\n").check_interpreters()


@pytest.mark.parametrize(
    ("key", "value", "said", "expected"),
    [
        (
            "env",
            "nomod:Thing",
            "GYMWIRE_CONFIG: a.toml, offer 2 ('b'): nomod:Thing: there is no module 'nomod'.",
            "nomod:Thing: there is no module 'nomod'.",
        ),
        (
            "env",
            "Gone-v1",
            "GYMWIRE_CONFIG: a.toml, offer 2: No environment 'Gone-v1': use --env package:Gone-v1.",
            "No environment 'Gone-v1': set env to package:Gone-v1.",
        ),
        (
            "python",
            "/bin/none",
            "The interpreter /bin/none cannot be started. Check --python.",
            "The interpreter /bin/none cannot be started. Check python.",
        ),
        (
            "python",
            "/bin/none",
            "/run/a.toml, offer 2: The interpreter /bin/none cannot be started. Check --python.",
            "The interpreter /bin/none cannot be started. Check python.",
        ),
        (
            "spaces",
            "nope:X",
            "GYMWIRE_CONFIG: a.toml, offer 2: --spaces nope:X: there is no module 'nope'.",
            "nope:X: there is no module 'nope'.",
        ),
        (
            "env",
            "nomod:Thing",
            "a.toml, offer 2: nomod:Thing: /bin/python has no module 'nomod'.",
            "nomod:Thing: /bin/python has no module 'nomod'.",
        ),
        (
            "env",
            "calvin_env:Calvin",
            "calvin_env:Calvin: /bin/python has no module 'calvin_env'.",
            "/bin/python has no module 'calvin_env'.",
        ),
    ],
)
def test_an_error_of_an_agent_names_the_line_of_its_offer(
    tmp_path: Path, key: str, value: str, said: str, expected: str
) -> None:
    needed = {"python": "p"} if key == "spaces" else {}
    offer = {"address": "two", "env": "x", **needed, key: value}
    text = "".join(f"{name} = '{each}'\n" for name, each in offer.items())
    fleet = read(tmp_path, HEAD + OFFER + "[[offer]]\n" + text)
    where = f"{tmp_path / 'fleet.toml'}, line {8 + [*offer].index(key)}, {key} in [[offer]]: "
    assert fleet.explain(f"exit 2: gymwire serve: {said}") == f"exit 2: {where}{expected}"
    assert fleet.explain("SIGKILL: no output") == "SIGKILL: no output"


def test_an_unknown_file_and_broken_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="line 1"):
        read(tmp_path, "a = \n")
    for value in ("9" * 5000, "[" * 5000 + "]" * 5000):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read(tmp_path, f"a = {value}\n")


def test_tables_are_written_as_they_were_read() -> None:
    tables: list[dict[str, Any]] = [
        {"address": "a", "env_kwargs": {"x y": [1, 2.5, True], "deep": {"é": 'q"\\\n'}}},
        {"address": "b", "expose": ["one"], "empty": {}, "large": 1e300, "unlimited": float("inf")},
    ]
    assert tomllib.loads(tables_text("offer", tables)) == {"offer": tables}


def test_the_line_of_a_key_is_that_in_its_own_table() -> None:
    text = "a = 1\n[x]\nb = 2\n[[y]]\nb = 3\n[y.c]\nb = 4\n[[y]]\nb = 5\n"
    assert line_of(text, "x", "b") == 3
    assert line_of(text, "y", "b") == 5
    assert line_of(text, "y", "b", 2) == 9
    assert line_of(text, "y", "c") == 6
    assert line_of(text, "y", "none", 2) == 8
    assert line_of(text, "none") == 1


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("x.a = 1\nx.b = 2\n", ("x", "b"), 2),
        ("# x\nx = { a = 1, b = 2 }\n", ("x", "b"), 2),
        ("\n[x.b]\nc = 1\n", ("x", "b"), 2),
        ("[y]\n\n[x.d]\nc = 1\n", ("x", "b"), 3),
        ("[ 'x' ]\n\"b\" = 2\n", ("x", "b"), 2),
        ("[x] # \u2028\r\nb = 2\r\n", ("x", "b"), 2),
        ("[x]\na = '''\nb = 1\n'''\nb = 2\n", ("x", "b"), 5),
        ("a = 1\nx = [{ b = 1 }, { b = 2 }, {}]\n", ("x", "b", 2), 2),
        ("a = 1\nx = 2\n", ("x", "b"), 2),
        ("[[x]]\n[x.b]\nc = 1\n[[x]]\n[x.b]\nc = 1\n", ("x", "b", 2), 5),
    ],
)
def test_the_line_of_a_key_is_found_in_every_style(
    text: str, key: tuple[Any, ...], line: int
) -> None:
    tomllib.loads(text)
    assert line_of(text, *key) == line
