"""`gymwire keygen`: make a CURVE key pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gymwire.cli.connection import CommandOptions, naming
from gymwire.cli.output import Output
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys


@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """The options of `gymwire keygen`."""

    name: str | None
    dir: Path
    role: str | None


def command(options: Options, output: Output) -> int:
    """Make the key files, and print what each is for. Returns the exit status."""
    if options.name is None:
        raise ConfigurationError("No name given: pass NAME. Example: gymwire keygen alice")
    with naming(options, "name"):
        keys.check_name(options.name)
    try:
        secret_path, public_path = keys.generate(options.name, options.dir)
    except ConfigurationError as error:
        with naming(options, "name" if isinstance(error, keys.KeyExists) else "dir"):
            raise
    public = keys.load(secret_path).public
    identity = keys.identity(public)
    role = options.role or ("broker" if options.name == "broker" else "agent")
    if role == "broker":
        use = f"send the file to all agents; they pass it with --broker-key {public_path}"
    else:
        use = "if the broker has a policy, send the key to its operator, who adds it"
    output.say(f"secret key  {secret_path}: keep it on this host; use it with --key {secret_path}")
    output.say(f"public key  {public_path}: {use}")
    output.say(f"            {public.decode('ascii')}")
    output.say(f"identity    {identity}")
    return 0
