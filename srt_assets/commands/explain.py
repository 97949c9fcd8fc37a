"""`srt explain`: prints the evidence behind one verdict as tables or JSON. Collecting it is in `core`."""

import json
import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from srt_assets.commands import terminal
from srt_assets.core.lake import Lake
from srt_assets.core.selection.evidence import explain

# Characters shown of a text; --format json has all of it.
SHOWN = 360
_LOSSES = {
    "loss_response": "L(y)",
    "loss_response_given_prompt": "L(y|x)",
    "loss_instruction": "L(x)",
    "loss_instruction_given_response": "L(x|y')",
    "ifd_ppl": "IFD",
    "r_ifd_ppl": "r-IFD",
    "n_tokens_instruction": "tokens of x",
    "n_tokens_response": "tokens of y",
}


def run(lake: Lake, sample_id: str, student: str | None, format: str, console: Console | None = None) -> None:
    """Print what `core.selection.evidence` found."""
    found = explain(lake, sample_id, student)
    if format == "json":
        terminal.print_json(json.dumps(found, ensure_ascii=False, allow_nan=False, default=str, indent=1))
        return
    out = console or terminal.console(highlight=False)
    record = found["record"]
    place = f"{record['source_file']} row {record['source_index']}"
    out.print(terminal.text(f"record {record['sample_id']} of {record['dataset']}, {place}", "bold"))
    out.print(_candidates(found["candidates"]))
    out.print(Text("teacher calls" if found["teacher_calls"] else "no teacher call"))
    for call in found["teacher_calls"]:
        out.print(_call(call))
    for one in found["students"]:
        out.print(_student(one))
    if not found["students"]:
        out.print(Text("no student has scored it yet: srt run student_scores"))
    out.print(Text("long texts are cut; --format json gives everything", "dim"))


def _candidates(rows: list[dict[str, Any]]) -> Table:
    """The four versions side by side."""
    table = _table("", *(row["candidate"] for row in rows))
    for field in ("status", "instruction", "input", "response"):
        table.add_row(Text(field, "dim"), *(terminal.text(_cut(row[field] or "")) for row in rows), end_section=True)
    return table


def _call(row: dict[str, Any]) -> RenderableType:
    """One line of facts, and the raw reply under it."""
    facts = [
        f"{row['purpose']}, attempt {_number(row['attempt'])}: {row['status']}",
        f"{row['model']}, prompt version {_number(row['prompt_version'])}",
        f"{_number(row['prompt_tokens'])} + {_number(row['completion_tokens'])} tokens",
        "price unknown" if row["cost_usd"] is None else f"{row['cost_usd']:.6f} USD",
        f"{_number(row['latency_s'])} s, finish reason {_number(row['finish_reason'])}",
    ]
    if row["error"]:
        facts.append(row["error"])
    line = terminal.text("; ".join(facts))
    return Group(line, Panel(terminal.text(_cut(row["reply"], 3 * SHOWN)))) if row["reply"] else line


def _student(one: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = []
    scores = {row["candidate"]: row for row in one["scores"]}
    table = _table("", *scores, title=f"scores by {one['student']} (nats per token)", numeric=True)
    for key, label in _LOSSES.items():
        table.add_row(Text(label, "dim"), *(Text(_number(row[key])) for row in scores.values()))
    table.add_row(Text("status", "dim"), *(terminal.text(row["status"]) for row in scores.values()))
    parts.append(table)
    for place, c in enumerate(one["comparisons"], start=1):
        margin = "" if c["margin"] is None else f", margin {c['margin']:+.4g}"
        line = f"{place}. {c['challenger']} against {c['defender']}: {c['result']}{margin}; {c['meaning']}"
        parts.append(Text(line))
    verdict = one["verdict"]
    if verdict is None:
        parts.append(Text(f"not decided yet: srt run selected_set --student {one['student']}"))
        return Group(*parts)
    line = f"{verdict['outcome']}: {verdict['chosen']} won under policy {verdict['policy']}, {verdict['reason']}"
    parts.append(Text(line + _limits(one["policy"]), "bold green" if verdict["kept"] else "bold yellow"))
    others = _table("policy", "chosen", "outcome", "reason", title="the other policies")
    for row in one["policies"]:
        if row["policy"] != verdict["policy"]:
            others.add_row(*(terminal.text(row[name]) for name in ("policy", "chosen", "outcome", "reason")))
    if others.row_count:
        parts.append(others)
    return Group(*parts)


def _limits(policy: dict[str, Any] | None) -> str:
    if policy is None:
        return ""
    wants = [
        f"{name} below {math.exp(policy[key]):g}"
        for key, name in (("log_ifd_below", "IFD"), ("log_r_ifd_below", "r-IFD"))
        if policy[key] is not None
    ]
    if policy["response_reflected_only"]:
        wants.insert(0, "a reflected response")
    return f" (kept needs {', '.join(wants)})" if wants else ""


def _table(first: str, *names: str, title: str | None = None, numeric: bool = False) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    return table


def _cut(text: str, most: int = SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
