"""`python -m tests.chaos.learner`: a process with several courses; its output is its diary.

It goes on until its standard input ends, which also happens when its parent process dies.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any

from gymwire import ProxyEnv
from gymwire.learner_agent.client.connection import BrokerConnection
from gymwire.protocol import logs
from gymwire.protocol.errors import BrokerUnreachable, OfferError
from tests.chaos.course import Course
from tests.chaos.fleet import ADDRESS


def write(event: str, **facts: object) -> None:
    row = {"event": event, "at": time.monotonic(), **facts}
    print(json.dumps(row), flush=True)  # noqa: T201 - the diary


def wait_for_the_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def make(options: argparse.Namespace, index: int, stop: threading.Event) -> Course | None:
    """Open one session as soon as one is available, every second one on a connection of its own."""
    keywords: dict[str, Any] = {
        "timeout_s": options.timeout,
        "wait_s": 5.0,
        "key": options.key,
        "broker_key": options.broker_key,
    }
    connection: BrokerConnection | None = None
    while not stop.is_set():
        try:
            if index % 2 and connection is None:
                connection = BrokerConnection(options.broker, **keywords)
            env = ProxyEnv(ADDRESS, options.broker, connection=connection, **keywords)
        except (BrokerUnreachable, OfferError) as error:
            write("waits", why=str(error))
            stop.wait(0.2)
            continue
        name = f"{options.name}.{index}"
        return Course(env, name, options.seed * 1000 + index, options.episode, size=options.size)
    return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--envs", type=int, default=1)
    parser.add_argument("--episode", type=int, default=50)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--key")
    parser.add_argument("--broker-key")
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    logs.configure()
    stop = threading.Event()
    threading.Thread(target=wait_for_the_end, args=(stop,), daemon=True).start()
    courses: list[Course] = []
    reported_at = 0.0
    while not stop.is_set():
        if len(courses) < options.envs:
            made = make(options, len(courses), stop)
            if made is not None:
                courses.append(made)
            continue
        for course in courses:
            losses, silences = len(course.lost_at), len(course.unreachable_at)
            try:
                course.advance()
            except OfferError as error:
                write("waits", why=str(error))
                stop.wait(0.1)
            for at in course.lost_at[losses:]:
                write("lost", course=course.name, lost_at=at, why=course.why_lost)
            for at in course.unreachable_at[silences:]:
                write("unreachable", course=course.name, unreachable_at=at)
            if options.pause:
                stop.wait(options.pause)
            if stop.is_set():
                break
        if time.monotonic() - reported_at > 0.2:
            reported_at = time.monotonic()
            write("goes on", steps=sum(each.steps for each in courses))  # each has had its turn
    for course in courses:
        write(
            "done",
            course=course.name,
            answered=course.answered,
            lost=course.lost,
            steps=course.steps,
            longest_s=course.longest_s,
        )
        course.env.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
