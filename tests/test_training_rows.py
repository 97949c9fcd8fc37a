"""Rows of a training: DuckDB writes what older programs made in Python, and samples are read from files by number."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import content_key, digest
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.students import checkpoints
from srt_assets.core.students.loading import load_tokenizer
from srt_assets.core.training import data, job, rows, samples, stage
from tests.tiny_student import make_tiny_tokenizer
from tests.training_data import Bench, candidates, make_bench

TEXTS = ("instruction", "input", "response")
ODD = ['"quoted" \\ and\nbroken', "nul \x00, unit \x1f, delete \x7f", "é 雨 😀 \u2028 \ufeff", "  spaces  ", "</s><s>"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Forty records, some with odd texts, a dozen with the texts of others."""
    made = make_bench(tmp_path_factory.mktemp("rows") / "home", 40)
    kept = [r for r in candidates(40) if r["candidate"] == "reflected_response"]
    for i, row in enumerate(kept):
        if i % 3 == 0:
            row |= {text: kept[(i * 7 + 1) % 40][text] for text in TEXTS}
        if i % 4 == 0:
            row["response"] = ODD[i // 4 % len(ODD)]
        row["content_key"] = "not looked at"
    made._put("selected_set", [{**r, "student": "tiny", "position": i} for i, r in enumerate(kept)], "student=tiny")
    return made


def in_python(bench: Bench, chosen: list[dict], share: float, seed: int, held: list[dict] | None = None):
    """As older programs did it: rows in order, and how many were left out as copies."""
    con = bench.lake.connect()
    originals = con.sql("FROM candidates WHERE candidate = 'original' AND status = 'ok' ORDER BY sample_id").df()
    con.close()
    chosen = sorted(chosen, key=lambda r: r["sample_id"])
    if held is None:
        hashes = ((hashlib.sha256(f"{seed}:{r['sample_id']}".encode()).digest(), r["sample_id"]) for r in chosen)
        ranked = sorted((int.from_bytes(hash[:8]) / 2**64, i) for hash, i in hashes)
        ids = {i for place, i in ranked if place < share} or {i for _, i in ranked[: share > 0]}
        held = [r for r in chosen if r["sample_id"] in ids]
    ids, seen = {r["sample_id"] for r in held}, {tuple(r[t] for t in TEXTS) for r in held}
    learned = [r for r in chosen if r["sample_id"] not in ids]
    kept = [r for r in learned if tuple(r[t] for t in TEXTS) not in seen]
    first = [r for r in originals.to_dict("records") if r["sample_id"] in ids]
    found = [
        *((r, "train") for r in kept),
        *((r, "held_out") for r in held),
        *((r, "held_out_original") for r in first),
    ]
    return [{**r, "split": split} for r, split in found], len(learned) - len(kept)


def of_table(bench: Bench, query: str) -> list[dict]:
    con = bench.lake.connect()
    try:
        return con.sql(query).df().to_dict("records")
    finally:
        con.close()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_rows_and_their_hash_are_those_of_older_programs(bench: Bench, share: float) -> None:
    """Another order or another hash would be another training: none may run again for this."""
    chosen = of_table(bench, "FROM selected_set")
    expected, repeated = in_python(bench, chosen, share, seed=3)
    found = rows.active(bench.lake, "tiny", share, seed=3)
    written = pq.read_table(found.path).to_pylist()
    columns = ("sample_id", "dataset", "candidate", *TEXTS, "split")
    assert [{c: r[c] for c in columns} for r in written] == [{c: r[c] for c in columns} for r in expected]
    keys = sorted([r["sample_id"], r["split"], content_key(*(r[t] for t in TEXTS))] for r in expected)
    assert found.data_hash == digest(rows=keys)
    assert found.n_repeated == repeated
    assert found.counts == {
        "dataset": {"d": found.sizes["train"]},
        "candidate": {"reflected_response": found.sizes["train"]},
    }
    if share == 0.3:
        assert repeated > 0 and found.sizes["held_out"] == found.sizes["held_out_original"] > 5


def test_rows_of_another_policy_are_too(bench: Bench) -> None:
    active = rows.active(bench.lake, "tiny", 0.3, seed=3)
    held = [r for r in of_table(bench, "FROM selected_set ORDER BY sample_id") if r["sample_id"] in held_ids(active)]
    kept = of_table(bench, "FROM candidates WHERE candidate = 'original'")
    expected, repeated = in_python(bench, kept, 0.3, 3, held)
    found = rows.of_policy(bench.lake, "tiny", "original", active)
    written = pq.read_table(found.path).to_pylist()
    assert [(r["sample_id"], r["split"], r["response"]) for r in written] == [
        (r["sample_id"], r["split"], r["response"]) for r in expected
    ]
    keys = sorted([r["sample_id"], r["split"], content_key(*(r[t] for t in TEXTS))] for r in expected)
    assert (found.data_hash, found.n_repeated) == (digest(rows=keys), repeated)


def held_ids(found: rows.Rows) -> set[str]:
    return {r["sample_id"] for r in pq.read_table(found.path).to_pylist() if r["split"] == "held_out"}


def test_the_file_goes_with_its_rows_or_where_it_is_needed(bench: Bench, tmp_path: Path) -> None:
    found = rows.active(bench.lake, "tiny", 0.3, 3)
    found.move(tmp_path / "a" / "rows.parquet")
    assert pq.read_table(tmp_path / "a" / "rows.parquet").num_rows == sum(found.sizes.values())
    place = rows.active(bench.lake, "tiny", 0.3, 3).path
    del found
    assert not place.exists() and not list((bench.lake.home / "tmp").glob("*@*"))


@pytest.fixture
def task(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> job.Job:
    monkeypatch.setattr(rows, "AT_ONCE", 4)
    arm = stage.active_arm(bench.settings, bench.lake, "tiny")
    info = checkpoints.get(bench.lake, "tiny")
    made = job.make(bench.settings, info, tmp_path / "work", run="r", arm="a", data_hash="", steps=1)
    arm.rows.move(made.rows_file)
    return made


def test_samples_are_read_by_number_as_they_were_encoded(task: job.Job) -> None:
    tokenizer = load_tokenizer(task.student_path)
    loaded = data.load(task, tokenizer, 175, 320)
    table = pq.read_table(task.rows_file).to_pylist()
    encoder = Encoder(tokenizer, task.template, task.protocol, 175)
    encoded = encoder.for_training([Texts(*(r[t] for t in TEXTS)) for r in table], 175)
    for name, found in (
        ("train", loaded.train), ("held_out", loaded.held_out), ("held_out_original", loaded.held_out_original)
    ):  # fmt: skip
        expected = [
            (r["sample_id"], p)
            for r, p in zip(table, encoded, strict=True)
            if r["split"] == name and isinstance(p, Pass) and not p.truncated
        ]
        assert [one.sample_id for one in found] == [i for i, _ in expected]
        assert all(
            np.array_equal(one.ids, p.ids) and one.start == p.start for one, (_, p) in zip(found, expected, strict=True)
        )
        assert found.lengths.tolist() == [len(p.ids) for _, p in expected]
        assert found.n_targets.tolist() == [p.n_scored for _, p in expected]
        assert found[-1].sample_id == expected[-1][0] and len(found[:2]) == 2
    left = sum(
        isinstance(p, Pass) and p.truncated
        for r, p in zip(table, encoded, strict=True)
        if r["split"] != "held_out_original"
    )
    assert 0 < loaded.left_out["too_long"] == left
    with pytest.raises(IndexError):
        loaded.train[len(loaded.train)]


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_processes_share_the_encoding_and_read_the_same(task: job.Job, processes: int) -> None:
    tokenizer = load_tokenizer(task.student_path)
    alone = data.load(task, tokenizer, 175, 320)

    def others() -> None:
        for rank in range(1, processes):
            with pytest.raises(InterruptedError):  # as if it waited for us
                data.load(task, tokenizer, 175, 320, rank, processes, interrupt)

    def interrupt() -> None:
        raise InterruptedError

    together = data.load(task, tokenizer, 175, 320, 0, processes, others)
    # What the first load has mapped is still there, though its file was written anew.
    for one, two in ((alone.train, together.train), (alone.held_out, together.held_out)):
        assert [(e.sample_id, e.ids.tolist(), e.start) for e in one] == [
            (e.sample_id, e.ids.tolist(), e.start) for e in two
        ]
    assert together.left_out == alone.left_out


def test_encoding_can_be_stopped(task: job.Job) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.load(task, load_tokenizer(task.student_path), 175, 320, each=stop)
    assert not list((task.directory / data.SAMPLES).glob("*.arrow"))


def test_rows_without_a_sample(task: job.Job) -> None:
    with pytest.raises(UserError, match=r"no training sample is left within 9 tokens \(.*\d+ "):
        data.load(task, load_tokenizer(task.student_path), 9, 320)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
    ("template", "protocol"), [("vicuna", "aligned"), ("chat", "aligned"), ("none", "aligned"), ("alpaca", "official")]
)
@pytest.mark.parametrize("window", [30, 60, 300])
def test_training_encodes_the_pass_that_scoring_does(bos: bool, template: str, protocol: str, window: int) -> None:
    """It makes that pass alone: the other three would cost as much again, and more."""
    encoder = Encoder(make_tiny_tokenizer(bos), template, protocol, window)
    encoder.dropped = 0
    texts = [Texts(f"Say {odd}", "" if i % 2 else "input", odd[:i]) for odd in ODD for i in range(6)]
    texts.append(Texts("a lone \ud800", "", "b"))
    scored = [one["response_given_prompt"] for one in encoder.encode(texts)]
    for one, two in zip(scored, encoder.for_training(texts, window), strict=True):
        if isinstance(one, str) or isinstance(two, str):
            assert one == two
        elif one.truncated:
            assert (one.key, two.truncated) == (two.key, True)
        else:
            whole = [*one.ids, *encoder.end]
            assert two.ids.tolist() == whole[:window] and two.start == one.start
            assert two.truncated == (len(whole) > window) and two.ids.dtype == np.int32


def test_no_samples_at_all(tmp_path: Path) -> None:
    samples.write(tmp_path / "0.arrow", [])
    files = samples.Files([tmp_path / "0.arrow"])
    assert len(files.of("train")) == 0 and files.left_out(("train",)) == {} and not list(files.of("train"))
