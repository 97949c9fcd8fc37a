"""Settings: precedence, paths, and errors that name the file and the key."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from srt_assets import settings as settings_module
from srt_assets.core.errors import UserError
from srt_assets.settings import Dataset, Settings, find_settings_file, load_settings

ROOT = Path(__file__).parent.parent


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_setting_stands_in_the_root_file() -> None:
    import tomllib

    facts = tomllib.loads((ROOT / "srt.toml").read_text())
    for section, field in Settings.model_fields.items():
        if section == "datasets":
            # path and hf exclude each other; the file shows what belongs to hf in a comment.
            of_hub = {"hf", "split", "config", "revision", "data_files"}
            assert set(facts["datasets"][0]) | of_hub == set(Dataset.model_fields)
        else:
            assert set(facts[section]) == set(field.annotation.model_fields), section


def test_relative_paths_count_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "srt.toml", '[project]\nhome = "h"\n[[datasets]]\nname = "a"\npath = "d/*.json"\n')
    below = tmp_path / "x" / "y"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_settings_file() == file
    settings = load_settings()
    assert settings.home == tmp_path / "h"
    assert settings.datasets[0].path == str(tmp_path / "d/*.json")


def test_home_defaults_to_the_folder_of_the_file(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path / "srt.toml", "")).home == tmp_path / ".srt"


def test_variables_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "srt.toml", '[teacher]\nmodel = "a"\nrpm = 3\n')
    monkeypatch.setenv("SRT_TEACHER__MODEL", "openai/b")
    monkeypatch.setenv("SRT_SELECTION__TOP_K", "0.5")
    monkeypatch.setenv("SRT_TRAINING__ARMS", "selective,random")
    monkeypatch.setenv("SRT_TRAINING__LORA_TARGETS", '["q_proj"]')
    monkeypatch.setenv("SRT_HOME", str(tmp_path / "elsewhere"))
    settings = load_settings(file)
    assert (settings.teacher.model, settings.teacher.rpm) == ("openai/b", 3)
    assert settings.selection.top_k == 0.5
    assert settings.training.arms == ("selective", "random")
    assert settings.training.lora_targets == ("q_proj",)
    assert settings.home == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[teacher]\nmodle = "x"', ["teacher.modle", "unknown", "'model'"]),
        ("[studnt]\na = 1", ["studnt", "unknown", "'student'"]),
        ('[teacher]\ntemperature = "hot"', ["teacher.temperature", "number"]),
        ('[student]\ntemplate = "vicunna"', ["student.template", "'vicuna', 'alpaca'", "did you mean 'vicuna'?"]),
        ("[training]\nbatch_size = 0", ["training.batch_size", "greater than or equal to 1"]),
        ("[selection]\ntop_k = 2.5", ["selection", "whole number"]),
        ('[student]\nprotocol = "official"\ntemplate = "chat"', ["student", "official"]),
        ('[[datasets]]\nname = "a"', ["datasets.0", "either path or hf"]),
        ("a = = 1", ["TOML"]),
        ('[automation]\nnightly = "61 2 * * *"', ["automation.nightly", "it is no cron line"]),
        # Numbers that no table, loop or random generator takes.
        ("[selection]\ntop_k = inf", ["selection.top_k", "inf is out of range"]),
        ("[selection]\ntop_k = true", ["selection.top_k", "neither true nor false"]),
        (f"[selection]\ntop_k = {10**20}", ["selection.top_k", "out of range"]),
        (f"[project]\nseed = {2**32}", ["project.seed", "less than"]),
        ("[training]\nepochs = inf", ["training.epochs", "inf is out of range"]),
        ("[training]\nlearning_rate = inf", ["training.learning_rate", "inf is out of range"]),
        ('[project]\nhome = ""', ["project.home", "empty"]),
        # Rules about all settings.
        (2 * '[[datasets]]\nname = "a"\npath = "x"\n', ["datasets", "two datasets are named 'a'"]),
        # Sections of another shape.
        ("datasets = 3", ["datasets: ", "[[datasets]]"]),
        ("datasets = [3]", ["datasets.0: ", "[[datasets]]"]),
        ('[datasets]\nname = "a"', ["datasets: ", "[[datasets]]"]),
        ('[datasets.a]\npath = "x"', ["datasets: ", "[[datasets]]"]),
        ('[[teacher]]\nmodel = "x"', ["teacher: ", "table [teacher]"]),
        ("teacher = 3", ["teacher: ", "table [teacher]"]),
        ("project = 3", ["project: ", "table [project]"]),
        ("[teacher.model]\na = 1", ["teacher.model", "string"]),
        ("[nonsense]\na.b.c = 1", ["nonsense", "unknown"]),
        ('[[datasets]]\nname = "a"\npath = "x"\n[datasets.more]\na = 1', ["datasets.0.more", "unknown"]),
        ('[training]\narms = "random"', ["training.arms", "a list"]),
        ("[project]\nhome = 3", ["project.home", "a text, not 3"]),
        # Paths that no system takes.
        ('[project]\nhome = "a\\u0000b"', ["project.home", "code 0"]),
        ('[project]\nhome = "~no-such-user/x"', ["project.home", "~no-such-user", "./~name"]),
        ('[[datasets]]\nname = "a"\npath = "~no-such-user/x"', ["datasets.0.path", "~no-such-user"]),
        ('[automation]\nwatch = "~no-such-user"', ["automation.watch", "~no-such-user"]),
    ],
)
def test_errors_name_file_key_and_remedy(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path / "srt.toml", text)
    with pytest.raises(UserError) as caught:
        load_settings(file)
    for word in [*words, str(file), "->"]:
        assert word in str(caught.value)


def test_names_in_a_variable_may_have_spaces_between_them_or_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "srt.toml", '[training]\narms = ["original"]')
    monkeypatch.setenv("SRT_TRAINING__LORA_TARGETS", "q_proj, v_proj")
    monkeypatch.setenv("SRT_TRAINING__ARMS", "")
    training = load_settings(file).training
    assert (training.lora_targets, training.arms) == (("q_proj", "v_proj"), ())


def test_an_error_from_the_environment_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRT_TRAINING__EPOCHS", "many")
    with pytest.raises(UserError, match="SRT_TRAINING__EPOCHS"):
        load_settings(write(tmp_path / "srt.toml", ""))


def test_a_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRT_SETTINGS", str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match=r"none\.toml"):
        load_settings()


def test_a_file_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "srt.toml").write_bytes(b"\xef\xbb\xbf[teacher]\nrpm = 3\n")
    assert load_settings(tmp_path / "srt.toml").teacher.rpm == 3


def test_an_unknown_key_never_shows_its_value(tmp_path: Path) -> None:
    file = write(tmp_path / "srt.toml", '[teacher]\napi_key = "sk-very-secret"')
    with pytest.raises(UserError) as caught:
        load_settings(file)
    assert "sk-very-secret" not in str(caught.value)


@pytest.mark.parametrize("text", ['[[teacher]]\napi_key = "sk-very-secret"', '[teacher.model]\nkey = "sk-very-secret"'])
def test_a_table_in_the_wrong_place_does_not_show_what_is_in_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="teacher") as caught:
        load_settings(write(tmp_path / "srt.toml", text))
    assert "sk-very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SRT_NONSENSE__X", "1", ["SRT_NONSENSE__X: nonsense: unknown setting"]),
        ("SRT___X", "1", ["SRT___X", "unknown setting"]),
        ("SRT_TEACHER__", "1", ["SRT_TEACHER__: ", "unknown setting"]),
        ("SRT_DATASETS__NAME", "x", ["SRT_DATASETS__NAME", "cannot set a list", "srt.toml"]),
        ("SRT_HOME", "~no-such-user/x", ["SRT_HOME", "~no-such-user"]),
        ("SRT_PROJECT__HOME", "~no-such-user/x", ["SRT_PROJECT__HOME", "~no-such-user"]),
        ("SRT_SETTINGS", "~no-such-user/x", ["SRT_SETTINGS", "~no-such-user"]),
    ],
)
def test_odd_variables_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]
) -> None:
    write(tmp_path / "srt.toml", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("variable", ["SRT_HOME", "SRT_PROJECT__SEED", "SRT_TEACHER__MODEL"])
def test_a_variable_does_not_hide_a_section_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    file = write(tmp_path / "srt.toml", "project = 3\nteacher = [1]")
    with pytest.raises(UserError) as caught:
        load_settings(file)
    assert f"{file}: project: " in str(caught.value) and f"{file}: teacher: " in str(caught.value)


def test_a_rule_about_a_section_names_everything_it_was_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRT_SELECTION__POLICY", "original")
    file = write(tmp_path / "srt.toml", "[selection]\ntop_k = 2.5")
    with pytest.raises(UserError, match=f"{file}, environment variable SRT_SELECTION__POLICY: selection: top_k"):
        load_settings(file)


def test_an_error_without_a_place_is_explained_too(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(3)
    assert f"{tmp_path}: settings: " in str(settings_module._explain(caught.value, tmp_path, {}))
