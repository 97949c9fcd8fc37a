"""What was measured is what is saved: the losses of the record are those of the files on disk, or a check is red."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.training import data, finished, job, model, results, saved, stage
from srt_assets.core.training.packed import Example, mean_loss
from tests.test_training_run import edit_tokenizer, go, prepare
from tests.tiny_student import make_tiny_student
from tests.training_data import Bench, in_process, make_bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("saved") / "home")


def record_of(task: job.Job) -> dict:
    return json.loads((task.final / job.RECORD).read_text())


def loss_on_disk(task: job.Job, rows: str = "held_out") -> float:
    """One sample at a time, with the model as transformers or peft loads it."""
    if (task.final / "adapter_config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(task.student_path, dtype="auto")
        model = PeftModel.from_pretrained(base, str(task.final))
    else:
        model = AutoModelForCausalLM.from_pretrained(task.final, dtype="auto")
    samples = list(getattr(data.load(task, AutoTokenizer.from_pretrained(task.student_path), 256, 320), rows))
    return mean_loss(model, samples[: saved.FEW], 1)


def half_precision(bench: Bench, directory: Path) -> str:
    edit_tokenizer(bench, directory)
    AutoModelForCausalLM.from_pretrained(directory).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)


LORA = {"method": "lora", "learning_rate": 0.05}
WAYS = {
    "all weights": {},
    "merged": {**LORA, "lora": job.Lora(rank=4)},
    "apart": {**LORA, "lora": job.Lora(rank=4, merge=False)},
    "apart on tied embeddings": {**LORA, "lora": job.Lora(rank=4, targets=("embed_tokens", "lm_head"), merge=False)},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_the_losses_after_training_are_those_of_the_files(
    bench: Bench, tmp_path: Path, way: str, precision: str
) -> None:
    changes = WAYS[way]
    if precision == "bf16":
        changes = {**changes, "student_path": half_precision(bench, tmp_path / "student")}
    task = prepare(bench, tmp_path / "work", **changes)
    go(task)
    record = record_of(task)
    assert record["saved_dtype"] == precision
    assert record["eval_loss_after"] < record["eval_loss_before"]
    # Packed or alone: the same but for the rounding of that precision.
    near = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    assert record["eval_loss_after"] == pytest.approx(loss_on_disk(task), abs=near)
    assert record["eval_original_loss_after"] == pytest.approx(loss_on_disk(task, "held_out_original"), abs=near)
    assert record["saved_loss"] == record["eval_loss_after"]
    assert record["compared_on"] == f"{record['n_held_out']} held-out rows"
    assert record["saved_difference"] == abs(record["saved_loss"] - record["trained_loss"])
    # The same numbers in the same order: not even rounding.
    assert record["saved_difference"] < 1e-6
    assert ("merge_difference" in record) == (way == "merged")
    assert record.get("merge_difference", 0.0) <= 1e-5


def test_without_held_out_rows_the_first_training_rows_are_compared(bench: Bench, tmp_path: Path) -> None:
    home = make_bench(tmp_path / "home", held_out=0.0, max_steps=2)
    task = prepare(home, tmp_path / "work")
    go(task)
    record = record_of(task)
    assert "eval_loss_after" not in record
    assert record["compared_on"] == "the first 8 training rows: none is held out"
    assert record["saved_loss"] == pytest.approx(loss_on_disk(task, "train"), abs=1e-5)
    assert record["saved_difference"] <= 1e-4


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_lora_on_tied_embeddings_is_refused_before_the_first_step(bench: Bench, tmp_path: Path, layer: str) -> None:
    task = prepare(bench, tmp_path, **LORA, lora=job.Lora(targets=("q_proj", layer)))
    with pytest.raises(UserError, match=rf"LoRA on {layer} cannot be merged: the student ties") as refused:
        go(task)
    assert "lora_merge = false" in refused.value.remedy
    assert not task.curve.exists()


def test_lora_on_embeddings_of_their_own_holds(bench: Bench, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student")
    untied = AutoModelForCausalLM.from_pretrained(student)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied.save_pretrained(student)
    lora = job.Lora(rank=4, targets=("embed_tokens", "lm_head"))
    task = prepare(bench, tmp_path / "work", student_path=str(student), **LORA, lora=lora)
    go(task)
    assert record_of(task)["saved_difference"] <= 1e-4 and record_of(task)["merge_difference"] <= 1e-4


def saves_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a weight did not get into the file."""
    write = saved._write

    def wrong(model, tokenizer, directory: Path) -> None:
        write(model, tokenizer, directory)
        weights = load_file(directory / "model.safetensors")
        weights["model.layers.1.mlp.down_proj.weight"].mul_(0.9)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(saved, "_write", wrong)


def test_a_checkpoint_that_is_another_model_has_a_red_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves_wrongly(monkeypatch)
    bench = make_bench(tmp_path / "home", max_steps=2)
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=in_process)
    (made,) = finished.all_of(bench.lake, "tiny")
    assert made.record["saved_difference"] > 1e-4
    (red,) = [c for c in stage.STAGE.check(bench.lake, "tiny") if not c.passed]
    assert red.name == results.SAVED and "another model" in str(red.facts["selective"])
    assert next(c for c in stage.STAGE.checks if c.name == results.SAVED).blocking
    # Unchanged, it is not trained again, and stays red.
    assert stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=lambda *_: 1).cached


def test_adapters_that_merge_wrongly_have_a_red_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was with LoRA on tied embeddings: what is merged is another model, and that one is saved faithfully."""
    monkeypatch.setattr(model, "_check_ties", lambda adapted: None)
    bench = make_bench(tmp_path / "home", method="lora", lora_targets=("lm_head",), max_steps=2)
    stage.STAGE.run(bench.settings, bench.lake, "tiny", launch=in_process)
    (made,) = finished.all_of(bench.lake, "tiny")
    assert made.record["saved_difference"] <= 1e-4 < made.record["merge_difference"]
    assert results.SAVED in {c.name for c in stage.STAGE.check(bench.lake, "tiny") if not c.passed}


def test_a_checkpoint_that_does_not_load_is_no_finished_one(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saved._write

    def half(model, tokenizer, directory: Path) -> None:
        write(model, tokenizer, directory)
        weights = load_file(directory / "model.safetensors")
        weights.pop("model.norm.weight")
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(saved, "_write", half)
    task = prepare(bench, tmp_path, steps=1)
    with pytest.raises(StageError, match=r"cannot be loaded again: .* lacks weights: model.norm.weight"):
        go(task)
    assert not task.final.exists()


def test_a_precision_that_no_training_can_write_is_refused(bench: Bench, tmp_path: Path) -> None:
    student = edit_tokenizer(bench, tmp_path / "student")
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "dtype": "float8_e4m3fn"}))
    with pytest.raises(UserError, match=r"stored as torch.float8_e4m3fn, in which no finetuned one is saved"):
        go(prepare(bench, tmp_path / "work", student_path=str(student)))


def test_a_model_comes_back_to_the_last_bit_and_ties_stay_tied(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_student(tmp_path))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with saved.as_stored(model, torch.bfloat16):
        assert {w.dtype for w in model.parameters()} == {torch.bfloat16}
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        # What is computed and not stored is as exact as after loading in half precision.
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_released_model_holds_no_memory(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_student(tmp_path))
    sample = Example("s", torch.arange(4, 30, dtype=torch.int32).numpy(), 3)
    mean_loss(model, [sample], 1)
    saved.release(model)
    assert sum(w.numel() for w in model.parameters()) == 0
