"""The options of `gymwire fleet`, a part of the table of options."""

from __future__ import annotations

from gymwire.cli import kinds
from gymwire.cli.option import Option
from gymwire.fleet.engines import ENGINES

ACTIONS = ("up", "status", "scale", "drain", "down", "manifests")

OPTIONS = (
    Option(
        keyword="action",
        kind=kinds.choice(*ACTIONS),
        commands=("fleet",),
        default="status",
        metavar="ACTION",
        help="what to do: up (start agents until there are as many as FILE says), status, scale "
        "(to --agents), drain (let agents end), down (drain all, and wait) or manifests (print "
        "manifests for Kubernetes)",
        positional=True,
    ),
    Option(
        keyword="file",
        kind=kinds.FILE,
        commands=("fleet",),
        default="fleet.toml",
        metavar="FILE",
        help="the file that describes the fleet: see docs/how-to/fleets.md",
        positional=True,
        own_variable="GYMWIRE_FLEET",
    ),
    Option(
        keyword="on",
        kind=kinds.choice(*ENGINES),
        commands=("fleet",),
        default="local",
        metavar="ENGINE",
        help="where agents run: on this machine, Ray (RAY_ADDRESS names the cluster) or SLURM",
        own_variable="GYMWIRE_FLEET_ON",
    ),
    Option(
        keyword="agents",
        kind=kinds.NATURAL,
        commands=("fleet",),
        metavar="N",
        help="scale: the number of agents",
    ),
    Option(
        keyword="agent",
        kind=kinds.TEXT,
        commands=("fleet",),
        default=(),
        metavar="NAME",
        help="drain: only this agent, such as lab/3",
        repeats=True,
    ),
    Option(
        keyword="watch",
        kind=kinds.FLAG,
        commands=("fleet",),
        help="up: keep running, and start and drain agents as the free slots require, until "
        "Ctrl-C, SIGTERM or SIGHUP; the fleet then stays as it is",
    ),
    Option(
        keyword="wait_s",
        kind=kinds.SECONDS,
        commands=("fleet",),
        default="60",
        metavar="S",
        panel="Connection",
        help="up and scale: seconds to wait until the broker lists the agents ('inf': forever); "
        "status: the same, if it is given",
    ),
)
