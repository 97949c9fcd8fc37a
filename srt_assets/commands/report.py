"""`srt report`: one page about a student, Markdown or HTML: counts, scores, branches, policies, cost, losses.

The page loads nothing from elsewhere and runs no script; every value is escaped.
"""

import base64
import hashlib
import html
import math
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srt_assets.core import rights
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.selection.students import known_student
from srt_assets.core.sql.views import connect
from srt_assets.text import in_markdown, printable

ENDINGS = (".html", ".md")


@dataclass(frozen=True)
class Section:
    """A heading, a sentence on how to read it, and a table."""

    title: str
    text: str
    columns: list[str]
    rows: list[tuple[Any, ...]]


# Each query takes the student as its parameter. For an empty result the page says so.
_SECTIONS = (
    (
        "Where every row went",
        "Every input row is kept, not chosen, or rejected with a reason.",
        "SELECT input_rows, raw_rejects AS unusable, records, kept, not_chosen, rejected, unaccounted, kept_share "
        "FROM row_accounting WHERE student = ?",
    ),
    (
        "Branches of the tree",
        "What won under the active policy, and what became of it.",
        "SELECT branch, outcome, reason, samples, share FROM selection_summary WHERE student = ? AND active",
    ),
    (
        "Scores by candidate",
        "Means are ruled by outliers, so the medians stand beside them. IFD: how little the instruction helps, "
        "high is hard. r-IFD: how easily the instruction is recovered, low is well matched.",
        "SELECT candidate, scored, instruction_tokens, response_tokens, instruction_ppl, instruction_ppl_median, "
        "response_ppl, response_ppl_median, response_ppl_given_prompt, response_ppl_given_prompt_median, "
        "ifd, ifd_median, r_ifd, r_ifd_median, ifd_above_1 FROM score_summary WHERE student = ?",
    ),
    (
        "Every policy side by side",
        "What each policy would have kept of the same scores.",
        "SELECT policy, active, sum(samples) FILTER (outcome = 'kept') AS kept, "
        "sum(share) FILTER (outcome = 'kept') AS kept_share FROM selection_summary WHERE student = ? "
        "GROUP BY ALL ORDER BY active DESC, policy",
    ),
    (
        "Kept by length",
        "Classes of the original response's length in tokens. IFD favours long responses.",
        "SELECT tokens_from, tokens_to, samples, kept, kept_share, ifd_original, ifd_chosen, response_tokens_chosen "
        "FROM acceptance_by_length WHERE student = ?",
    ),
    (
        "The teacher's work",
        "Shared by all students and paid once.",
        "SELECT model, purpose, status, calls, retries, prompt_tokens, completion_tokens, cost_usd, unpriced_calls "
        "FROM teacher_cost WHERE ? IS NOT NULL",
    ),
    (
        "Finetuning",
        "Held-out loss in nats per response token, before and after training.",
        "SELECT run, arm, is_active_policy, n_train, n_held_out, steps, eval_loss_before, eval_loss_after, "
        "eval_original_loss_before, eval_original_loss_after, seconds FROM training_runs "
        "WHERE student = ? ORDER BY finished_at",
    ),
)


def report(lake: Lake, student: str, out: Path) -> None:
    """Write the page; the ending .html or .md says which. UserError: other ending, unknown student, existing target."""
    if out.suffix not in ENDINGS:
        raise UserError(f"{out} ends in {out.suffix or 'nothing'}", "end it in .html or .md")
    known_student(lake, student, "decisions")
    if out.exists():
        raise UserError(f"{out} exists already", "name another file, or remove it first")
    title = f"Selection of student {student}"
    sections = _sections(lake, student)
    text = _html(title, sections) if out.suffix == ".html" else _markdown(title, sections)
    with rights.of_the_user():
        out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        aside.write_text(text, encoding="utf-8")
        rights.give(aside)
        aside.rename(out)
    finally:
        aside.unlink(missing_ok=True)


def _sections(lake: Lake, student: str) -> list[Section]:
    con = connect(lake)
    try:
        found = []
        for title, text, sql in _SECTIONS:
            cursor = con.execute(sql, [student])
            columns = [d[0].replace("_", " ") for d in cursor.description or []]
            found.append(Section(title, text, columns, cursor.fetchall()))
        return found
    finally:
        con.close()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _markdown(title: str, sections: list[Section]) -> str:
    safe = in_markdown
    lines = [f"# {safe(title)}", ""]
    for one in sections:
        lines += [f"## {safe(one.title)}", "", safe(one.text), ""]
        if one.rows:
            lines += [f"| {' | '.join(map(safe, one.columns))} |", "|---" * len(one.columns) + "|"]
            lines += [f"| {' | '.join(safe(_cell(v)) for v in row)} |" for row in one.rows]
        else:
            lines.append("Nothing yet.")
        lines.append("")
    return "\n".join(lines)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px}"
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}div{overflow-x:auto}h2{margin-top:2rem}"
)


def _html(title: str, sections: list[Section]) -> str:
    safe = html.escape
    # Even if a value were not escaped, the page may run, fetch and send nothing; only these styles are allowed.
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{safe(title)}</title><style>{_STYLE}</style></head><body><h1>{safe(title)}</h1>",
    ]
    for one in sections:
        parts.append(f"<h2>{safe(one.title)}</h2><p>{safe(one.text)}</p>")
        if not one.rows:
            parts.append("<p>Nothing yet.</p>")
            continue
        head = "".join(f"<th>{safe(name)}</th>" for name in one.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td{' class=n' if _is_number(v) else ''}>{safe(_cell(v))}</td>" for v in row) + "</tr>\n"
            for row in one.rows
        )
        parts.append(f"<div><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>")
    return "\n".join([*parts, "</body></html>\n"])
