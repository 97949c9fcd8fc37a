"""What a training does before its first step, by number of rows: as Python lists, and as it is done.

    python benchmarks/training_start.py [--student DIRECTORY] [--rows 5000 10000 20000 100000] [--lists-until 20000]

Both sides get one selected set in a home of its own and do the same, each in a process of its own (peak memory is a
process's): choose, split and hash the rows and write them down (rows), turn them into token ids (tokens), and see how
they will be laid into steps and how much memory a row takes (plan). The side `lists` is how this was done before: every
text and id in Python lists, one pass of packing over all samples. It is quadratic, so it ends at --lists-until rows.
Prints seconds of each part, the memory added to that of a process that has loaded the libraries, ratios, and how time
grows with the rows. Fails if the two sides do not agree on the hash of the data, on any sample, or on any step.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
SHARE, SEED, BATCH, EPOCHS, BUDGET, WINDOW = 0.05, 0, 128, 3, 1024, 1024
TEXTS = ("instruction", "input", "response")


def make(home: Path, n: int, words: int) -> None:
    """A home with the candidates and the selected set of n records. Answers have up to twice `words` words."""
    from srt_assets.core.hashing import Fingerprint
    from srt_assets.core.lake import Lake

    lake = Lake(home)
    some = "['the', 'sun', 'is', 'star', 'name', 'apple', 'number', 'city', 'write', 'why', 'code', 'model']"
    word = f"{some}[1 + (hash(i, k, {{}}) % 12)::INT]"
    text = f"array_to_string(list_transform(range({{}}), k -> {word}), ' ')"
    size = f"2 + (hash(i) % {2 * words})::BIGINT"
    sql = (
        "SELECT 's' AS student, md5(i::VARCHAR)[:16] AS sample_id, 'd' || i % 3 AS dataset, '{}' AS candidate, "
        f"'Write ' || {text.format(6, 1)} || ' ' || i AS instruction, '' AS input, "
        f"{text.format(size, '{}')} AS response, "
        "'ok' AS status, '' AS content_key, 0 AS position"
    )
    with lake.connect() as con:
        for table, partition, name, mark in (
            ("candidates", "asset=reflected_responses", "original", 2),
            ("selected_set", "student=s", "reflected_response", 3),
        ):
            rows = f"{sql.format(name, mark)} FROM range({n}) t(i)"
            from srt_assets.core.tables import TABLES

            lacking = [c.name for c in TABLES[table].columns if c.name in ("call_key", "log_ifd", "log_r_ifd")]
            columns = ", ".join(f"NULL AS {c}" if c in lacking else c for c in (x.name for x in TABLES[table].columns))
            part = lake.sink_part(con, f"SELECT {columns} FROM ({rows})", table, partition)
            lake.commit(table, [part], fingerprint=Fingerprint.of(n=n), code_version="1", partition=partition)


def lists(home: Path, tokenizer, watch: "Watch") -> tuple[str, str]:
    """The way it was: rows, ids and steps in Python lists."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from srt_assets.core.hashing import content_key, digest
    from srt_assets.core.lake import Lake
    from srt_assets.core.scoring.encoding import Encoder, Texts
    from srt_assets.core.tables import rows_as_dicts
    from srt_assets.core.training.packed import Example

    columns = ("sample_id", "dataset", "candidate", *TEXTS)
    with Lake(home).connect() as con:
        chosen = rows_as_dicts(con.execute(f"SELECT {', '.join(columns)} FROM selected_set ORDER BY sample_id"))
        hashes = ((hashlib.sha256(f"{SEED}:{r['sample_id']}".encode()).digest(), r["sample_id"]) for r in chosen)
        held = {i for place, i in sorted((int.from_bytes(h[:8]) / 2**64, i) for h, i in hashes) if place < SHARE}
        con.execute("CREATE TABLE held AS SELECT unnest(?::VARCHAR[]) AS sample_id", [sorted(held)])
        sql = f"SELECT {', '.join(columns)} FROM candidates SEMI JOIN held USING (sample_id) ORDER BY sample_id"
        originals = rows_as_dicts(con.execute(sql))
    measured = [{**r, "split": "held_out"} for r in chosen if r["sample_id"] in held]
    seen = {tuple(r[t] for t in TEXTS) for r in measured}
    learned = [{**r, "split": "train"} for r in chosen if r["sample_id"] not in held]
    kept = [r for r in learned if tuple(r[t] for t in TEXTS) not in seen]
    rows = [*kept, *measured, *({**r, "split": "held_out_original"} for r in originals)]
    Counter(r["dataset"] for r in rows if r["split"] == "train")
    marks = sorted([r["sample_id"], r["split"], content_key(*(r[t] for t in TEXTS))] for r in rows)
    data_hash = digest(rows=marks)
    schema = pa.schema([(name, pa.string()) for name in (*columns, "split")])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), home / "rows.parquet")
    del chosen, originals, measured, seen, learned, kept, rows, marks, held
    watch.note("rows")

    table = pq.read_table(home / "rows.parquet").to_pylist()
    encoder = Encoder(tokenizer, "vicuna", "aligned", WINDOW)
    encoder.dropped = 0
    encoded = encoder.encode([Texts(*(r[t] for t in TEXTS)) for r in table])
    train = []
    for row, passes in zip(table, encoded, strict=True):
        one = passes["response_given_prompt"]
        if row["split"] == "train":
            train.append(Example(row["sample_id"], np.asarray([*one.ids, *encoder.end], np.int32), one.start))
    watch.note("tokens")

    lengths = [len(e.ids) for e in train]
    bins: list[list[int]] = []
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, left in enumerate(free) if left >= lengths[item]), None)
        if place is None:
            bins.append([])
            free.append(BUDGET)
            place = len(bins) - 1
        bins[place].append(item)
        free[place] -= lengths[item]
    max(sum(lengths[i] for i in b) for b in bins)
    sorted(train, key=lambda e: len(e.ids))[:2]
    steps = []
    for epoch in range(EPOCHS):
        order = np.random.default_rng([SEED, epoch]).permutation(len(train))
        steps += [order[i : i + BATCH] for i in range(0, len(train), BATCH)]
    sum(len(train[i].ids) for step in steps for i in step)
    watch.note("plan")
    return data_hash, agreed(train, steps)


