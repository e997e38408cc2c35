"""Clocks that jump: the product reads the monotonic one only, and runs with a mad one."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

from tests.processes import ROOT

PACKAGES = ("protocol", "broker", "env_agent", "learner_agent")
_WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime", "strftime"}
_MODULES = {"time", "datetime", "date"}

# Each reading of the wall clock is an hour before or after the one before it.
_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
static int turn;
int clock_gettime(clockid_t id, struct timespec *to) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, to);
    if (id == CLOCK_REALTIME) to->tv_sec += ++turn % 2 ? 3600 : -3600;
    return status;
}
int gettimeofday(struct timeval *to, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec;
    to->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""


def wall_clock_calls() -> list[str]:
    """Where the product reads a clock that can jump: `file:line`."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Attribute(value=ast.Name(id=module), attr=name) if (
                        module in _MODULES and name in _WALL
                    ):
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
                    case ast.ImportFrom(module="time" | "datetime", names=names) if any(
                        name.name in _WALL | {"datetime"} for name in names
                    ):
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def can_jump() -> bool:
    """Whether `jumping` can be built here."""
    return shutil.which("cc") is not None


def jumping(folder: Path) -> Path:
    """Build a library for LD_PRELOAD that makes the wall clock jump by hours at each reading."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
