"""Checkpoints of other trainers that are no students: one sentence names the cause, and nobody behind them waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from student_lake import make_lake, settings_for
from tiny_student import make_tiny_student

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.ready import load_model
from srt_assets.core.students import checkpoints, unfit, watch
from srt_assets.core.students.loading import load_tokenizer

torch.set_num_threads(1)
CODE = "raise SystemExit('a stranger\\'s code was run')"


def weights(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]], **more: torch.Tensor):
    def harm(path: Path) -> None:
        old = load_file(path / "model.safetensors")
        new = dict(change(name, tensor) for name, tensor in old.items())
        save_file(new | more, path / "model.safetensors", metadata={"format": "pt"})

    return harm


def named(rename: Callable[[str], str], **more: torch.Tensor):
    return weights(lambda name, tensor: (rename(name), tensor), **more)


def stored(kind: torch.dtype):
    return weights(lambda name, tensor: (name, tensor.to(kind) if "proj" in name else tensor))


def config(**facts: object):
    def harm(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))

    return harm


def instead(*files: str, without: tuple[str, ...] = ("model.safetensors",)):
    def harm(path: Path) -> None:
        for name in without:
            (path / name).unlink()
        for name in files:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text('{"base_model_name_or_path": "org/base-1b"}')

    return harm


def code(path: Path) -> None:
    auto = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyModelForCausalLM"}
    config(model_type="mymodel", architectures=["MyModelForCausalLM"], auto_map=auto)(path)
    for name in ("configuration_my.py", "modeling_my.py"):
        (path / name).write_text(CODE)


EMPTY = torch.zeros(0)
AT_THE_DOOR = {
    "zero-3": (weights(lambda name, tensor: (name, EMPTY)), "holds 20 empty tensors, .* DeepSpeed ZeRO-3"),
    "zero-3, some": (
        weights(lambda name, tensor: (name, EMPTY if "layers.1" in name else tensor)),
        r"holds 9 empty tensors, such as model.layers.1.* DeepSpeed ZeRO-3",
    ),
    "compiled": (named(lambda name: f"_orig_mod.{name}"), r"as a compiled model \(torch.compile\).*_orig_mod.model"),
    "compiled layers": (named(lambda name: name.replace("layers.0.", "layers.0._orig_mod.")), "as a compiled model"),
    "ddp": (named(lambda name: f"module.{name}"), "inside DistributedDataParallel or DeepSpeed"),
    "fsdp": (named(lambda name: f"_fsdp_wrapped_module.{name}"), "inside FSDP"),
    "checkpointing": (
        named(lambda name: name.replace("layers.0.", "layers.0._checkpoint_wrapped_module.")),
        "inside activation checkpointing",
    ),
    "adapter inside": (named(lambda name: f"base_model.model.{name}"), "an adapter that is not merged"),
    "adapter beside": (
        named(lambda name: name, **{"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 16)}),
        "an adapter that is not merged",
    ),
    "bitsandbytes": (config(quantization_config={"quant_method": "bitsandbytes"}), r"are quantized \(bitsandbytes\)"),
    "inside a text config": (
        config(text_config={"quantization_config": {"quant_method": "gptq"}, "vocab_size": 320}),
        r"are quantized \(gptq\)",
    ),
    "fp8, unsaid": (stored(torch.float8_e4m3fn), r"quantized weights \(.*_proj.weight of type F8_E4M3\)"),
    "int8, unsaid": (stored(torch.int8), r"quantized weights \(.*_proj.weight of type I8\)"),
    "packed": (
        named(lambda name: name.replace("q_proj.weight", "q_proj.qweight")),
        r"quantized weights \(.*q_proj.qweight",
    ),
    "adapter": (
        instead("adapter_config.json", "adapter_model.safetensors", without=("model.safetensors", "config.json")),
        r"a LoRA adapter without its base model \(org/base-1b\)",
    ),
    "adapter with config": (instead("adapter_config.json"), "a LoRA adapter without its base model"),
    "custom code": (code, r"needs code of its own \(MyModelForCausalLM\), which is never run"),
    "pickle": (instead("pytorch_model.bin"), "pickle only"),
    "gguf": (instead("model-q4.gguf"), "GGUF only"),
    "tensorflow": (instead("tf_model.h5"), "TensorFlow only"),
    "fsdp pieces": (instead("pytorch_model_fsdp_0/__0_0.distcp"), "in pieces of FSDP"),
    "deepspeed pieces": (instead("global_step10/zero_pp_rank_0_optim_states.pt"), "in pieces of DeepSpeed"),
    "no index": (instead("model-00001-of-00002.safetensors"), "no index of them"),
    "encoder-decoder": (
        config(is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"]),
        r"is an encoder-decoder \(T5ForConditionalGeneration\)",
    ),
    "reward model": (
        config(architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification: it does not predict the next token",
    ),
}


def one_sentence(error: UserError) -> str:
    assert "\n" not in error.message and len(error.message) < 400 and error.remedy
    return error.message


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tiny_student(tmp_path / "theirs")


@pytest.mark.parametrize("kind", AT_THE_DOOR)
def test_what_headers_and_names_tell_is_refused_when_it_is_registered(lake: Lake, source: Path, kind: str) -> None:
    harm, why = AT_THE_DOOR[kind]
    harm(source)
    with pytest.raises(UserError, match=why) as refused:
        checkpoints.add(settings_for(), lake, str(source), "theirs")
    assert str(source) in one_sentence(refused.value)
    assert checkpoints.list_students(lake) == []


def broken(value: float):
    return weights(lambda name, tensor: (name, tensor.fill_(value) if "layers.1.mlp.up" in name else tensor))


def without_type(path: Path) -> None:
    facts = json.loads((path / "config.json").read_text())
    del facts["model_type"]
    (path / "config.json").write_text(json.dumps(facts))


ON_LOADING = {
    "nan": (broken(float("nan")), r"weights that are no numbers .*: model.layers.1.mlp.up_proj.weight"),
    "infinite": (broken(float("inf")), "weights that are no numbers"),
    "unknown": (config(model_type="llama99"), r"model type 'llama99', which transformers \S+ does not know"),
    "untyped": (without_type, "names no model_type"),
    "of pictures": (config(model_type="vit"), r"'vit', of which transformers \S+ has no causal language model"),
}


@pytest.mark.parametrize("kind", ON_LOADING)
def test_what_only_loading_tells_is_one_sentence_too(source: Path, kind: str) -> None:
    harm, why = ON_LOADING[kind]
    harm(source)
    with pytest.raises(UserError, match=why) as refused:
        load_model(source, torch.float32, "cpu")
    assert str(source) in one_sentence(refused.value)


def test_numbers_too_large_for_half_precision_are_no_broken_weights(source: Path) -> None:
    broken(1e6)(source)
    _, found = load_model(source, torch.float16, "cpu")
    assert not found.refused
    broken(float("nan"))(source)
    with pytest.raises(UserError, match="no numbers"):
        load_model(source, torch.float16, "cpu")


def test_a_tokenizer_with_code_of_its_own_is_refused_and_its_code_not_run(source: Path) -> None:
    file = source / "tokenizer_config.json"
    auto = {"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "MyTokenizer", "auto_map": auto}))
    (source / "tokenization_my.py").write_text(CODE)
    with pytest.raises(UserError, match="needs code of its own, which is never run") as refused:
        load_tokenizer(source)
    one_sentence(refused.value)


def test_code_beside_a_model_that_ships_is_not_asked_for(lake: Lake, source: Path) -> None:
    """Many published students keep an `auto_map` from before transformers had them."""
    config(auto_map={"AutoModelForCausalLM": "modeling_my.MyModelForCausalLM"})(source)
    (source / "modeling_my.py").write_text(CODE)
    info = checkpoints.add(settings_for(), lake, str(source), "theirs")
    forward, _ = load_model(info.path, torch.float32, "cpu")
    assert type(forward.model).__module__.startswith("transformers.models.llama")


@pytest.mark.parametrize(("model_type", "ships"), [("llama", True), ("modernbert-decoder", True), ("no_such", False)])
def test_what_ships_is_told_without_importing_it(model_type: str, ships: bool) -> None:
    assert unfit._ships(model_type) == ships


@pytest.mark.parametrize("extra", [{"v_head.summary.weight": torch.zeros(1, 16)}, {"lm_head.inv_freq": torch.ones(4)}])
def test_more_weights_than_needed_harm_nobody(lake: Lake, source: Path, extra: dict[str, torch.Tensor]) -> None:
    named(lambda name: name, **extra)(source)
    info = checkpoints.add(settings_for(), lake, str(source), "theirs")
    load_model(info.path, torch.float32, "cpu")


def test_the_students_behind_them_in_the_watched_folder_are_offered(tmp_path: Path) -> None:
    folder = tmp_path / "arrivals"
    for n, (harm, _) in enumerate(AT_THE_DOOR.values()):
        harm(make_tiny_student(folder / f"{n:02}"))
    make_tiny_student(folder / "zz-good")
    whole, refused = watch.scan(folder)
    assert list(whole) == ["zz-good"]
    assert len(refused) == len(AT_THE_DOOR) and not any("\n" in why for why in refused.values())


def test_a_broken_student_fails_alone(home: Path) -> None:
    lake = make_lake(home)
    theirs = make_tiny_student(home / "broken")
    broken(float("nan"))(theirs)
    checkpoints.add(settings_for(), lake, str(theirs), "broken")
    with pytest.raises(UserError, match="no numbers"):
        scores.STAGE.run(settings_for(), lake, "broken")
    assert not scores.STAGE.run(settings_for(), lake, "tiny").cached