def as_is(home: Path, tokenizer, watch: "Watch") -> tuple[str, str]:
    """The way it is, by the functions that a training calls."""
    from srt_assets.core.lake import Lake
    from srt_assets.core.training import data, rows
    from srt_assets.core.training.job import Job
    from srt_assets.core.training.plan import count_steps, row_bound, step_samples
    from srt_assets.core.training.samples import shortest
    from srt_assets.core.training.trainer import Steps

    nothing = {name: None for name in Job.__dataclass_fields__ if name not in ("lora", "facts")}
    job = replace(Job(**nothing), work=str(home / "work"), template="vicuna", protocol="aligned")  # type: ignore[arg-type]
    chosen = rows.active(Lake(home), "s", SHARE, SEED)
    chosen.move(job.rows_file)
    watch.note("rows")

    train = data.load(job, tokenizer, WINDOW, 1 << 30).train
    watch.note("tokens")

    row_bound(train.lengths, train.n_targets, BATCH, BUDGET)
    shortest(train, 2)
    batches = step_samples(len(train), BATCH, count_steps(len(train), BATCH, EPOCHS, 0), SEED)
    steps = Steps(train, batches, BUDGET)
    steps.tokens_before(len(steps))
    watch.note("plan")
    return chosen.data_hash, agreed(train, batches)


def agreed(train, steps) -> str:
    """Hash of every sample and of every step, to be the same on both sides."""
    found = hashlib.sha256()
    for one in train:
        found.update(f"{one.sample_id} {one.start} ".encode() + one.ids.tobytes())
    for step in steps:
        found.update(step.tobytes())
    return found.hexdigest()


class Watch:
    """Seconds by part, and the most memory so far, less that at the start. Not counted: pages of mapped files,
    which the system takes back when it needs them.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.process = psutil.Process()
        self.start = self.most = self.own()
        self.last = time.perf_counter()
        threading.Thread(target=self.look, daemon=True).start()

    def own(self) -> int:
        info = self.process.memory_info()
        return info.rss - info.shared

    def look(self) -> None:
        while True:
            self.most = max(self.most, self.own())
            time.sleep(0.01)

    def note(self, part: str) -> None:
        self.parts[part] = time.perf_counter() - self.last
        self.memory = max(self.most, self.own()) - self.start
        self.last = time.perf_counter()


def one_side(side: str, home: Path, student: str) -> None:
    """In a process of its own: prepare a training, and print what it took as the last line."""
    import srt_assets.core.training.trainer  # noqa: F401 - loaded before the watch starts
    from srt_assets.core.students.loading import load_tokenizer

    tokenizer = load_tokenizer(student)
    watch = Watch()
    data_hash, same = {"lists": lists, "as is": as_is}[side](home, tokenizer, watch)
    print("\n" + json.dumps({"parts": watch.parts, "memory": watch.memory, "agree": [data_hash, same]}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="", help="directory with a tokenizer; default: a tiny one")
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 10_000, 20_000, 100_000])
    parser.add_argument("--lists-until", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=20, help="words of an answer, on average")
    options = parser.parse_args()
    last: dict[str, tuple[int, float]] = {}
    print(f"{'rows':>9} {'way':6} {'rows s':>8} {'tokens s':>9} {'plan s':>8} {'all s':>8} {'memory MB':>10}  growth")
    for n in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            student = options.student or str(tiny(Path(folder) / "student"))
            make(Path(folder) / "home", n, options.words)
            found = {}
            for side in ("lists", "as is") if n <= options.lists_until else ("as is",):
                command = [sys.executable, __file__, "--side", side, str(Path(folder) / "home"), student]
                several = {"TOKENIZERS_PARALLELISM": "true" if side == "as is" else "false"}  # as the stage sets it
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | several)
                found[side] = json.loads(done.stdout.strip().splitlines()[-1])
                parts = found[side]["parts"]
                total = sum(parts.values())
                before = last.get(side)
                grew = f"x{total / before[1]:.1f} for x{n / before[0]:.0f} rows" if before else ""
                last[side] = n, total
                seconds = f"{parts['rows']:8.2f} {parts['tokens']:9.2f} {parts['plan']:8.2f} {total:8.2f}"
                print(f"{n:9,} {side:6} {seconds} {found[side]['memory'] / 1e6:10.0f}  {grew}", flush=True)
            if len(found) == 2:
                if found["lists"]["agree"] != found["as is"]["agree"]:
                    print("the two ways do not agree on the data")
                    return 1
                times, memory = ([f(found[s]) for s in ("lists", "as is")] for f in (seconds_of, memory_of))
                print(
                    f"{'':9} ratio  {times[0] / times[1]:.1f} in time, {memory[0] / memory[1]:.1f} in memory",
                    flush=True,
                )
    return 0


def seconds_of(found: dict) -> float:
    return sum(found["parts"].values())


def memory_of(found: dict) -> float:
    return found["memory"]


def tiny(folder: Path) -> Path:
    from tests.tiny_student import make_tiny_student

    return make_tiny_student(folder)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    if sys.argv[1:2] == ["--side"]:
        one_side(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(main())
