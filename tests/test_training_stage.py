"""The stage: what is trained, once; where it ends up; what an unfinished or a failed training leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from srt_assets.commands.show import students
from srt_assets.core import untouched
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.students import checkpoints
from srt_assets.core.training import finished, job, launch, results, stage, states
from srt_assets.core.training import main as training_process
from srt_assets.core.training.main import main
from srt_assets.settings import Training
from tests.background import IN_BACKGROUND
from tests.tiny_student import make_tiny_student
from tests.training_data import Bench, in_process, make_bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path / "home")


def run(bench: Bench, **options):
    return stage.STAGE.run(bench.settings, bench.lake, "tiny", **{"launch": in_process, **options})


def never(command, env) -> int:
    raise AssertionError("nothing was to be trained")


def query(bench: Bench, sql: str) -> list[tuple]:
    con = bench.lake.connect()
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def test_a_training_is_committed_described_and_not_repeated(bench: Bench) -> None:
    heard = []
    outcome = run(bench, progress=lambda done, total, unit, **facts: heard.append((done, total, unit, facts)))
    assert not outcome.cached and outcome.stats["steps"] == 8
    assert heard[0][:3] == (0, 8, "steps") and heard[-1][:3] == (8, 8, "steps")
    assert {"loss", "tokens_per_s", "eta_s"} <= heard[-1][3].keys()
    assert query(bench, "SELECT count(*), min(step), max(step) FROM training_steps") == [(8, 1, 8)]
    ((path, n_train, n_held, before, after),) = query(
        bench, "SELECT path, n_train, n_held_out, eval_loss_before, eval_loss_after FROM training_runs"
    )
    assert n_train + n_held == 16 and after < before
    assert Path(path).parent == bench.lake.home / "checkpoints" / "tiny"
    assert not list((bench.lake.home / "training").rglob("*.safetensors"))
    (made,) = finished.all_of(bench.lake, "tiny")
    assert made.record["policy"]["policy"] == "selective" and made.record["rows_by"]["dataset"] == {"d": n_train}
    assert (made.record["parent"], made.record["generation"], made.record["seed"]) == ("tiny", 1, 0)
    assert made.record["student_fingerprint"] == checkpoints.get(bench.lake, "tiny").fingerprint
    numbers = results.describe(bench.lake, "tiny").numbers
    assert numbers["eval_loss_after"] == after
    assert len(results.curve(bench.lake, "tiny")["selective"]) == 8
    assert run(bench, launch=never).cached
    assert outcome.manifest.fingerprint == stage.STAGE.wanted(bench.settings, bench.lake, "tiny").digest


def test_the_split_never_trains(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    seen: dict[str, set[str]] = {}

    def look(command, env) -> int:
        for row in pq.read_table(job.Job.read(Path(command[-2])).rows_file).to_pylist():
            seen.setdefault(row["split"], set()).add(row["sample_id"])
        return in_process(command, env)

    run(bench, launch=look)
    assert seen["held_out"] and not seen["train"] & seen["held_out"]
    # The same records are held out after the selection has changed.
    before = seen.pop("held_out")
    seen.clear()
    bench.select(12)
    run(bench, launch=look)
    assert seen["held_out"] <= before


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.01},
        {"epochs": 1},
        {"held_out": 0.4},
        {"weight_decay": 0.1},
        {"method": "lora"},
        {"method": "lora", "lora_rank": 2},
    ],
)
def test_settings_that_matter_are_wanted_anew(bench: Bench, change: dict) -> None:
    before = stage.STAGE.wanted(bench.settings, bench.lake, "tiny")
    assert stage.STAGE.wanted(bench.with_training(**change).settings, bench.lake, "tiny") != before


@pytest.mark.parametrize(
    "change", [{"processes": 2}, {"keep_last": 1}, {"lora_rank": 2}, {"gradient_checkpointing": "always"}]
)
def test_settings_that_do_not_matter_are_not(bench: Bench, change: dict) -> None:
    before = stage.STAGE.wanted(bench.settings, bench.lake, "tiny")
    assert stage.STAGE.wanted(bench.with_training(**change).settings, bench.lake, "tiny") == before


def test_the_job_carries_the_settings(bench: Bench, tmp_path: Path) -> None:
    bench.with_training(
        method="lora",
        lora_rank=2,
        lora_alpha=3,
        lora_dropout=0.1,
        lora_targets=("q_proj",),
        lora_merge=False,
        gradient_checkpointing="always",
        sharding="never",
    )
    info = checkpoints.get(bench.lake, "tiny")
    made = job.make(bench.settings, info, tmp_path, run="r", arm="a", data_hash="", steps=1)
    assert made.lora == job.Lora(rank=2, alpha=3, dropout=0.1, targets=("q_proj",), merge=False)
    assert (made.gradient_checkpointing, made.sharding) == ("always", "never")
    assert job.Job.read(made.write()) == made


def test_the_papers_hyper_parameters_are_the_defaults() -> None:
    t = Training()
    assert (t.learning_rate, t.batch_size, t.epochs, t.max_length) == (2e-5, 128, 3, 2048)
    assert (t.warmup_ratio, t.weight_decay, t.method) == (0.03, 0.0, "full")


def test_new_weights_that_chose_the_same_rows_train_again(bench: Bench, tmp_path: Path) -> None:
    before = stage.STAGE.wanted(bench.settings, bench.lake, "tiny")
    make_tiny_student(tmp_path / "source", seed=5)
    checkpoints.add(bench.settings, bench.lake, str(tmp_path / "source"), name="tiny")
    assert stage.STAGE.wanted(bench.settings, bench.lake, "tiny") != before


@pytest.mark.slow
def test_settings_that_come_back_find_their_checkpoint(bench: Bench) -> None:
    run(bench)
    first = query(bench, "SELECT path FROM training_runs")
    weights = (Path(first[0][0]) / "model.safetensors").read_bytes()
    run(bench.with_training(learning_rate=0.01))
    assert query(bench, "SELECT path FROM training_runs") != first
    assert (Path(first[0][0]) / "model.safetensors").read_bytes() == weights, "an older checkpoint was written over"
    assert not run(bench.with_training(learning_rate=0.02), launch=never).cached
    assert query(bench, "SELECT path FROM training_runs") == first


@pytest.mark.slow
def test_a_deleted_checkpoint_is_made_again(bench: Bench) -> None:
    run(bench)
    import shutil

    shutil.rmtree(finished.directory(bench.lake, "tiny"))
    assert not run(bench).cached


@pytest.mark.slow
def test_only_the_newest_are_kept_and_never_one_that_is_a_student(bench: Bench) -> None:
    bench.with_training(keep_last=1)
    run(bench)
    ((first,),) = query(bench, "SELECT path FROM training_runs")
    checkpoints.add(bench.settings, bench.lake, first, name="second")
    outcomes = [run(bench.with_training(learning_rate=rate)) for rate in (0.01, 0.005)]
    assert [o.stats["checkpoints_removed"] for o in outcomes] == [0, 1]
    left = [f.path for f in finished.all_of(bench.lake, "tiny")]
    assert Path(first) in left and len(left) == 2


def test_the_next_round_starts_from_the_result(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    run(bench)
    ((path,),) = query(bench, "SELECT path FROM training_runs")
    added = checkpoints.add(bench.settings, bench.lake, path, name="tiny-1")
    assert (added.parent, added.generation) == ("tiny", 1)
    assert added.fingerprint != checkpoints.get(bench.lake, "tiny").fingerprint
    AutoModelForCausalLM.from_pretrained(added.path)
    (added.path / "model.safetensors").unlink()
    capsys.readouterr()
    students(bench.lake)
    listed = capsys.readouterr().out
    # Before any run, and one that has lost its weights beside one that is whole.
    assert "tiny-1" in listed and "no weights" in " ".join(listed.split()) and "Llama, " in listed


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows(bench: Bench, n: int) -> None:
    bench.select(n)
    with pytest.raises(UserError, match=rf"has {n} row\(s\); training needs at least 2"):
        run(bench, launch=never)


def test_no_selection_yet(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "home")
    (bench.lake.directory("selected_set", "student=tiny") / "_manifest.json").unlink()
    with pytest.raises(UserError, match="no finished selected_set"):
        stage.STAGE.wanted(bench.settings, bench.lake, "tiny")


def test_a_refusal_of_the_training_process_arrives_with_its_remedy(bench: Bench) -> None:
    bench.with_training(max_length=40)
    with pytest.raises(UserError, match=r"no training sample is left[\s\S]*training.max_length"):
        run(bench)
    assert not finished.all_of(bench.lake, "tiny")


def test_a_process_that_just_dies(bench: Bench) -> None:
    with pytest.raises(StageError, match=r"killed by signal 9 .*too little memory"):
        run(bench, launch=lambda command, env: -9)
    run(bench)


def test_interrupted_after_the_training_before_the_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "parts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(bench)
    assert not run(bench, launch=never).cached
    assert query(bench, "SELECT count(*) FROM training_runs") == [(1,)]


def test_a_finished_training_that_was_not_moved_yet_is_moved(bench: Bench) -> None:
    def die_after(command, env) -> int:
        in_process(command, env)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench, launch=die_after)
    run(bench, launch=lambda command, env: 0 if job.Job.read(Path(command[-2])).final.exists() else 1)
    assert len(results.curve(bench.lake, "tiny")["selective"]) == 8


@pytest.mark.slow
def test_arms_take_equal_steps_and_are_measured_on_the_same_records(bench: Bench) -> None:
    outcome = run(bench.with_training(arms=("selective", "original", "reflected_all")))
    assert outcome.stats["trainings"] == 3
    rows = query(
        bench,
        "SELECT arm, is_active_policy, steps, n_held_out, eval_loss_before, eval_loss_after, "
        "eval_original_loss_after FROM training_runs ORDER BY is_active_policy DESC, arm",
    )
    assert [r[:2] for r in rows] == [("selective", True), ("original", False), ("reflected_all", False)]
    assert len({r[2:5] for r in rows}) == 1, "arms differ in steps, held-out records or starting point"
    assert len({r[5] for r in rows}) == 3
    # The arm that learned from the original texts knows them best.
    originals = {r[0]: r[6] for r in rows}
    assert originals["original"] == min(originals.values())
    assert run(bench, launch=never).cached


@pytest.mark.slow
def test_comparing_later_does_not_train_the_active_policy_again(bench: Bench) -> None:
    run(bench)
    started = []

    def count(command, env) -> int:
        started.append(job.Job.read(Path(command[-2])).arm)
        return in_process(command, env)

    run(bench.with_training(arms=("original",)), launch=count)
    assert started == ["original"]


def test_an_arm_without_rows(bench: Bench) -> None:
    with pytest.raises(UserError, match="'longest' keeps no row"):
        run(bench.with_training(arms=("longest",)), launch=never)


def settings_file(bench: Bench, folder: Path, more: str = "epochs = 2") -> Path:
    t = bench.settings.training
    file = folder / "srt.toml"
    file.write_text(
        f'[project]\nhome = "{bench.lake.home}"\n[student]\nmax_length = 256\ntoken_budget = 256\ndevices = "cpu"\n'
        f"[training]\nbatch_size = {t.batch_size}\n{more}\nlearning_rate = {t.learning_rate}\n"
        f"max_length = 256\nheld_out = {t.held_out}\n"
    )
    return file


@pytest.mark.slow
def test_on_its_own_in_a_real_process(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m srt_assets.core.training.main --student` with a settings file: no Dagster anywhere."""
    file = settings_file(bench, tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["--student", "tiny", "--settings", str(file)]) == 0
    assert "8/8 steps" in capfd.readouterr().out
    assert main(["--student", "nobody", "--settings", str(file)]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("before", [(), IN_BACKGROUND], ids=["", "in the background"])
def test_ctrl_c_reaches_the_training_which_saves_its_state(bench: Bench, tmp_path: Path, before: Sequence[str]) -> None:
    file = settings_file(bench, tmp_path, "max_steps = 2000")
    command = [*before, sys.executable, "-m", launch.MODULE, "--student", "tiny", "--settings", str(file)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as by_hand:
        while not (found := list((bench.lake.home / "training").glob("tiny/*/live.json"))):
            assert by_hand.poll() is None
            time.sleep(0.01)
        by_hand.send_signal(signal.SIGINT)
        try:
            _, said = by_hand.communicate(timeout=120)
        finally:
            by_hand.kill()
    assert by_hand.returncode == 130 and "stopped; the next run continues" in said
    work = found[0].parent
    done = len((work / job.CURVE).read_text().splitlines())
    state = states.last_state(work / "states")
    assert 0 < done < 2000 and state is not None and state.name == f"checkpoint-{done}"


def test_a_job_by_hand_says_what_is_wrong(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing.json")]) == 2
    assert "there is no job file" in capsys.readouterr().err
    rows = stage.active_arm(bench.settings, bench.lake, "tiny").rows
    info = checkpoints.get(bench.lake, "tiny")
    task = job.make(bench.settings, info, tmp_path, run="r", arm="selective", data_hash="h", steps=0)
    rows.move(task.rows_file)
    assert main([str(replace(task, device="cuda").write())]) == 2
    assert "student.devices names a GPU" in capsys.readouterr().err


def test_one_request_to_stop_may_arrive_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with training_process._Stop() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked()
        monkeypatch.setattr(training_process, "PATIENCE_S", -1.0)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("devices", "outer", "seen"),
    [
        ("auto", None, None),
        ("cpu,cpu", None, None),
        ("cuda:1", None, "1"),
        ("cuda:0,cuda:1", "4,6", "4,6"),
        ("cuda:1", "4,6", "6"),
    ],
)
def test_the_process_sees_the_gpus_that_are_named(devices: str, outer: str | None, seen: str | None) -> None:
    found = launch.visible(devices, {"CUDA_VISIBLE_DEVICES": outer} if outer else {})
    assert found == ({"CUDA_VISIBLE_DEVICES": seen} if seen else {})


def test_a_gpu_that_is_hidden() -> None:
    with pytest.raises(UserError, match=r"cuda:2, but CUDA_VISIBLE_DEVICES shows 1"):
        launch.visible("cuda:2", {"CUDA_VISIBLE_DEVICES": "0"})


def test_commands(tmp_path: Path) -> None:
    alone = launch.command(tmp_path / "job.json", 1)
    assert alone[1:4] == ["-P", "-m", "srt_assets.core.training.main"]
    two = launch.command(tmp_path / "job.json", 2)
    assert "accelerate.commands.launch" in two and two[two.index("--num_processes") + 1] == "2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "no space left on the disk"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "ran out of memory"),
    ],
)
def test_disk_and_memory_that_run_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    from srt_assets.core.training import saved

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(saved, "save", fail)
        with pytest.raises(StageError, match=f"{said}[\\s\\S]*continues from"):
            run(bench)
    run(bench)


def test_abandoned_states_go_and_recent_ones_stay(bench: Bench) -> None:
    for name, age in (("old", 2 * finished.ABANDONED_S), ("new", 10.0)):
        task = bench.lake.home / "training" / "tiny" / name / "job.json"
        task.parent.mkdir(parents=True)
        task.write_text("{}")
        then = task.stat().st_mtime - age
        os.utime(task, (then, then))
    # One look is not believed, for the clock may have been wrong. This one has looked yesterday.
    looks = bench.lake.home / "training" / "tiny" / finished.LOOKS
    at, yesterday = (looks.parent / "old" / "job.json").stat().st_mtime, time.time() - untouched.AGAIN_S
    looks.write_text(json.dumps({"old": [at, yesterday]}))
    run(bench)
    assert [p.name for p in (bench.lake.home / "training" / "tiny").glob("[!.]*")] == ["new"]
