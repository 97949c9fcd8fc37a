"""The names of JSON types, for messages and tables. What a value means is not decided here."""

from typing import Any

from srt_assets.core.records.files.unreadable import NotText


def type_of(value: Any) -> str:
    """The JSON type of a value, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {
        str: "text",
        list: "list",
        tuple: "list",
        dict: "object",
        bytes: "bytes",
        NotText: "bytes",
    }
    return names.get(type(value), type(value).__name__)
