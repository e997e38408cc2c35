"""The frames between the env agent and the program, in both directions.

A frame is the header below, then `length` bytes. The body of a STEP is the raw action, with
`AS_INT` behind it if it is an int of Python's. That of a COMPACT answer is a `COMPACT_HEAD` and the
raw observation. All other bodies are values as `protocol/values.py` describes them. A tuple that
begins with MARK stands for a value that has no form there (see `child_values.py`).
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IBII")  # length of the body, kind, request number, environment's index
HEADER_SIZE = HEADER.size
STEP, CALL = 1, 2  # the kinds of requests
AS_INT = b"i"
COMPACT, VALUE, RAISED = 3, 4, 5  # the kinds of answers
COMPACT_HEAD = struct.Struct("<BBBd")  # type of the reward, terminated, truncated, reward
MARK = b"gymwire:marked"
