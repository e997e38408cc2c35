from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys
from gymwire.protocol.security.keys import generate, identity, load, load_public


def test_the_secret_file_is_its_owners_alone(tmp_path: Path) -> None:
    secret, public = generate("broker", tmp_path / "new" / "folder")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.name == "broker.key"
    assert load(secret).secret not in public.read_bytes()


def test_a_pair_is_read_as_it_was_written(tmp_path: Path) -> None:
    secret, public = generate("a", tmp_path)
    pair = load(secret)
    assert len(pair.public) == len(pair.secret) == 40
    assert load_public(public) == load_public(str(public)) == pair.public
    assert load_public(pair.public.decode()) == pair.public


def test_a_path_of_40_characters_is_not_taken_for_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret, public = generate("a" * 36, Path())
    assert keys.is_public_key(str(public))
    assert load_public(str(public)) == load_public(public) == load(secret).public
    public.unlink()
    with pytest.raises(ConfigurationError, match=f"There is no key file at {public}"):
        load_public(public)
    assert load_public(str(public)) == str(public).encode()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    secret, _ = generate("a", tmp_path)
    secret.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load(secret)


@pytest.mark.parametrize("kept", ["a.key", "a.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).write_text("precious")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        generate("a", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    assert (tmp_path / kept).read_text() == "precious"


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a b", "x" * 101])
def test_a_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="not a valid name for a key"):
        generate(name, tmp_path)


def test_a_secret_does_not_show_in_a_repr(tmp_path: Path) -> None:
    pair = load(generate("a", tmp_path)[0])
    assert pair.secret.decode() not in repr(pair)


def test_an_identity_is_16_characters_of_the_public_key_alone() -> None:
    public = b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    assert identity(public) == "qqispborbevh576c"
    assert identity(public) != identity(public[::-1])


def test_a_public_file_has_no_secret_key(tmp_path: Path) -> None:
    _, public = generate("a", tmp_path)
    public.chmod(0o600)
    with pytest.raises(ConfigurationError, match="does not contain a secret key"):
        load(public)


@pytest.mark.parametrize(
    "damage",
    [lambda text: text.replace("secret ", "secret x"), lambda text: "\0ä" + text],
    ids=["too long", "not ASCII"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    secret, _ = generate("a", tmp_path)
    assert callable(damage)
    secret.write_text(damage(secret.read_text()), encoding="utf-8")
    with pytest.raises(ConfigurationError):
        load(secret)


def test_a_pair_of_two_halves_is_refused(tmp_path: Path) -> None:
    one, other = (generate(name, tmp_path)[0] for name in "ab")
    mixed = one.read_text().replace(load(one).public.decode(), load(other).public.decode())
    one.write_text(mixed)
    with pytest.raises(ConfigurationError, match="damaged"):
        load(one)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no key file at"):
        load(tmp_path / "nowhere.key")


def test_a_public_file_is_recognized_whatever_its_mode(tmp_path: Path) -> None:
    _, public = generate("a", tmp_path)
    with pytest.raises(ConfigurationError, match="does not contain a secret key"):
        load(public)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("full", ["a.key", "a.pub"])
def test_no_half_of_a_pair_is_left_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, named: bool
) -> None:
    open_file, modes = os.open, {"a.key": 0o600, "a.pub": 0o644}

    def opened(path: Path | str, flags: int, mode: int = 0) -> int:
        descriptor = open_file(path, flags, mode)
        if mode != modes[full]:
            return descriptor
        os.close(descriptor)
        return open_file("/dev/full", os.O_WRONLY)

    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(ConfigurationError, match=f"Cannot write .*{full}: No space left"):
        generate("a", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    secret, _ = generate("broker", tmp_path)
    with pytest.raises(ConfigurationError, match=r"broker\.key contains a secret key.* \.pub file"):
        load_public(str(secret))


@pytest.mark.parametrize("read", [load, lambda path: load_public(str(path))])
def test_a_file_without_an_end_is_refused(read: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigurationError, match="/dev/zero is not a key file: it has more than"):
        read(Path("/dev/zero"))


def test_a_text_with_other_letters_is_not_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("a → b")
    with pytest.raises(ConfigurationError, match=r"README\.md is not a key file\. Give a file of"):
        load(path)


def test_only_the_allowed_bytes_of_a_large_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.key"
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(ConfigurationError, match=r"large\.key is not a key file"):
        load(path)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"broker_key": "b.pub"}, r"your own key \(--key, key=, GYMWIRE_KEY\)"),
        (
            {"key": "a.key"},
            r"the broker's public key \(--broker-key, broker_key=, GYMWIRE_BROKER_KEY\)",
        ),
    ],
)
def test_one_key_of_a_pair_is_an_error_that_names_the_other(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], missing: str
) -> None:
    monkeypatch.delenv("GYMWIRE_KEY", raising=False)
    monkeypatch.delenv("GYMWIRE_BROKER_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=f"work in pairs, and {missing} is missing"):
        keys.credentials(**given)


def test_an_empty_file_of_a_killed_keygen_does_not_block_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.key").touch(0o600)
    secret, public = generate("a", tmp_path)
    assert load_public(str(public)) == load(secret).public


def test_a_missing_public_file_is_written_again(tmp_path: Path) -> None:
    secret, public = generate("a", tmp_path)
    pair, text = load(secret), public.read_text()
    public.unlink()
    assert generate("a", tmp_path) == (secret, public)
    assert (load(secret), public.read_text()) == (pair, text)


@pytest.mark.parametrize("kept", ["a.key", "a.pub"])
def test_a_key_is_not_overwritten_without_hard_links_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    def link(_: Path, path: Path, **__: object) -> None:
        if path.name == kept:
            path.write_text("precious")  # another process is faster
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(ConfigurationError, match="never overwritten"):
        generate("a", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    assert (tmp_path / kept).read_text() == "precious"
    generate("b", tmp_path)


# Kills a process at each line of the module in turn, then calls `generate` again.
KILLED = """
import os, sys
if sys.argv[2] == "named":
    del os.O_TMPFILE
from pathlib import Path
from gymwire.protocol.security import keys

def kill_at(line):
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename != keys.__file__:
            return None
        count += event == "line"
        if count > line:
            os._exit(9)
        return trace
    return trace

for line in range(1000):
    folder = Path(sys.argv[1], str(line))
    child = os.fork()
    if not child:
        sys.settrace(kill_at(line))
        keys.generate("a", folder)
        sys.settrace(None)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    secret, public = (folder / "a.key", folder / "a.pub")
    if not public.exists():
        assert (secret, public) == keys.generate("a", folder), line
        assert {*folder.iterdir()} == {secret, public}, line
    assert not [*folder.glob(".a.key.*")], line
    if sys.argv[2] == "unnamed":
        assert {*folder.iterdir()} == {secret, public}, line
    assert keys.load_public(str(public)) == keys.load(secret).public, line
print(line)
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("how", ["unnamed", "named"])
def test_a_keygen_killed_anywhere_does_not_block_the_name(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 30 < int(done.stdout) < 1000
    assert keys.load(tmp_path / done.stdout.strip() / "a.key")


def test_a_pair_that_another_call_completes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = keys._write_new
    completed: list[Path] = []

    def interrupted(path: Path, text: str, mode: int) -> None:
        if path.suffix == ".pub" and not completed:
            completed.append(path)
            generate("a", tmp_path)  # finds a secret file without its public one
        write(path, text, mode)

    monkeypatch.setattr(keys, "_write_new", interrupted)
    with pytest.raises(ConfigurationError, match=r"a\.pub exists"):
        generate("a", tmp_path)
    assert load(tmp_path / "a.key").public == load_public(str(tmp_path / "a.pub"))
