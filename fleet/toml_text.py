"""Write values as TOML, and find the line of a key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
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
    found, seen = 0, 0
    for number, content in _statements(text):
        inner = content.get(table)
        if inner is None:
            continue
        added = len(inner) if isinstance(inner, list) else 0
        seen += added
        if index not in (range(seen - added + 1, seen + 1) or [max(seen, 1)]):
            continue
        last = inner[-1] if added else inner
        if isinstance(last, dict) and key in last:
            return number
        found = found or number
    return found or 1


def _statements(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the line of each header and of each key, and what it adds to the document."""
    first, statement = 1, ""
    header: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        try:
            content = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:  # the value goes on in the next line
            continue
        if statement.lstrip().startswith("["):
            header = _names(content)
        else:
            for name in reversed(header if content else []):
                content = {name: content}
        yield first, content
        first, statement = number + 1, ""


def _names(content: Any) -> list[str]:
    """Return the names in a header."""
    if isinstance(content, list):
        return _names(content[0])
    return [each for name, inner in content.items() for each in (name, *_names(inner))]
