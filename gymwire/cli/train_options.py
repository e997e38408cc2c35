"""The options that only `gymwire train` has."""

from __future__ import annotations

from gymwire.cli import kinds
from gymwire.cli.option import Option

TRAIN = (
    Option(
        keyword="steps",
        kind=kinds.COUNT,
        commands=("train",),
        default="20000",
        metavar="N",
        help="number of steps to train",
    ),
    Option(
        keyword="time_limit_s",
        kind=kinds.POSITIVE_SECONDS,
        commands=("train",),
        default="inf",
        metavar="S",
        help="end the training after this many seconds, even if steps are left",
    ),
    Option(
        keyword="num_envs",
        kind=kinds.COUNT,
        commands=("train",),
        default="8",
        metavar="N",
        help="number of environments that PPO steps together; they take one slot",
    ),
    Option(
        keyword="plot",
        kind=kinds.FILE,
        commands=("train",),
        metavar="FILE",
        help="draw learning curves to a .png, .svg or .pdf file",
    ),
    Option(
        keyword="save",
        kind=kinds.FILE,
        commands=("train",),
        metavar="FILE",
        help="save the trained learner: a demo learner as .npz; PPO as .zip, by default to "
        "ADDRESS.zip in the current folder, or ADDRESS-2.zip if that exists",
    ),
    Option(
        keyword="load",
        kind=kinds.FILE,
        commands=("train",),
        metavar="FILE",
        help="continue with a learner from a file of --save; a PPO model runs code when it is "
        "loaded (pickle), so load only files that you trust",
    ),
)
