"""The dataset card of an exported selected set: sources, teacher, student, policy and counts."""

import json
from pathlib import Path

import duckdb

from srt_assets.core.lake import Lake
from srt_assets.core.sql.views import connect
from srt_assets.settings import Settings
from srt_assets.text import as_code, in_markdown

TEMPLATE = """---
license: other
task_categories: [text-generation]
tags: [instruction-tuning, synthetic, srt-assets]
size_categories: [{size}]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train.jsonl
---
# Instruction data selected by {student}

Made by srt-assets with Selective Reflection-Tuning (arXiv 2402.10110): a teacher rewrote every record, the student that
will be finetuned scored every version with its own losses, and its choice is this dataset. Texts are as the source and
the teacher wrote them; they were not checked for truth.

| | |
|---|---|
| rows | {kept} |
| format | {format}, one JSON object a line |
| student | {student_facts} |
| scored with | template `{template}`, protocol `{protocol}` |
| policy | `{policy}` (fingerprint `{policy_mark:.16}`) with {switches} |
| content hash | `{content_hash}` |

## Source

| dataset | from | records | kept |
|---|---|---|---|
{sources}

## Teacher

| model | prompt version | rows it wrote |
|---|---|---|
{teachers}

## Where every row went

| input rows | unusable | records | kept | not chosen | rejected |
|---|---|---|---|---|---|
| {input_rows} | {raw_rejects} | {records} | {kept} | {not_chosen} | {rejected} |

| kept version | rows |
|---|---|
{branches}

## Licence

This card grants nothing. What may be done with the rows hangs on the licence of each source dataset above and on the
terms of the teacher's provider, some of which forbid training other models on their output. Read them before you
share or use it, and put the licence that results into the field `license` at the top.
"""


def write(settings: Settings, lake: Lake, student: str, format: str) -> str:
    """The card as Markdown, with the YAML header that the hub and `datasets` read."""
    con = connect(lake)
    try:
        return TEMPLATE.format(
            student=student,
            format=format,
            student_facts=_student(con, student),
            **_policy(con, student),
            **_scoring(con, student),
            **_counts(con, student),
            sources=_table(_sources(con, settings, student)),
            teachers=_table(_teachers(con, student)),
            branches=_table(
                con.execute(
                    "SELECT candidate, count(*) FROM selected_set WHERE student = ? GROUP BY 1 ORDER BY 1", [student]
                ).fetchall()
            ),
            content_hash=_content_hash(lake, student),
        )
    finally:
        con.close()


def _content_hash(lake: Lake, student: str) -> str:
    manifest = lake.manifest("selected_set", f"student={student}")
    return manifest.content_hash if manifest else ""


def _student(con: duckdb.DuckDBPyConnection, student: str) -> str:
    row = con.execute(
        "SELECT source, revision, student_fingerprint, generation FROM students WHERE student = ?", [student]
    ).fetchone()
    if row is None:
        return as_code(student)
    source, revision, mark, generation = row
    # A local path means nothing on another machine, so only its name is shown.
    name = Path(source).name if source and Path(source).is_absolute() else source
    version = f" at {as_code(revision)}" if revision else ""
    mark = as_code((mark or "")[:16])
    return f"{as_code(student)}, from {as_code(name or '')}{version}, fingerprint {mark}, generation {generation or 0}"


def _policy(con: duckdb.DuckDBPyConnection, student: str) -> dict[str, str]:
    cursor = con.execute("SELECT * FROM policies WHERE student = ? AND active", [student])
    names = [d[0] for d in cursor.description or []]
    row = dict(zip(names, cursor.fetchone() or [None] * len(names), strict=True))
    told = ("student", "policy", "active", "policy_fingerprint")
    switches = ", ".join(f"{k} = {json.dumps(v)}" for k, v in row.items() if k not in told and v is not None)
    return {"policy": row["policy"], "policy_mark": row["policy_fingerprint"] or "", "switches": switches}


def _scoring(con: duckdb.DuckDBPyConnection, student: str) -> dict[str, str]:
    row = con.execute(
        "SELECT string_agg(DISTINCT template, ', '), string_agg(DISTINCT protocol, ', ') FROM student_scores "
        "WHERE student = ?",
        [student],
    ).fetchone()
    template, protocol = row or ("", "")
    return {"template": template or "", "protocol": protocol or ""}


def _counts(con: duckdb.DuckDBPyConnection, student: str) -> dict[str, int | str]:
    names = ("input_rows", "raw_rejects", "records", "kept", "not_chosen", "rejected")
    row = con.execute(f"SELECT {', '.join(names)} FROM row_accounting WHERE student = ?", [student]).fetchone()
    counts = dict(zip(names, row or [0] * len(names), strict=True))
    ladder = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    size = next((label for most, label in ladder if counts["kept"] < most), "n>1M")
    return counts | {"size": size}


def _sources(con: duckdb.DuckDBPyConnection, settings: Settings, student: str) -> list[tuple]:
    origins = {d.name: d.hf or Path(d.path).name for d in settings.datasets}
    rows = con.execute(
        "SELECT dataset, count(*), count(*) FILTER (kept) FROM decisions WHERE student = ? GROUP BY 1 ORDER BY 1",
        [student],
    ).fetchall()
    return [(name, origins.get(name, "no longer in the settings"), n, kept) for name, n, kept in rows]


def _teachers(con: duckdb.DuckDBPyConnection, student: str) -> list[tuple]:
    """(model, prompt version, rows) of the teachers that wrote kept rows; kept originals are not counted."""
    return con.execute(
        "WITH written AS (SELECT DISTINCT call_key, model, prompt_version FROM teacher_calls WHERE status = 'ok') "
        "SELECT written.model, written.prompt_version, count(*) FROM selected_set AS kept "
        "JOIN candidates ON candidates.sample_id = kept.sample_id AND candidates.candidate = kept.candidate "
        "LEFT JOIN written ON written.call_key = candidates.call_key "
        "WHERE kept.student = ? AND kept.candidate <> 'original' GROUP BY 1, 2 ORDER BY 1, 2",
        [student],
    ).fetchall()


def _table(rows: list[tuple]) -> str:
    cells = [[in_markdown("unknown" if value is None else str(value)) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) or "| none |"
