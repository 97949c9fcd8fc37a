"""What it costs to decide: synthetic scores of N samples x 4 candidates, from `candidate_scores` to written verdicts.

    python -m benchmarks.selection                       # 0.1, 1 and 10 million samples, 2 GB of memory, 2 threads
    python -m benchmarks.selection --samples 100000 --folder /tmp/scores --stage

Beside the rule, in the same run: only the best candidate of each sample by IFD, one aggregate over the same rows, which
is what DuckDB needs at least (a window over them runs out of 2 GB at 10 million). `--stage` measures the whole asset
too: every policy, the selected set, content hashes, manifests. `--folder` keeps the synthetic tables for the next run.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from srt_assets.core.hashing import Fingerprint, digest
from srt_assets.core.lake import Lake
from srt_assets.core.selection import decide
from srt_assets.core.selection.policies import policy_rows
from srt_assets.core.selection.rule import rule_sql
from srt_assets.core.sql import models
from srt_assets.core.tables import CANDIDATES, PASSES, TABLES
from srt_assets.settings import Project, Selection, Settings

STUDENT = "s"
PARTITION = f"student={STUDENT}"
WAYS = ("plain aggregate", "decisions")


def make(lake: Lake, n: int) -> None:
    """Write candidates and scores of n samples, ordered as the stages do: scores by id, candidates as read."""
    con = lake.connect("4GB")
    con.execute("SELECT setseed(0.5)")
    names = ", ".join(f"'{name}'" for name in CANDIDATES)
    step = 2**63 // n
    cells = (
        f"SELECT printf('%016x', i * {step}) AS sample_id, candidate, md5(candidate || i::VARCHAR) AS content_key, i, "
        # The same three in a hundred in both tables.
        "CASE WHEN candidate <> 'original' AND hash(candidate, i) % 100 < 3 THEN 'no_markers' ELSE 'ok' END AS status "
        f"FROM ({{}}) CROSS JOIN unnest([{names}]) AS u(candidate)"
    )
    # Any prime that does not divide n walks through all of range(n) in another order.
    read = cells.format(f"SELECT i * 7919 % {n} AS i FROM range({n}) t(i)")
    for asset, own in (
        ("reflected_instructions", "candidate IN ('original', 'reflected_instruction')"),
        ("reflected_responses", "candidate NOT IN ('original', 'reflected_instruction')"),
    ):
        sql = (
            "SELECT sample_id, 'd' || i % 3 AS dataset, candidate, 'Explain item ' || i AS instruction, '' AS input, "
            "candidate || ' of item ' || i AS response, status, content_key AS call_key, "
            f"CASE WHEN status = 'ok' THEN content_key END AS content_key FROM ({read}) WHERE {own}"
        )
        sink(lake, con, sql, "candidates", f"asset={asset}", n)
    passes = ", ".join(
        f"CASE WHEN ok THEN round(n * (1 + 2 * random()), 4) END AS sum_nll_{name}, "
        f"CASE WHEN ok THEN n END AS n_tokens_{name}, CASE WHEN ok THEN false END AS truncated_{name}, "
        f"CASE WHEN ok THEN 'ok' ELSE 'candidate_not_ok' END AS status_{name}"
        for name in PASSES
    )
    sql = (
        f"SELECT '{STUDENT}' AS student, sample_id, candidate, {passes}, "
        "CASE WHEN ok THEN content_key END AS content_key, 'vicuna' AS template, 'aligned' AS protocol, "
        "'bos' AS first_token, 2048 AS max_length, 'float32' AS dtype, '1' AS scoring_version, "
        "'f' AS student_fingerprint "
        "FROM (SELECT *, status = 'ok' AS ok, 10 + (random() * 300)::BIGINT AS n "
        f"FROM ({cells.format(f'SELECT i FROM range({n}) t(i)')}))"
    )
    sink(lake, con, sql, "student_scores", PARTITION, n)
    con.close()


def sink(lake: Lake, con, sql: str, table: str, partition: str, n: int) -> None:
    columns = ", ".join(f'"{c.name}"' for c in TABLES[table].columns)
    part = lake.sink_part(con, f"SELECT {columns} FROM ({sql})", table, partition)
    mark = digest(table=table, n=n)
    # As the stage does: scores say which candidates they are of.
    made_of = Fingerprint.of(table=table, n=n, candidates=sorted(m.content_hash for m in lake.manifests("candidates")))
    # The content hash of these is no part of the question.
    lake.commit(table, [part], fingerprint=made_of, code_version="1", partition=partition, complete=False)
    made = lake.manifest(table, partition)
    assert made, "it was committed"
    replace(made, complete=True, content_hash=mark).write(lake.directory(table, partition))


def measure(home: Path, way: str, memory: str, threads: int) -> dict:
    """Seconds, peak resident and spilled bytes of one way, in this process."""
    lake = Lake(home)
    con = lake.connect(memory)
    con.execute(f"SET threads = {threads}")
    started = time.perf_counter()
    if way == "decisions":
        asked = "(SELECT * FROM asked)"
        import pyarrow as pa

        rows = pa.Table.from_pylist(policy_rows(Selection(), 0, STUDENT), schema=TABLES["policies"].arrow_schema)
        con.register("asked", rows)
        part = lake.sink_part(con, rule_sql(lake, STUDENT, asked), "decisions", PARTITION)
    elif way == "plain aggregate":
        scores = models.written_out(
            models.RATIOS, lambda name: lake.source("student_scores", PARTITION) if name == models.SCORES else None
        )
        ranked = (
            "SELECT student, sample_id, arg_max(candidate, log_ifd) AS chosen, max(log_ifd) AS log_ifd "
            f"FROM ({scores}) GROUP BY student, sample_id"
        )
        missing = ", ".join(
            f'NULL AS "{c.name}"'
            for c in TABLES["decisions"].columns
            if c.name not in ("student", "sample_id", "chosen", "log_ifd")
        )
        part = lake.sink_part(con, f"SELECT *, {missing} FROM ({ranked})", "decisions", PARTITION)
    else:
        con.close()
        settings = Settings(project=Project(home=home))
        for table in decide.STAGE.tables:
            # Else the second run finds the first one's work done.
            shutil.rmtree(lake.directory(table, PARTITION), ignore_errors=True)
        started = time.perf_counter()
        decide.STAGE.run(settings, lake, student=STUDENT)
        part = ""
    seconds = time.perf_counter() - started
    if part:
        (lake.directory("decisions", PARTITION) / part).unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak}


def in_process(home: Path, way: str, memory: str, threads: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.selection", "--one", way, "--folder", str(home)]
    command += ["--memory", memory, "--threads", str(threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="100000,1000000,10000000")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stage", action="store_true", help="the whole asset too")
    parser.add_argument("--only-make", action="store_true", help="write the synthetic tables and stop")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, options.one, options.memory, options.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        sizes = [int(size) for size in options.samples.split(",")]
        for n in sizes:
            if not (root / str(n) / "lake" / "student_scores" / PARTITION / "_manifest.json").exists():
                make(Lake(root / str(n)), n)
        if options.only_make:
            return
        print(f"memory_limit {options.memory}, {options.threads} threads, 4 candidates a sample")
        print(f"{'samples':>10}  {'way':<15} {'seconds':>8} {'us/sample':>10} {'peak RSS':>9}  ratio")
        for n in sizes:
            first = None
            for way in (*WAYS, *(("stage",) if options.stage else ())):
                found = in_process(root / str(n), way, options.memory, options.threads)
                first = first or found["seconds"]
                each = found["seconds"] / n * 1e6
                line = f"{n:>10,}  {way:<15} {found['seconds']:>8.2f} {each:>10.2f} {found['peak'] / 1e9:>6.2f} GB"
                print(f"{line}  {found['seconds'] / first:.2f}", flush=True)


if __name__ == "__main__":
    main()
