"""All options of all commands, in one table.

The commands are built from it, and so is the table of the documentation
(`python -m gymwire.cli.options` prints that).
"""

from __future__ import annotations

from collections.abc import Iterator

from gymwire.cli import conformance_options, fleet_options, kinds, web_options
from gymwire.cli.option import Option
from gymwire.cli.recorded_options import RECORDED_OPTIONS
from gymwire.cli.train_options import TRAIN

DEFAULT_BROKER = "tcp://127.0.0.1:5555"  # that of protocol/address.py; a test compares the two
DEMO_ADDRESS = "price-market"

LEARNERS = ("check", "run", "record", "train")  # the commands that open a session
OPERATORS = ("ps", "top", "stop")  # the commands that ask the broker what it knows
ASKERS = ("ls", "replay", *OPERATORS, *LEARNERS)  # the commands that ask a broker for something
AGENTS = ("serve", "web", "conformance", *ASKERS)  # the commands that connect to a broker
SERVERS = ("broker", *AGENTS)
LOGGERS = ("fleet", *SERVERS)  # the commands that write a log

OPTIONS = (
    # --- what to serve or to use ------------------------------------------------------------------
    Option(
        keyword="address",
        kind=kinds.OFFERED_ADDRESS,
        commands=("serve",),
        metavar="ADDRESS",
        help="the address to offer, such as lab/cartpole",
        positional=True,
    ),
    Option(
        keyword="address",
        kind=kinds.ADDRESS,
        commands=("check", "run", "record"),
        metavar="ADDRESS",
        help="the address of the environment",
        positional=True,
    ),
    Option(
        keyword="address",
        kind=kinds.ADDRESS,
        commands=("train",),
        default=DEMO_ADDRESS,
        metavar="ADDRESS",
        help="the address of the environment",
        positional=True,
    ),
    Option(
        keyword="env",
        kind=kinds.TEXT,
        commands=("serve",),
        metavar="ENV",
        help="a Gymnasium id (Id-v0, module:Id-v0), or a class or factory function (module:MyEnv, "
        "./file.py:MyEnv)",
        positional=True,
    ),
    Option(
        keyword="env_kwargs",
        kind=kinds.JSON_OBJECT,
        commands=("serve", *LEARNERS),
        default="{}",
        metavar="JSON",
        help="keyword arguments for the environment's constructor; the learner's override the env "
        "agent's",
    ),
    Option(
        keyword="config",
        kind=kinds.FILE,
        commands=("serve",),
        metavar="FILE",
        help="a TOML file with several offers; options of one offer are keys in it",
    ),
    Option(
        keyword="max_sessions",
        kind=kinds.COUNT,
        commands=("serve",),
        metavar="N",
        help="number of slots: sessions at the same time (default: 64; with --python, one for each "
        "processor)",
    ),
    Option(
        keyword="python",
        kind=kinds.TEXT,
        commands=("serve",),
        metavar="PYTHON",
        help="run each session's environment in a process of its own with this interpreter, any "
        "CPython or PyPy from 3.7 on (such as ~/venvs/sim/bin/python), which needs only what the "
        "environment needs",
    ),
    Option(
        keyword="spaces",
        kind=kinds.TEXT,
        commands=("serve",),
        metavar="SPACES",
        help="with --python: the environment's spaces, if they cannot be read from its attributes: "
        "module:NAME or ./file.py:NAME of a class, object or dict with observation_space and "
        "action_space",
    ),
    Option(
        keyword="expose",
        kind=kinds.TEXT,
        commands=("serve",),
        default=(),
        metavar="NAME",
        help="an attribute or method of the environment that learners may use",
        repeats=True,
    ),
    Option(
        keyword="wrap",
        kind=kinds.TEXT,
        commands=("serve",),
        default=(),
        metavar="NAME",
        help="a wrapper around each environment: module:Wrapper, or module:Wrapper{JSON}",
        repeats=True,
    ),
    Option(
        keyword="strict_infos",
        kind=kinds.FLAG,
        commands=("serve",),
        help="fail on info values that would be converted or replaced by their repr",
    ),
    Option(
        keyword="watchable",
        kind=kinds.FLAG,
        commands=("serve",),
        help="let operators with the right `watch` see the frames of all sessions (gymwire web); "
        "learners see in `is_watchable` that they can",
    ),
    Option(
        keyword="watch_rate",
        kind=kinds.WATCH_RATE,
        commands=("serve",),
        default="10",
        metavar="N",
        help="with --watchable: frames of a session per second, at most; from 1 to 20",
    ),
    Option(
        keyword="direct",
        kind=kinds.DIRECT,
        commands=("serve",),
        default=kinds.WITHIN_HOST,
        metavar="URL",
        help="who may connect directly, bypassing the broker. 'host': learners on this host, none "
        "if keys are used; tcp://HOST:PORT: learners on any host (one port per thread and worker, "
        "counting up; '*': any free port); 'never'",
    ),
    Option(
        keyword="threads",
        kind=kinds.COUNT,
        commands=("serve",),
        metavar="N",
        help="number of threads that execute all sessions; by default each session has its own",
    ),
    Option(
        keyword="workers",
        kind=kinds.COUNT,
        commands=("serve",),
        default="1",
        metavar="N",
        help="number of processes; they share --max-sessions, and one that dies is replaced",
    ),
    Option(
        keyword="pin",
        kind=kinds.FLAG,
        commands=("serve",),
        help="keep each worker on a processor of its own (Linux): faster if one learner steps "
        "several cheap environments together, as the kernel tends to wake them on one processor",
    ),
    Option(
        keyword="grace_s",
        kind=kinds.SECONDS,
        commands=("serve",),
        default="10",
        metavar="S",
        help="seconds that running steps and, except after Ctrl-C, sessions may take to finish",
    ),
    # --- what to do -------------------------------------------------------------------------------
    Option(
        keyword="steps",
        kind=kinds.COUNT,
        commands=("check",),
        default="2000",
        metavar="N",
        help="number of steps to measure",
    ),
    *TRAIN,
    *RECORDED_OPTIONS,
    Option(
        keyword="seed",
        kind=kinds.NATURAL,
        commands=LEARNERS,
        metavar="N",
        help="seed of the environment, the policy and the learner; the same seed gives the same "
        "result",
    ),
    Option(
        keyword="render",
        kind=kinds.FLAG,
        commands=("run",),
        help="print each step as text; the environment needs the render mode ansi",
    ),
    Option(
        keyword="verbose",
        kind=kinds.FLAG,
        commands=("ls",),
        short="-v",
        help="also list the processes of each address, with their hosts",
    ),
    Option(
        keyword="json",
        kind=kinds.FLAG,
        commands=("fleet", "conformance", *(one for one in ASKERS if one != "top")),
        help="print one JSON object to standard output, and everything else to standard error",
    ),
    Option(
        keyword="target",
        kind=kinds.TEXT,
        commands=("stop",),
        metavar="TARGET",
        help="the id of a session or of an env agent, or its beginning, as `gymwire ps` shows it",
        positional=True,
    ),
    # --- the broker -------------------------------------------------------------------------------
    Option(
        keyword="bind",
        kind=kinds.BIND_URL,
        commands=("broker",),
        default=(DEFAULT_BROKER,),
        metavar="URL",
        help="listen at this URL: tcp://HOST:PORT or ipc://PATH",
        repeats=True,
    ),
    Option(
        keyword="policy",
        kind=kinds.FILE,
        commands=("broker",),
        metavar="FILE",
        help="a TOML file that says what each key may offer and use; it is read again when it "
        "changes (default: any key may do anything)",
    ),
    Option(
        keyword="lease_s",
        kind=kinds.SECONDS,
        commands=("broker",),
        default="30",
        metavar="S",
        help="seconds that a session is kept for a learner that vanished",
    ),
    Option(
        keyword="no_local_channels",
        kind=kinds.FLAG,
        commands=("broker",),
        help="relay over ZeroMQ only; local channels (Unix sockets to agents on this host) are "
        "faster",
    ),
    Option(
        keyword="insecure",
        kind=kinds.FLAG,
        commands=("broker", "conformance"),
        help="listen beyond this host without keys: anyone who reaches the port may do anything",
    ),
    Option(
        keyword="insecure",
        kind=kinds.FLAG,
        commands=("serve",),
        help="with --direct: listen beyond this host without keys",
    ),
    *web_options.OPTIONS,
    *conformance_options.OPTIONS,
    *fleet_options.OPTIONS,
    # --- keygen -----------------------------------------------------------------------------------
    Option(
        keyword="name",
        kind=kinds.TEXT,
        commands=("keygen",),
        metavar="NAME",
        help="the name of the key: the files will be NAME.key and NAME.pub",
        positional=True,
    ),
    Option(
        keyword="dir",
        kind=kinds.FOLDER,
        commands=("keygen",),
        default=".",
        metavar="FOLDER",
        help="the folder for the files; it is created if it is missing",
    ),
    Option(
        keyword="role",
        kind=kinds.choice("broker", "agent"),
        commands=("keygen",),
        metavar="ROLE",
        help="who will use the key: 'broker', or 'agent' for an env agent or a learner agent "
        "(default: broker if that is the NAME, else agent)",
    ),
    # --- the connection to the broker -------------------------------------------------------------
    Option(
        keyword="broker",
        kind=kinds.URL,
        commands=AGENTS,
        default=DEFAULT_BROKER,
        metavar="URL",
        panel="Connection",
        help="the URL of the broker",
    ),
    Option(
        keyword="wait_s",
        kind=kinds.SECONDS,
        commands=("serve",),
        default="0",
        metavar="S",
        panel="Connection",
        help="seconds to wait for the broker if it is not up yet ('inf': forever)",
    ),
    Option(
        keyword="wait_s",
        kind=kinds.SECONDS,
        commands=ASKERS,
        default="0",
        metavar="S",
        panel="Connection",
        help="seconds to wait for the broker, the address and a free slot ('inf': forever)",
    ),
    Option(
        keyword="timeout_s",
        kind=kinds.TIMEOUT_SECONDS,
        commands=ASKERS,
        default="60",
        metavar="S",
        panel="Connection",
        help="give up when the broker has sent nothing for this many seconds, at least 0.5",
    ),
    Option(
        keyword="key",
        kind=kinds.FILE,
        commands=SERVERS,
        metavar="FILE",
        panel="Keys",
        help="your own secret key, a file made by gymwire keygen",
    ),
    Option(
        keyword="broker_key",
        kind=kinds.FILE_OR_KEY,
        commands=AGENTS,
        metavar="FILE",
        panel="Keys",
        help="the broker's public key: its .pub file, or the key itself",
    ),
    Option(
        keyword="log_format",
        kind=kinds.choice("lines", "json"),
        commands=LOGGERS,
        default="lines",
        metavar="FORMAT",
        panel="Log",
        help="the format of the log on standard error: lines or json",
    ),
    Option(
        keyword="log_level",
        kind=kinds.choice("debug", "info", "warning", "error"),
        commands=LOGGERS,
        default="info",
        metavar="LEVEL",
        panel="Log",
        help="the lowest level to log: debug, info, warning or error",
    ),
    # --- between the processes of `serve --workers` -----------------------------------------------
    Option(
        keyword="worker",
        kind=kinds.NATURAL,
        commands=("serve",),
        help="the number of this worker",
        internal=True,
    ),
    Option(
        keyword="report_once",
        kind=kinds.NATURAL,
        commands=("serve",),
        help="the worker that reads a byte from this pipe prints the error that stops them all",
        internal=True,
    ),
)


def options_of(command: str) -> Iterator[Option]:
    """Return the options of a command, in the order of its help."""
    return (option for option in OPTIONS if command in option.commands)


def markdown() -> str:
    """Return the table of all options and variables in Markdown, for the documentation."""
    lines = [
        "| option | variable | value | default | commands | meaning |",
        "|---|---|---|---|---|---|",
    ]
    public = [option for option in OPTIONS if not option.internal]
    for option in sorted(public, key=lambda option: option.option):
        names = ", ".join(f"`{name}`" for name in (option.short, option.option) if name)
        cells = (
            names,
            f"`{option.variable}`",
            option.kind.name + (", several" if option.repeats else ""),
            _default(option),
            ", ".join(option.commands),
            option.help,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _default(option: Option) -> str:
    texts = option.default if isinstance(option.default, tuple) else (option.default,)
    return " ".join(f"`{text}`" for text in texts if text)


if __name__ == "__main__":
    print(markdown())  # noqa: T201 - this is what the module is run for
