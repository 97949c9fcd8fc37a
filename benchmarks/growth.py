"""What a run costs that asks nothing: N records whose three replies each lie in the ledger; time and peak memory.

    python -m benchmarks.growth                                # 50,000, 100,000 and 200,000 records
    python -m benchmarks.growth --records 50000 --folder /tmp/growth --raw --estimate --decide

The ledger is filled with rows as the flow writes them, one in 50 with a correction turn; no call is made.
With `--failed N` one call in N has failed for good instead. `--raw` measures reading the raw JSON array too,
`--estimate` what `srt estimate` takes, and `--decide` selection, over scores that are generated: no student runs.
`--folder` keeps the homes. Each step has its own process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("OPENAI_API_KEY", "none-needed")

from srt_assets.core.hashing import Fingerprint, digest
from srt_assets.core.lake import Lake
from srt_assets.core.records import raw
from srt_assets.core.selection import decide
from srt_assets.core.tables import PASSES, TABLES
from srt_assets.core.teacher import estimate, instructions, responses, stage
from srt_assets.core.teacher.call import Call, Prompter, Source
from srt_assets.core.teacher.engine import ledger_row
from srt_assets.settings import Dataset, Project, Settings, Teacher

TEACHER = {"model": "openai/fake", "max_tokens": 2048, "max_attempts": 1, "context_tokens": 16384}
TEACHER |= {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0}
CRITIQUE = "The answer is short, names no source and leaves open why it should be so. " * 4
TEXT = "It has a cause, a course and an end, and each of them can be told apart from the others. " * 6
STUDENT = "s"
PARTITION = f"student={STUDENT}"


def settings_of(folder: Path) -> Settings:
    datasets = (Dataset(name="d", path=str(folder / "data.json")),)
    return Settings(project=Project(home=folder / "home"), datasets=datasets, teacher=Teacher(**TEACHER))


def write_raw(folder: Path, n: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.json").open("w") as file:
        file.write("[\n")
        for i in range(n):
            row = {"instruction": f"Explain item {i}.", "input": "", "output": f"Item {i}. {TEXT}"}
            file.write(json.dumps(row) + (",\n" if i < n - 1 else "\n]\n"))


def fill_ledger(settings: Settings, lake: Lake, one_in: int) -> None:
    """A row for every call of both assets, in parts of 50,000 rows."""
    prompter, at = Prompter(settings.teacher), datetime(2026, 1, 1)

    def row(call: Call, text: str, number: int, **more: object) -> dict:
        facts = {"status": "ok", "reply": text, "finish_reason": "stop", "native_finish_reason": "stop"}
        facts |= {"prompt_tokens": 700, "completion_tokens": 300, "cost_usd": 0.001, "latency_s": 1.5}
        facts |= {"segment": f"segment-{number // 100_000}.jsonl", "created_at": at + timedelta(milliseconds=number)}
        return ledger_row(settings.teacher, call, 2048, 1) | facts | more

    def rows() -> Iterator[dict]:
        with lake.connect() as con:
            cursor = con.execute("SELECT sample_id, instruction, input, response FROM raw_records")
            number = 0
            while records := cursor.fetchmany(1000):
                for id, *texts in records:
                    number += 3
                    first = Source(id, "reflect_instruction", *texts)
                    call = prompter.call(first)
                    if number // 3 % 50 == 0:
                        yield row(call, CRITIQUE, number)
                        call = prompter.correction(first, call, CRITIQUE, "no_markers")
                    asked, told = f"Explain {texts[0]} at length.", f"At length: {texts[2]}".strip()
                    reply = f"{CRITIQUE}\n[New Instruction] {asked} [End]\n[New Answer] {told} [End]"
                    yield row(call, reply, number)
                    is_failed = one_in and number // 3 % one_in == 0
                    failed = {"status": "bad_request", "reply": None, "error": "no"} if is_failed else {}
                    both = (("reflect_response", texts), ("reflect_response_of_reflected", (asked, "", told)))
                    for purpose, shown in both:
                        call = prompter.call(Source(id, purpose, *shown))
                        yield row(call, f"{CRITIQUE}\n[Better Answer] Better: {shown[2]} [End]", number, **failed)

    parts, stream = [], rows()
    while chunk := list(islice(stream, 50_000)):
        parts.append(lake.write_part("teacher_calls", chunk))
    made = Fingerprint.of(parts=parts)
    lake.commit("teacher_calls", parts, fingerprint=made, code_version="1", complete=False)


def fill_scores(lake: Lake) -> None:
    """Scores of all candidates, made up: one row for each, by its content key."""
    passes = ", ".join(
        f"CASE WHEN ok THEN round(n * (1 + 2 * random()), 4) END AS sum_nll_{name}, "
        f"CASE WHEN ok THEN n END AS n_tokens_{name}, CASE WHEN ok THEN false END AS truncated_{name}, "
        f"CASE WHEN ok THEN 'ok' ELSE 'candidate_not_ok' END AS status_{name}"
        for name in PASSES
    )
    sql = (
        f"SELECT '{STUDENT}' AS student, sample_id, candidate, {passes}, content_key, 'vicuna' AS template, "
        "'aligned' AS protocol, 'bos' AS first_token, 2048 AS max_length, 'fp32' AS dtype, '1' AS scoring_version, "
        "'f' AS student_fingerprint FROM (SELECT *, status = 'ok' AS ok, 10 + (random() * 300)::BIGINT AS n "
        "FROM candidates)"
    )
    columns = ", ".join(f'"{c.name}"' for c in TABLES["student_scores"].columns)
    with lake.connect("1GB") as con:
        con.execute("SELECT setseed(0.5)")
        part = lake.sink_part(con, f"SELECT {columns} FROM ({sql})", "student_scores", PARTITION)
    made_of = Fingerprint.of(candidates=sorted(m.content_hash for m in lake.manifests("candidates")))
    lake.commit("student_scores", [part], fingerprint=made_of, code_version="1", partition=PARTITION, complete=False)
    manifest = lake.directory("student_scores", PARTITION) / "_manifest.json"
    facts = json.loads(manifest.read_text())
    facts.pop("checksum", None)
    facts |= {"complete": True, "content_hash": digest(made=part)}
    manifest.write_text(json.dumps(facts | {"checksum": digest(**facts)}))


def measure(folder: Path, step: str, one_in: int) -> dict:
    """Seconds, CPU seconds, peak resident bytes and a word on the result of one step, in this process."""
    settings = settings_of(folder)
    lake = Lake(settings.home)
    started, said = time.perf_counter(), ""
    if step == "raw_dataset":
        said = str(raw.STAGE.run(settings, lake).manifest.content_hash)
    elif step == "ledger":
        fill_ledger(settings, lake, one_in)
    elif step == "estimate":
        said = f"{estimate.estimate(settings, lake).calls} calls"
    elif step == "scores":
        fill_scores(lake)
    elif step == "selected_set":
        outcome = decide.STAGE.run(settings, lake, student=STUDENT)
        said = str(outcome.manifest.content_hash)
    else:
        plan = {"instructions": instructions.STAGE, "responses": responses.STAGE}[step]
        shutil.rmtree(lake.directory(stage.TABLE, plan.share), ignore_errors=True)
        outcome = plan.run(settings, lake)
        assert not outcome.stats["calls_paid"]
        said = f"{outcome.stats['ok']} ok, content {outcome.manifest.content_hash}"
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"peak": used.ru_maxrss * 1024, "cpu": used.ru_utime + used.ru_stime, "said": said}
    return facts | {"seconds": time.perf_counter() - started}


def in_process(folder: Path, step: str, one_in: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.growth", "--one", step, "--folder", str(folder)]
    command += ["--failed", str(one_in)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="50000,100000,200000")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--raw", action="store_true", help="reading the raw file too")
    parser.add_argument("--estimate", action="store_true", help="srt estimate too, before and after the rows are made")
    parser.add_argument("--decide", action="store_true", help="selection too, over generated scores")
    parser.add_argument("--failed", type=int, default=0, metavar="N", help="one call in N has failed for good")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, options.one, options.failed)))
        return
    print(f"{'records':>10}  {'step':<13} {'seconds':>8} {'CPU s':>7} {'us/record':>10} {'peak RSS':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        for n in (int(size) for size in options.records.split(",")):
            folder = (options.folder or Path(temporary)) / str(n)
            filled = (folder / "home/lake/teacher_calls/_manifest.json").exists()
            steps = ["instructions", *(["estimate"] if options.estimate else []), "responses"]
            if not filled:
                write_raw(folder, n)
                steps = ["raw_dataset", "ledger", *steps]
            steps += ["scores", "selected_set"] if options.decide else []
            for step in steps:
                found = in_process(folder, step, options.failed)
                if step in ("ledger", "scores") or (step == "raw_dataset" and not options.raw):
                    continue
                each = found["cpu"] / n * 1e6
                line = f"{n:>10,}  {step:<13} {found['seconds']:>8.1f} {found['cpu']:>7.1f} {each:>10.0f}"
                line += f" {found['peak'] / 2**20:>5.0f} MiB"
                print(f"{line}  {found['said']}", flush=True)


if __name__ == "__main__":
    main()
