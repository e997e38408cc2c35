"""The options that are about policies, videos and recorded data, for the table in options.py."""

from __future__ import annotations

from gymwire.cli import kinds
from gymwire.cli.option import Option

PLAYERS = ("run", "record")  # the commands that play episodes

RECORDED_OPTIONS = (
    Option(
        keyword="episodes",
        kind=kinds.COUNT,
        commands=PLAYERS,
        default="10",
        metavar="N",
        help="number of episodes",
    ),
    Option(
        keyword="policy",
        kind=kinds.TEXT,
        commands=PLAYERS,
        metavar="POLICY",
        own_variable="GYMWIRE_PLAYER",  # GYMWIRE_POLICY is the file of a broker
        help="what chooses the actions: module:NAME or ./file.py:NAME of a function or class, the "
        ".npz file of a learner that gymwire train has saved, or the .zip file of a saved "
        "Stable-Baselines3 model. Statistics of a VecNormalize beside the model, in "
        "NAME_vecnormalize.pkl or vecnormalize.pkl, are used, too. All of them but an .npz file "
        "run code (a model is a pickle): use only what you trust (default: random actions)",
    ),
    Option(
        keyword="video",
        kind=kinds.FILE,
        commands=("run",),
        metavar="FILE",
        help="record the episodes to a video file (.mp4); the environment needs the render mode "
        "rgb_array",
    ),
    Option(
        keyword="record",
        kind=kinds.FOLDER,
        commands=("serve",),
        metavar="FOLDER",
        help="record the episodes of all sessions to files in this folder; learners see that they "
        "are recorded",
    ),
    Option(
        keyword="record_limit",
        kind=kinds.COUNT,
        commands=("serve",),
        default="1024",
        metavar="MIB",
        help="with --record: how many MiB all files may take; the oldest ones are removed",
    ),
    Option(
        keyword="folder",
        kind=kinds.FOLDER,
        commands=("replay",),
        metavar="FOLDER",
        help="the folder of gymwire serve --record",
        positional=True,
    ),
    Option(
        keyword="address",
        kind=kinds.ADDRESS,
        commands=("replay",),
        metavar="ADDRESS",
        help="replay at this address (default: that of each recording)",
    ),
    Option(
        keyword="out",
        kind=kinds.FOLDER,
        commands=("record",),
        metavar="FOLDER",
        help="the new folder for the dataset; its name is the dataset's, such as "
        "cartpole-random-v0",
    ),
)
