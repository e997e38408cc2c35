"""Write values as TOML, and find the line of a key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def value_text(value: Any) -> str:
    """Return a value that `tomllib` has read as TOML in one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            inside = (f"{value_text(key)} = {value_text(each)}" for key, each in value.items())
            return f"{{ {', '.join(inside)} }}"
        case Sequence():
            return f"[{', '.join(map(value_text, value))}]"
    return str(value.isoformat())  # dates and times


def tables_text(name: str, tables: Sequence[Mapping[str, Any]]) -> str:
    """Return an array of tables."""
    return "\n".join(
        "\n".join((f"[[{name}]]", *(f"{key} = {value_text(table[key])}" for key in table), ""))
        for table in tables
    )


def line_of(text: str, table: str, key: str = "", index: int = 1) -> int:
    """Return the number of the line of a key, or else that of its table, or else 1.

    `index`: which table of that name, from 1.
    """
    found, seen, current = 1, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$", line):
            current = header[1]
            seen += current == table
            if seen == index and current == f"{table}.{key}":
                return number
            if seen == index and current == table:
                found = number
        elif (
            key
            and (seen, current) == (index, table)
            and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line)
        ):
            return number
    return found
