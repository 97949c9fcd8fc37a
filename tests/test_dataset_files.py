"""Which files a dataset's path names: glob characters of folders that exist mean themselves."""

import json
from pathlib import Path

import pytest

from srt_assets.commands import doctor
from srt_assets.core.errors import UserError
from srt_assets.core.records.files.find import dataset_files
from srt_assets.settings import load_settings

FILES = ("a.json", "data/1.json", "data/2.json", "data/deep/er/3.json", "set1.json", "set[1].json", "run[2]/x.json")


def project(folder: Path, path: str) -> Path:
    """A settings file whose one dataset has this path, among data files, some of odd names."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps([{"instruction": name, "output": "x"}]))
    file = folder / "srt.toml"
    file.write_text(f"[[datasets]]\nname = 'd'\npath = '''{path}'''\n")
    return file


def found(file: Path) -> list[str]:
    return [str(f.relative_to(file.parent)) for f in dataset_files(load_settings(file).datasets[0])]


@pytest.mark.parametrize("folder", ["plain", "[exp]", "a*b", "what?", "[!x]-[0-9]", "it's", "{a,b}", "back\\slash"])
@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("a.json", ["a.json"]),
        ("data/*.json", ["data/1.json", "data/2.json"]),
        ("data/[12].json", ["data/1.json", "data/2.json"]),
        ("data/**/*.json", ["data/1.json", "data/2.json", "data/deep/er/3.json"]),
        ("d?ta/1.json", ["data/1.json"]),
        # What is there under its very name is no pattern, be it a file or a folder.
        ("set[1].json", ["set[1].json"]),
        ("run[2]/*.json", ["run[2]/x.json"]),
    ],
)
def test_the_settings_folder_may_have_any_name(tmp_path: Path, folder: str, path: str, files: list[str]) -> None:
    # Beside it lies one that the folder's name would match as a pattern.
    project(tmp_path / folder.replace("*", "X").replace("?", "X").replace("[exp]", "e"), "")
    assert found(project(tmp_path / folder, path)) == files
    # The same written in full.
    assert found(project(tmp_path / folder, str(tmp_path / folder / path))) == files


def test_a_path_from_the_users_home_or_from_a_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "[me]"))
    assert found(project(tmp_path / "[me]", "~/data/*.json")) == ["data/1.json", "data/2.json"]
    (tmp_path / "[me]/[below]").mkdir()
    (below := tmp_path / "[me]/[below]/srt.toml").write_text("[[datasets]]\nname = 'd'\npath = '../data/[1].json'")
    files = dataset_files(load_settings(below).datasets[0])
    assert [f.resolve() for f in files] == [(tmp_path / "[me]/data/1.json").resolve()]


def test_a_path_that_names_no_file_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, words in {
        "data": ["is a folder", "data/*.jsonl"],
        "**": ["ends in none of .json"],
        "none/*.json": ["no file at", "none/*.json", "datasets.path"],
    }.items():
        file = project(tmp_path / "[exp]", path)
        with pytest.raises(UserError) as caught:
            found(file)
        assert "'d'" in str(caught.value) and str(file.parent) in str(caught.value)
        for word in words:
            assert word in str(caught.value)
    monkeypatch.chdir(file.parent)
    assert any(f.level == "error" and "no file at" in f.what for f in doctor.examine())


def test_a_file_name_that_no_table_takes_is_one_clear_error(tmp_path: Path) -> None:
    file = project(tmp_path, "data/*.json")
    (tmp_path / "data" / "caf\udce9.json").write_text("[]")
    with pytest.raises(UserError, match=r"caf\\xe9.json is not UTF-8"):
        found(file)
