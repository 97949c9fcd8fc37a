"""One training from its job file: the curve is the seed's, survives interruption, and bad input is explained."""

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.students import checkpoints
from srt_assets.core.training import data, job, keeper, launch, memory, model, rows, saved, stage, states, trainer
from srt_assets.core.training.plan import step_samples
from srt_assets.core.training.train import Stopped, train
from tests.training_data import Bench, make_bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("training") / "home")


def prepare(bench: Bench, work: Path, **changes) -> job.Job:
    arm = stage.active_arm(bench.settings, bench.lake, "tiny")
    info = checkpoints.get(bench.lake, "tiny")
    facts = {"generation": 1, "training_fingerprint": arm.fingerprint, "n_repeated": 0, "base": "tiny"}
    facts |= {"rows_by": arm.rows.counts, "policy": bench.settings.selection.model_dump()}
    made = job.make(
        bench.settings, info, work, run="r", arm=arm.name, data_hash=arm.rows.data_hash, steps=arm.steps, **facts
    )
    made = replace(made, **changes)
    arm.rows.move(made.rows_file)
    return made


def losses(task: job.Job) -> list[float]:
    place = task.final if task.final.exists() else task.directory
    return [json.loads(line)["loss"] for line in (place / job.CURVE).read_text().splitlines()]


def go(task: job.Job, stop_after: int = 0) -> list[str]:
    said: list[str] = []
    seen = [0]

    def listener(step: int, steps: int, facts: dict[str, float]) -> None:
        seen[0] = step

    train(task, listener, said.append, lambda: bool(stop_after) and seen[0] + 1 >= stop_after)
    return said


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> job.Job:
    """An uninterrupted training: what others are compared with."""
    task = prepare(bench, tmp_path_factory.mktemp("whole"))
    go(task)
    return task


def test_it_learns_and_leaves_a_checkpoint_that_loads(whole: job.Job) -> None:
    record = json.loads((whole.final / job.RECORD).read_text())
    assert record["eval_loss_after"] < record["eval_loss_before"]
    assert record["n_train"] + record["n_held_out"] == 16
    assert losses(whole)[-1] < losses(whole)[0]
    for fact in ("data_hash", "student_fingerprint", "seed", "versions", "learning_rate", "tokens_per_s", "window"):
        assert record[fact] is not None
    assert "work" not in record and str(whole.work) not in json.dumps(record)
    loaded = AutoModelForCausalLM.from_pretrained(whole.final)
    assert AutoTokenizer.from_pretrained(whole.final).eos_token == "</s>"
    assert (whole.final / "generation_config.json").exists() and loaded.config.use_cache
    card = (whole.final / "README.md").read_text()
    assert "inherits the licence" in card and f"{record['eval_loss_after']:.4f}" in card
    for said in (
        "| base | `tiny`",
        "| datasets | d: 14 |",
        "reflected_response: 14",
        "0.02, cosine",
        record["data_hash"][:16],
    ):
        assert said in card, said


def test_the_first_loss_is_the_students_own(bench: Bench, whole: job.Job) -> None:
    """The first step's loss is that of the unchanged student, one sample at a time, with stock labels."""
    student = AutoModelForCausalLM.from_pretrained(whole.student_path)
    tokenizer = AutoTokenizer.from_pretrained(whole.student_path)
    samples = data.load(whole, tokenizer, 256, 320).train
    total = n = 0.0
    for i in step_samples(len(samples), 4, 1, 0)[0]:
        ids = torch.from_numpy(samples[i].ids.astype(np.int64))[None]
        labels = ids.clone()
        labels[:, : samples[i].start] = -100
        total += student(input_ids=ids, labels=labels).loss.item() * samples[i].n_targets
        n += samples[i].n_targets
        assert samples[i].ids[-1] == tokenizer.eos_token_id
    assert losses(whole)[0] == pytest.approx(total / n, rel=1e-5)


