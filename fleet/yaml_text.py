"""Write values of JSON as YAML, in block style."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Texts that need no quotes, because every reader of YAML takes them for texts.
PLAIN = re.compile(r"[A-Za-z_/$](?:[\w./$() -]*[\w./)-])?")
WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def yaml_text(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents, with a line of dashes between two of them."""
    return "---\n".join("\n".join(_lines(document)) + "\n" for document in documents)


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for key, each in value.items() for line in _entry(f"{_scalar(key)}:", each)]
    if _is_list(value) and value:
        return [line for each in value for line in _item(_lines(each))]
    return [_scalar(value)]


def _entry(key: str, value: Any) -> list[str]:
    if isinstance(value, str) and "\n" in value.rstrip("\n") and _is_literal(value):
        return [f"{key} |", *(f"  {line}" if line else "" for line in value[:-1].split("\n"))]
    lines = _lines(value)
    if isinstance(value, Mapping) and value:
        return [key, *(f"  {line}" if line else "" for line in lines)]
    if _is_list(value) and value:
        return [key, *lines]
    return [f"{key} {lines[0]}"]


def _item(lines: Sequence[str]) -> list[str]:
    return [f"- {lines[0]}", *(f"  {line}" if line else "" for line in lines[1:])]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_literal(text: str) -> bool:
    """Return whether a literal block (|) can hold a text as it is."""
    first = text.split("\n", 1)[0]
    return (
        text.endswith("\n")
        and not text.endswith("\n\n")
        and bool(first)
        and not first.startswith(" ")
        and all(char.isprintable() or char == "\n" for char in text)
    )


def _scalar(value: Any) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
