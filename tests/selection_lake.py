"""A small lake with candidates and scores, written through `Lake`, for the tests of SQL and selection."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srt_assets.core.hashing import Fingerprint, content_key, sample_id
from srt_assets.core.lake import Lake
from srt_assets.core.tables import CANDIDATES, PASSES

Losses = tuple[float | None, float | None, float | None, float | None]
"""Mean losses in the order of PASSES: L(y), L(y|x), L(x), L(x|y')."""


def record(number: int, dataset: str = "alpaca") -> dict[str, Any]:
    texts = {"instruction": f"Do thing {number}", "input": "", "response": f"Thing {number} done"}
    key = sample_id(**texts)
    return {"sample_id": key, "dataset": dataset, **texts, "source_file": "a.json", "source_index": number}


def write_records(lake: Lake, records: list[dict[str, Any]], rejects: int = 0) -> None:
    part = lake.write_part("raw_records", records)
    lake.commit("raw_records", [part], fingerprint=Fingerprint.of(of="raw"), code_version="1")
    bad = [
        {
            "dataset": "alpaca",
            "source_file": "a.json",
            "source_index": 1000 + i,
            "reason": "empty_response",
            "raw": "{}",
        }
        for i in range(rejects)
    ]
    lake.commit(
        "raw_rejects", [lake.write_part("raw_rejects", bad)], fingerprint=Fingerprint.of(of="raw"), code_version="1"
    )


def candidate_rows(record: Mapping[str, Any], flaws: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The four candidates of a record, each with its own texts; `flaws` gives a status other than ok."""
    rows = []
    for name in CANDIDATES:
        reflected_instruction = name in ("reflected_instruction", "reflected_both")
        texts = {
            "instruction": f"New {record['instruction']}" if reflected_instruction else record["instruction"],
            "input": "" if reflected_instruction else record["input"],
            "response": record["response"] if name == "original" else f"{name}: {record['response']}",
        }
        status = (flaws or {}).get(name, "ok")
        if status != "ok":
            texts = dict.fromkeys(texts)
        rows.append(
            {
                "sample_id": record["sample_id"],
                "dataset": record["dataset"],
                "candidate": name,
                **texts,
                "status": status,
                "call_key": None if name == "original" else f"call-{name}-{record['sample_id']}",
                "content_key": content_key(**texts) if status == "ok" else None,
            }
        )
    return rows


def write_candidates(lake: Lake, rows: list[dict[str, Any]]) -> None:
    slices = {
        "asset=reflected_instructions": ("original", "reflected_instruction"),
        "asset=reflected_responses": ("reflected_response", "reflected_both"),
    }
    for partition, names in slices.items():
        part = lake.write_part("candidates", [r for r in rows if r["candidate"] in names], partition)
        lake.commit(
            "candidates", [part], fingerprint=Fingerprint.of(of="candidates"), code_version="1", partition=partition
        )


def score_row(student: str, candidate: Mapping[str, Any], losses: Losses, tokens: int = 8) -> dict[str, Any]:
    """A score row with these mean losses; None makes that pass fail with `too_long`."""
    ok = candidate["status"] == "ok"
    row: dict[str, Any] = {
        "student": student,
        "sample_id": candidate["sample_id"],
        "candidate": candidate["candidate"],
        "content_key": candidate["content_key"],
        "template": "vicuna",
        "protocol": "aligned",
        "student_fingerprint": f"fingerprint-{student}",
    }
    for name, loss in zip(PASSES, losses, strict=True):
        scored = ok and loss is not None
        row[f"sum_nll_{name}"] = loss * tokens if scored and loss is not None else None
        row[f"n_tokens_{name}"] = tokens if scored else None
        row[f"truncated_{name}"] = False if scored else None
        row[f"status_{name}"] = "ok" if scored else "too_long" if ok else "candidate_not_ok"
    return row


def write_scores(lake: Lake, student: str, rows: list[dict[str, Any]]) -> None:
    part = lake.write_part("student_scores", rows, f"student={student}")
    # As the stage does: scores say which candidates they are of.
    mark = Fingerprint.of(student=student, candidates=sorted(m.content_hash for m in lake.manifests("candidates")))
    lake.commit("student_scores", [part], fingerprint=mark, code_version="1", partition=f"student={student}")


def ratios(log_ifd: float, log_r_ifd: float, base: float = 2.0) -> Losses:
    return (base, base + log_ifd, base, base + log_r_ifd)


def small_lake(home: Path, students: tuple[str, ...] = ("tiny",), n: int = 8) -> Lake:
    """`n` records: in turn, every branch of the tree, one with a failed rewrite, one with an unscored original."""
    lake = Lake(home)
    records = [record(i) for i in range(n)]
    write_records(lake, records, rejects=2)
    cycle = (
        {"reflected_instruction": (-0.2, -0.3), "reflected_both": (-0.3, -0.5)},  # instruction+response, kept
        {"reflected_instruction": (-0.2, -0.3), "reflected_both": (-0.3, -0.1)},  # instruction, not kept
        {"reflected_instruction": (-0.9, -0.3), "reflected_response": (-0.3, -0.5)},  # response, kept
        {"reflected_instruction": (-0.9, -0.3), "reflected_response": (-0.3, -0.1)},  # neither
    )
    rows = [candidate_rows(r, {"reflected_both": "no_markers"} if i % 8 == 4 else None) for i, r in enumerate(records)]
    write_candidates(lake, [row for four in rows for row in four])
    for shift, student in enumerate(students):
        scores = []
        for i, four in enumerate(rows):
            values = cycle[(i + shift) % 4]
            for row in four:
                losses = ratios(*values.get(row["candidate"], (-0.5, -0.4)))
                if i % 8 == 7 and row["candidate"] == "original":
                    losses = (None, None, None, None)
                scores.append(score_row(student, row, losses, tokens=8 + i))
        write_scores(lake, student, scores)
    return lake