@pytest.mark.slow
def test_the_seed_reproduces_the_curve(bench: Bench, whole: job.Job, tmp_path: Path) -> None:
    again = prepare(bench, tmp_path / "a")
    go(again)
    assert losses(again) == losses(whole)
    ours, theirs = (load_file(t.final / "model.safetensors") for t in (again, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    other = prepare(bench, tmp_path / "b", seed=1)
    go(other)
    assert losses(other) != losses(whole)


@pytest.mark.parametrize(("ratio", "warm"), [(0.03, 0), (0.25, 2)])
def test_the_rate_warms_up_and_falls_like_a_cosine(bench: Bench, tmp_path: Path, ratio: float, warm: int) -> None:
    task = prepare(bench, tmp_path, warmup_ratio=ratio)
    go(task)
    rates = [json.loads(line)["learning_rate"] for line in (task.final / job.CURVE).read_text().splitlines()]
    falling = [0.01 * (1 + math.cos(math.pi * (i - warm) / (8 - warm))) for i in range(warm, 8)]
    assert rates == pytest.approx([0.02 * i / warm for i in range(warm)] + falling, abs=1e-9)


def test_a_training_of_one_step_learns(bench: Bench, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path, steps=1)
    go(task)
    record = json.loads((task.final / job.RECORD).read_text())
    assert record["eval_loss_after"] < record["eval_loss_before"]


@pytest.mark.slow
def test_checkpointing_recomputes_the_layers(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    load = model.load_model

    def counted(task: job.Job):
        student = load(task)
        student.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_: calls.__setitem__(0, calls[0] + student.training)
        )
        return student

    monkeypatch.setattr(model, "load_model", counted)
    found = []
    for wish in ("never", "always"):
        calls[0] = 0
        go(prepare(bench, tmp_path / wish, gradient_checkpointing=wish, steps=2))
        found.append(calls[0])
    assert found[1] == 2 * found[0] > 0


@pytest.mark.slow
def test_packing_and_checkpointing_change_nothing_but_rounding(bench: Bench, whole: job.Job, tmp_path: Path) -> None:
    for i, changes in enumerate(({"token_budget": 1}, {"token_budget": 5000}, {"gradient_checkpointing": "always"})):
        task = prepare(bench, tmp_path / str(i), **changes)
        go(task)
        assert losses(task) == pytest.approx(losses(whole), rel=1e-4), changes


def test_a_stopped_training_continues_with_the_same_curve(bench: Bench, whole: job.Job, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path)
    with pytest.raises(Stopped):
        go(task, stop_after=3)
    assert not task.final.exists() and len(losses(task)) == 3
    said = go(task)
    assert any("continuing from step 3" in s for s in said)
    assert losses(task) == losses(whole)
    record, other = (json.loads((t.final / job.RECORD).read_text()) for t in (task, whole))
    assert record["eval_loss_after"] == other["eval_loss_after"]
    assert record["tokens"] == other["tokens"]


def test_a_state_saved_by_half_is_not_continued_from(bench: Bench, whole: job.Job, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path, save_every_s=0.0)
    with pytest.raises(Stopped):
        go(task, stop_after=4)
    (task.states / "checkpoint-4" / states.WHOLE).unlink()
    (task.states / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    with task.curve.open("a") as file:
        file.write('{"step": 5, "lo')  # died while writing this line
    assert any("continuing from step 3" in s for s in go(task))
    assert losses(task) == losses(whole)


def test_the_curve_is_on_the_disk_before_a_state_counts(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power that fails would else leave a state whose steps are in no curve, and nobody makes them again."""
    task = prepare(bench, tmp_path, save_every_s=0.0)
    synced: list[tuple[str, int, bool]] = []

    def sync(path: Path) -> None:
        whole = any(task.states.glob(f"checkpoint-2/{states.WHOLE}"))
        synced.append((path.name, len(task.curve.read_text().splitlines()), whole))

    monkeypatch.setattr(keeper, "sync", sync)
    with pytest.raises(Stopped):
        go(task, stop_after=2)
    assert (task.curve.name, 2, False) in synced


@pytest.mark.slow
def test_kill_nine_and_again(bench: Bench, tmp_path: Path) -> None:
    """A real process killed with -9 between two steps: the next one ends with the curve of an undisturbed one."""
    calm = prepare(bench, tmp_path / "calm", steps=30)
    go(calm)
    task = prepare(bench, tmp_path / "killed", steps=30, save_every_s=0.0)
    command = launch.command(task.write(), 1)
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while states.last_state(task.states) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not task.final.exists() and states.last_state(task.states)
    assert launch.plain(command, {"OMP_NUM_THREADS": "1"}) == 0
    assert losses(task) == pytest.approx(losses(calm), rel=1e-5)


def test_lora_trains_adapters_and_saves_one_merged_checkpoint(bench: Bench, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path, method="lora", learning_rate=0.05, lora=job.Lora(rank=4, alpha=8))
    go(task)
    record = json.loads((task.final / job.RECORD).read_text())
    assert record["eval_loss_after"] < record["eval_loss_before"]
    assert not (task.final / "adapter_config.json").exists()
    assert "LoRA of rank 4, alpha 8" in (task.final / "README.md").read_text()
    merged = AutoModelForCausalLM.from_pretrained(task.final)
    original = AutoModelForCausalLM.from_pretrained(task.student_path)
    assert merged.state_dict().keys() == original.state_dict().keys()
    assert torch.equal(merged.model.embed_tokens.weight, original.model.embed_tokens.weight)
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, original.model.layers[0].mlp.up_proj.weight)


@pytest.mark.slow
def test_lora_can_stay_apart_and_be_continued(bench: Bench, tmp_path: Path) -> None:
    options = {"method": "lora", "lora": job.Lora(rank=2, targets=("q_proj",), merge=False)}
    calm = prepare(bench, tmp_path / "calm", **options)
    go(calm)
    task = prepare(bench, tmp_path / "task", **options)
    with pytest.raises(Stopped):
        go(task, stop_after=3)
    go(task)
    assert losses(task) == losses(calm)
    assert (task.final / "adapter_config.json").exists() and not (task.final / "model.safetensors").exists()


def test_lora_targets_that_do_not_exist(bench: Bench, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path, method="lora", lora=job.Lora(targets=("c_attn",)))
    with pytest.raises(UserError, match=r"no layer named c_attn[\s\S]*q_proj"):
        go(task)
    # A norm exists, but nothing can be adapted in it.
    with pytest.raises(UserError, match="no layer named norm"):
        go(replace(task, lora=job.Lora(targets=("norm",))))


def test_adapters_for_layers_that_are_no_linear_ones(whole: job.Job) -> None:
    def gpt2():
        return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2))

    adapted = model.add_adapters(gpt2(), replace(whole, lora=job.Lora(targets=("c_attn",))))
    assert any(p.requires_grad for p in adapted.parameters())
    with pytest.raises(UserError, match="c_attn, c_fc, c_proj"):
        model.add_adapters(gpt2(), replace(whole, lora=job.Lora(targets=("q_proj",))))


def test_a_sample_longer_than_the_window_is_left_out_and_counted(bench: Bench, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path / "some", max_length=175)
    go(task)
    record = json.loads((task.final / job.RECORD).read_text())
    assert record["left_out"]["too_long"] > 0
    assert record["n_train"] + record["n_held_out"] + sum(record["left_out"].values()) == 16
    with pytest.raises(UserError, match="no training sample is left within 60 tokens"):
        go(prepare(bench, tmp_path / "all", max_length=60))


def edit_tokenizer(bench: Bench, directory: Path, **tokens: str | None) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.get(bench.lake, "tiny").path)
    for name, value in tokens.items():
        setattr(tokenizer, name, value)
    AutoModelForCausalLM.from_pretrained(checkpoints.get(bench.lake, "tiny").path).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_student_without_pad_token_trains_as_any_other(bench: Bench, whole: job.Job, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student", pad_token=None)
    task = prepare(bench, tmp_path / "work", student_path=str(student))
    go(task)
    assert losses(task) == losses(whole)


def test_a_student_without_eos_token_is_refused(bench: Bench, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student", eos_token=None)
    with pytest.raises(UserError, match="no EOS token"):
        go(prepare(bench, tmp_path / "work", student_path=str(student)))


def test_tokens_the_student_has_no_embedding_for(bench: Bench, tmp_path: Path) -> None:
    """A chat format was added to the tokenizer, and the model was not resized."""
    student = edit_tokenizer(bench, tmp_path / "eos", eos_token="<|im_end|>")
    with pytest.raises(UserError, match=r"EOS token '<\|im_end\|>' has id 320, but .* 320 tokens only"):
        go(prepare(bench, tmp_path / "refused", student_path=str(student)))
    student = edit_tokenizer(bench, tmp_path / "word")
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.add_tokens(["bread"])
    tokenizer.save_pretrained(student)
    task = prepare(bench, tmp_path / "work", student_path=str(student))
    go(task)
    record = json.loads((task.final / job.RECORD).read_text())
    assert record["left_out"]["out_of_vocabulary"] > 0
    assert record["n_train"] + record["n_held_out"] + sum(record["left_out"].values()) == 16


def test_a_loss_that_is_no_number_stops_and_names_the_batch(bench: Bench, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student")
    weights = load_file(student / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38  # a number, and its double is none
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"the loss became nan in step 1 \(samples [0-9a-f]{16}") as error:
        go(prepare(bench, tmp_path / "broken", student_path=str(student)))
    assert "learning_rate" in error.value.remedy


def test_one_bad_sample_is_named_and_what_was_good_is_continued(
    bench: Bench, whole: job.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepare(bench, tmp_path, token_budget=1)
    samples = data.load(task, AutoTokenizer.from_pretrained(task.student_path), 256, 320).train
    bad = samples[step_samples(len(samples), 4, 3, 0)[2][1]]
    true_loss = trainer.summed_loss

    def poisoned(student, row):
        is_bad = row.ids[0].tolist() == bad.ids.tolist()
        return true_loss(student, row) * (float("nan") if is_bad else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "summed_loss", poisoned)
        with pytest.raises(StageError, match=rf"the loss became nan in step 3 \(samples {bad.sample_id}\)"):
            go(task)
    state = states.last_state(task.states)
    assert state is not None and state.name == "checkpoint-2" and not task.final.exists()
    assert all(torch.isfinite(w).all() for w in load_file(state / "model.safetensors").values())
    go(task)
    assert losses(task) == pytest.approx(losses(whole), rel=1e-4)


def test_a_gradient_that_explodes_does_not_reach_the_weights(
    bench: Bench, whole: job.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepare(bench, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_get_grad_norm", lambda self, *_, **__: torch.tensor(float("inf")))
        with pytest.raises(StageError, match=r"the gradient's norm became inf in step 1 \(samples"):
            go(task)
    go(task)
    assert losses(task) == losses(whole)


def test_a_rate_that_is_far_too_high_stops(bench: Bench, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path, learning_rate=1e38)
    with pytest.raises(StageError, match=r"in step \d+ \(samples"):
        go(task)
    assert not task.final.exists() and states.last_state(task.states)


def test_too_little_memory_is_said_before_the_first_step(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    task = prepare(bench, tmp_path)
    with pytest.raises(UserError, match=r"training needs at least .* GB of memory"):
        go(task)
    assert not task.curve.exists()


def test_files_in_the_cache_are_no_used_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a student of 14 GB leaves 14 GB of cache behind, which the container's count calls used."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    for name, text in (
        ("memory.max", "1000000"),
        ("memory.current", "900000"),
        ("memory.stat", "anon 100000\nfile 800000\ninactive_file 500000\nactive_file 200000"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.available(torch.device("cpu")) == 800_000
    (tmp_path / "memory.max").write_text("max")
    assert memory.available(torch.device("cpu")) > 1_000_000


def test_checkpointing_is_turned_on_when_only_that_fits() -> None:
    need = memory.Need(state=100, row=1000, row_checkpointed=50)
    assert not memory.choose_checkpointing(need, 2000, "auto", 0)
    assert memory.choose_checkpointing(need, 200, "auto", 0)
    with pytest.raises(UserError):
        memory.choose_checkpointing(need, 200, "never", 0)


def test_the_stated_need_is_near_what_adam_holds(bench: Bench) -> None:
    student = AutoModelForCausalLM.from_pretrained(checkpoints.get(bench.lake, "tiny").path)
    need = memory.estimate(student, 10, 5, 4)
    assert need.state == 16 * sum(p.numel() for p in student.parameters())


def test_devices_and_precisions_that_are_not_there(bench: Bench, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees none"):
            go(prepare(bench, tmp_path / "a", device="cuda:0"))
    with pytest.raises(UserError, match="fp16 training needs a GPU"):
        go(prepare(bench, tmp_path / "b", dtype="fp16"))


def test_sharding_that_cannot_be(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs several processes"):
        go(prepare(bench, tmp_path, sharding="always"))


def test_more_processes_than_gpus(whole: job.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model.check_processes(replace(whole, processes=2), torch.device("cuda"))
    with pytest.raises(UserError, match=r"processes is 3, but torch sees 2 GPU"):
        model.check_processes(replace(whole, processes=3), torch.device("cuda"))


def test_states_saved_by_half_are_deleted_before_they_push_out_a_whole_one(tmp_path: Path) -> None:
    for name in ("checkpoint-2", "checkpoint-9"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-2" / states.WHOLE).touch()
    states.drop_torn_states(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


def test_peak_memory_is_this_processes_own() -> None:
    assert memory.peak_bytes(torch.device("cpu")) >= psutil.Process().memory_info().rss // 2


def test_bf16_on_a_cpu_learns_the_same_within_its_precision(bench: Bench, whole: job.Job, tmp_path: Path) -> None:
    task = prepare(bench, tmp_path, dtype="bf16")
    go(task)
    assert losses(task)[:3] == pytest.approx(losses(whole)[:3], rel=2e-2)


def test_a_half_precision_student_stays_one_and_ties_stay_tied(bench: Bench, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student")
    AutoModelForCausalLM.from_pretrained(student).to(torch.bfloat16).save_pretrained(student)
    task = prepare(bench, tmp_path / "work", student_path=str(student), steps=1)
    go(task)
    before, after = (load_file(d / "model.safetensors") for d in (student, task.final))
    assert after.keys() == before.keys() and "lm_head.weight" not in after
    assert {w.dtype for w in after.values()} == {torch.bfloat16}


def test_rows_are_those_of_the_split(bench: Bench, whole: job.Job) -> None:
    arm = stage.active_arm(bench.settings, bench.lake, "tiny")
    ids: dict[str, set[str]] = {}
    for row in pq.read_table(arm.rows.path).to_pylist():
        ids.setdefault(row["split"], set()).add(row["sample_id"])
    assert ids[rows.HELD_OUT] and not ids[rows.TRAIN] & ids[rows.HELD_OUT]
    assert ids[rows.HELD_OUT_ORIGINAL] == ids[rows.HELD_OUT]
    assert arm.rows.sizes == {split: len(found) for split, found in ids.items()}
    assert saved.stored_dtype(whole.student_path) == torch.float32


def test_a_generation_config_that_cannot_be_saved_is_found_before_training(bench: Bench, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student")
    (student / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "do_sample": false}')
    task = prepare(bench, tmp_path / "work", student_path=str(student))
    go(task)
    assert json.loads((task.final / "generation_config.json").read_text())["do_sample"] is True
