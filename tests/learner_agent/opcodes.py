"""Raise an exception at any instruction of a call, as a signal handler may."""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import gymwire.protocol
from gymwire import learner_agent
from tests.sampling import by_run

OURS = (str(Path(learner_agent.__file__).parent), str(Path(gymwire.protocol.__file__).parent))
RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap}
CALLS = ("PRECALL", "CALL")

# By how much the strides of the tests are multiplied.
TIMES = by_run(5, 1)


@functools.cache
def _ends_of_with(code: CodeType) -> frozenset[int]:
    """Return where the code calls `__exit__` of a `with` statement whose block raised nothing.

    An exception there would leave a lock of the statement held forever. Python raises none there:
    it looks for signals at the beginning of functions, after calls, and where loops jump back.
    """
    found: set[int] = set()
    steps = [*dis.get_instructions(code)]
    for number in range(len(steps)):
        loads = steps[number : number + 3]
        if [one.argval for one in loads if one.opname == "LOAD_CONST"] == [None] * 3:
            calls = itertools.takewhile(lambda one: one.opname in CALLS, steps[number + 3 :])
            before = [one for one in steps[number - 1 : number] if one.opname == "SWAP"]  # a return
            found.update(one.offset for one in [*before, *loads, *calls])
    return frozenset(found)


class FromOutside(Exception):
    """What a signal handler raises."""


def _is_ours(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    name = frame.f_code.co_filename
    # The network in memory runs broker and env agent in this process, too: they are not ours.
    return name.startswith(OURS[0]) or (name.startswith(OURS[1]) and _is_ours(frame.f_back))


class Interruption:
    """Raises an exception at the n-th instruction of gymwire's frames at the learner.

    With an `action`, it calls that instead, as a signal handler that raises nothing.

    The return of the outermost frame is no such instruction: the call has returned then. Neither is
    the end of a generator that is closed before it is exhausted: nothing can come out of it. Only
    Python 3.12 executes instructions there; they have no line. Nor is the call that ends a `with`
    statement, see `_ends_of_with`.

    Attributes:
        where: the instruction; empty if the call ended before.
        count: the number of instructions so far.
    """

    def __init__(
        self,
        instruction: int,
        error: type[Exception] = FromOutside,
        action: Callable[[], object] | None = None,
    ) -> None:
        self.where = ""
        self.count = 0
        self._instruction = instruction
        self._error = error
        self._action = action
        self._outermost: FrameType | None = None

    def run(self, call: Callable[[], Any]) -> bool:
        """Call; return whether the exception came out of the call."""

        def in_a_generator() -> Iterator[None]:
            call()
            yield

        gc.disable()
        sys._getframe().f_trace_opcodes = True  # before settrace, or Python 3.12 ignores it later
        sys.settrace(self._trace)
        try:
            # An exception at the end of an `except` clause, where no signal handler can raise one,
            # leaves that of the clause the handled one of the thread; here, of the generator.
            next(in_a_generator())
        except self._error:
            return True
        finally:
            sys.settrace(None)
            gc.enable()
        return False

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            if not _is_ours(frame):
                return None
            self._outermost = self._outermost or frame
            frame.f_trace = self._trace  # before f_trace_opcodes, or Python 3.13 ignores that
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event != "opcode" or self.where:
            return self._trace
        if frame is self._outermost and frame.f_code.co_code[frame.f_lasti] in RETURNS:
            return self._trace
        if frame.f_lineno is None and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return self._trace
        if frame.f_lasti in _ends_of_with(frame.f_code):
            return self._trace
        self.count += 1
        if self.count > self._instruction:
            self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
            if self._action is None:
                raise self._error
            sys.settrace(None)
            self._action()
        return self._trace
