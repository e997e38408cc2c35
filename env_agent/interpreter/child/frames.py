"""The frames between the env agent and the program, in both directions.

A frame is the header below, then `length` bytes. The body of a STEP is the raw action, with
`AS_INT` behind it if it is an int of Python's. That of a COMPACT answer is the raw observation, and
behind it `COMPACT_END`, which has the bytes of the other fields of a PERCEPT. All other bodies are
values as `protocol/values.py` describes them. A tuple that begins with MARK stands for a value that
has no form there (see `child_values.py`). An answer has at most MAX_ANSWER bytes; instead of a
larger one, the program sends an exception.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IBII")  # length of the body, kind, request number, environment's index
HEADER_SIZE = HEADER.size
MAX_ANSWER = 1 << 26  # bytes of a body; the env agent ends a process that sends more
STEP, CALL = 1, 2  # the kinds of requests
AS_INT = b"i"
COMPACT, VALUE, RAISED = 3, 4, 5  # the kinds of answers
COMPACT_END = struct.Struct(">sd3s")  # type of the reward, reward, flags and no info
FLOAT, NUMPY_FLOAT = b"\xcb", b"\xc1"  # types of rewards; only the first is one of msgpack's
FLAGS = {
    (terminated, truncated): bytes((0xC2 + terminated, 0xC2 + truncated, 0x80))
    for terminated in (False, True)
    for truncated in (False, True)
}
MARK = b"gymwire:marked"
