"""A cluster of SLURM on this machine: munged, slurmctld and two nodes, all on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.fleet import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
PROCESSORS = 2  # of a node
GRACE_S = 60  # of a preempted job
CREDENTIAL_S = 5  # a requeued job starts after this time; 120 by default
PATIENCE_S = 60.0

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={credential_s}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=1
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace_s} MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
"""


def missing() -> str:
    """Return why there can be no cluster here; "": there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: slurmctld, slurmd, slurm-client and munge)"
    return "" if os.geteuid() == 0 else "needs root, as which slurmd runs"


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Start a cluster, and let SLURM_CONF name it. Yields the folder with its logs."""
    before = os.environ.get("SLURM_CONF")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, because of the socket's path
    try:
        with contextlib.ExitStack() as stack:
            os.environ["SLURM_CONF"] = str(_configure(folder))
            _munge(folder, stack)
            _start(folder, stack, "slurmctld", "-D", "-i")
            for node in NODES:
                _start(folder, stack, "slurmd", "-D", "-N", node)
            until(_is_ready, "the nodes are idle", PATIENCE_S)
            yield folder
            subprocess.run(["scancel", "--signal=KILL", "--user=root"], check=False)
            until(_is_ready, "all jobs have ended", PATIENCE_S)
    finally:
        shutil.rmtree(folder)
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before


def _configure(folder: Path) -> Path:
    host = socket.gethostname().partition(".")[0]
    controller, *ports = _ports(1 + len(NODES))
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={PROCESSORS}"
        for name, port in zip(NODES, ports, strict=True)
    ]
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    path = folder / "slurm.conf"
    path.write_text(
        CONFIGURATION.format(
            host=host,
            controller=controller,
            folder=folder,
            credential_s=CREDENTIAL_S,
            grace_s=GRACE_S,
            nodes="\n".join(nodes),
        )
    )
    return path


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _munge(folder: Path, stack: contextlib.ExitStack) -> None:
    munge = folder / "munge"
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    options = {
        "key-file": key,
        "socket": munge / "socket",
        "pid-file": munge / "pid",
        "log-file": munge / "log",
        "seed-file": munge / "seed",
    }
    texts = [f"--{name}={path}" for name, path in options.items()]
    _start(folder, stack, "munged", "--foreground", "--force", *texts)
    until((munge / "socket").exists, "munged listens", PATIENCE_S)


def _start(folder: Path, stack: contextlib.ExitStack, *command: str) -> None:
    output = stack.enter_context((folder / f"{command[0]}.out").open("ab"))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def _is_ready() -> bool:
    shown = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T", "--partition=low"],
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.split() == ["idle"] * len(NODES)
