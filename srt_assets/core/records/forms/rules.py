"""The settings of one dataset, prepared for reading its rows. `meaning.py` and its readers apply them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from srt_assets.core.records.forms import fields
from srt_assets.settings import Dataset

ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value", "text")
_ROLES: dict[str, tuple[str, ...]] = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "function_call", "function_response", "tool_call", "ipython"),
}
# Fields that are read as a column under their own names, unless the settings name another field, or "" for none.
UNDER_OWN_NAME: dict[str, tuple[str, ...]] = {
    "input": ("input", "context"),
    "system": fields.SYSTEM,
    "history": fields.HISTORY,
    "label": ("label", "kto_tag"),
    "rejected": ("rejected",),
}
# What "" for a column leaves out.
_OFF = UNDER_OWN_NAME | {
    "input": tuple(fields.INPUTS),
    "label": fields.LABELS,
}


@dataclass(frozen=True)
class Rules:
    """How the rows of a dataset are to be read. `off`: fields that the settings switch off with ""."""

    format: str = "auto"
    multi_turn: str = "reject"
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=lambda: _kinds({}))
    role_keys: tuple[str, ...] = ROLE_KEYS
    text_keys: tuple[str, ...] = TEXT_KEYS
    unwrap: str = ""
    off: frozenset[str] = frozenset()

    @classmethod
    def of(cls, dataset: Dataset) -> "Rules":
        columns = {str(column): name for column, name in dataset.columns.items()}
        off = {name for column in _OFF if columns.get(column) == "" for name in _OFF[column]}
        return cls(
            format="mapped" if any(columns.values()) else dataset.format,
            multi_turn=dataset.multi_turn,
            columns=columns,
            roles=_kinds({str(kind): names for kind, names in dataset.roles.items()}),
            role_keys=(dataset.role_key,) if dataset.role_key else ROLE_KEYS,
            text_keys=(dataset.text_key,) if dataset.text_key else TEXT_KEYS,
            unwrap=dataset.unwrap,
            off=frozenset(off),
        )


def _kinds(more: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The kind of each role name. Names from the settings are added to the known ones and override them."""
    pairs = [(name, kind) for kind, names in (*_ROLES.items(), *more.items()) for name in names]
    return {name.strip().lower(): kind for name, kind in pairs}
