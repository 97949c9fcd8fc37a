"""What is no file where a file should be: nobody waits for it, nothing reads for ever, one sentence says what it is."""

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from selection_lake import small_lake
from student_lake import settings_for
from tiny_student import make_tiny_student

from srt_assets.cli import main
from srt_assets.core import files, locks, manifest
from srt_assets.core.errors import Damaged, UserError
from srt_assets.core.hashing import file_sha256
from srt_assets.core.lake import FAILURE, Lake
from srt_assets.core.records.files.find import dataset_files
from srt_assets.core.records.files.read import read_rows
from srt_assets.core.sql import catalog, models
from srt_assets.core.students import checkpoint_files, checkpoints, folders, watch
from srt_assets.core.teacher import ledger, sealing
from srt_assets.defs.instance import prepare_instance
from srt_assets.settings import Dataset, Project, Settings, load_settings

# A reader that waits ends the test run: here after a minute.
pytestmark = pytest.mark.timeout(60)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # an address has 108 characters at most
        made.bind(path.name)
        os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a named pipe"),
    "socket": (_socket, "a socket"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "a device"),
    "kernel log": (lambda path: path.symlink_to("/proc/kmsg"), "a file of the kernel's"),
    "memory": (lambda path: path.symlink_to("/proc/self/mem"), "a file of the kernel's"),
    "nowhere": (lambda path: path.symlink_to("not there"), "a link that leads nowhere"),
    "circle": (lambda path: path.symlink_to(path.name), "a link that leads in a circle"),
    "folder": (lambda path: path.mkdir(), "a folder"),
}


@pytest.fixture(params=KINDS)
def put(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Puts one of them under a name, in place of what is there; gives the words for it."""
    make, words = KINDS[request.param]

    def replace(path: Path) -> str:
        path.unlink(missing_ok=True)
        make(path)
        return words

    return replace


def one_sentence(error: UserError, *words: str) -> None:
    assert "\n" not in error.message and len(error.message) < 500 and error.remedy
    for word in words:
        assert word in error.message, error.message


# -- settings and data


def test_settings(tmp_path: Path, put: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = put(tmp_path / "srt.toml")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    asks = [load_settings, lambda: load_settings(tmp_path / "srt.toml")]
    for ask in asks:
        with pytest.raises(UserError) as caught:
            ask()
        one_sentence(caught.value, "srt.toml", words)
    monkeypatch.setenv("SRT_SETTINGS", str(tmp_path / "srt.toml"))
    with pytest.raises(UserError) as caught:
        load_settings()
    one_sentence(caught.value, "SRT_SETTINGS", words)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a = " + "[" * 100_000, "no valid TOML"), ("a = " + "1" * 10_000, "no valid TOML"), ("#" * (1 << 20), "1 MB")],
)
def test_settings_of_nonsense(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "srt.toml").write_text(f"{text}\n")
    with pytest.raises(UserError) as caught:
        load_settings(tmp_path / "srt.toml")
    one_sentence(caught.value, "srt.toml", words)


def test_a_dataset_by_name_and_by_pattern(tmp_path: Path, put: Callable[[Path], str]) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    words = put(tmp_path / "b.jsonl")
    folder = words == "a folder"
    for path in ("b.jsonl", "*.jsonl", "**/*.jsonl"):
        if folder and path != "b.jsonl":  # its name may be meant for files
            assert dataset_files(Dataset(name="d", path=str(tmp_path / path))) == [tmp_path / "a.jsonl"]
            continue
        with pytest.raises(UserError) as caught:
            dataset_files(Dataset(name="d", path=str(tmp_path / path)))
        one_sentence(caught.value, "dataset 'd'", "b.jsonl", words)


def test_links_between_folders_that_lead_in_circles(tmp_path: Path) -> None:
    """Followed as they come, three links to one folder are 3**40 folders."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("{}\n")
    for name in ("x", "y", "z"):
        (tmp_path / "data" / name).symlink_to("..", target_is_directory=True)
    (tmp_path / "elsewhere").symlink_to("data", target_is_directory=True)
    for pattern in ("**/*.jsonl", "data/**/*.jsonl", "**/**/*.jsonl", "**"):
        assert dataset_files(Dataset(name="d", path=str(tmp_path / pattern))) == [tmp_path / "data" / "a.jsonl"]


def test_a_pipe_given_on_purpose(tmp_path: Path) -> None:
    """`<(zcat data.jsonl.gz)`: it can be read once, and the data are hashed and read again."""
    inlet, outlet = os.pipe()
    for path in (f"/dev/fd/{inlet}", f"/proc/self/fd/{inlet}"):
        with pytest.raises(UserError) as caught:
            dataset_files(Dataset(name="d", path=path))
        one_sentence(caught.value, "a named pipe")
        assert "several times" in caught.value.remedy
    os.close(inlet)
    os.close(outlet)


def test_lines_and_files_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srt_assets.core.records.files.lines.LONGEST_LINE", 1 << 20)
    endless = tmp_path / "a.jsonl"
    endless.write_text("{}\n")
    os.truncate(endless, 1 << 40)
    with pytest.raises(UserError) as caught:
        list(read_rows(endless))
    one_sentence(caught.value, "line 2 is longer than 1 MB")
    endless = endless.rename(tmp_path / "a.json")
    with pytest.raises(UserError) as caught:
        list(read_rows(endless))
    one_sentence(caught.value, "line 2, column 1: broken JSON: Extra data")
    monkeypatch.setattr("srt_assets.core.records.files.json_array.LONGEST", 1 << 20)
    endless.write_text('[{"output": "' + "x" * (1 << 22))
    with pytest.raises(UserError) as caught:
        list(read_rows(endless))
    one_sentence(caught.value, "line 1, column 2: broken JSON: a value is longer than 1 MB")


LONG = "x" * 5000


@pytest.mark.parametrize(
    "path", [LONG, f"/{LONG}.json", "a/" * 2500 + "*.json", "~nosuchuser/x.json", "/proc", "/proc/self/mem"]
)
def test_paths_of_datasets(tmp_path: Path, path: str) -> None:
    (tmp_path / "srt.toml").write_text(f"[[datasets]]\nname = 'd'\npath = '{path}'\n")
    with pytest.raises(UserError) as caught:
        dataset_files(load_settings(tmp_path / "srt.toml").datasets[0])
    one_sentence(caught.value)


# -- students

SOURCES = [LONG, f"/{LONG}", f"org/{LONG}", "a\0b", "~nosuchuser", "/proc", "/proc/self/mem", "/dev/stdin", "/dev/null"]


@pytest.mark.parametrize("source", [*SOURCES, "{empty}", "{file}"])
def test_sources_of_students(lake: Lake, tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as caught:
        checkpoints.add(settings_for(), lake, source.format(empty=tmp_path / "empty", file=tmp_path / "file"))
    one_sentence(caught.value)
    assert not checkpoints.list_students(lake)


def test_the_command_ends_with_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "srt.toml").touch()
    monkeypatch.chdir(tmp_path)
    for source in (LONG, "/proc", "/dev/stdin", "~nosuchuser"):
        monkeypatch.setattr(sys, "argv", ["srt", "students", "add", source])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr().err
        assert ended.value.code == 2 and len(told.splitlines()) <= 3 and "Traceback" not in told


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("generation_config.json", checkpoint_files.INDEX, "tokenizer.model"),
    ],
)
def test_files_of_a_student(tmp_path: Path, put: Callable[[Path], str], name: str) -> None:
    source = make_tiny_student(tmp_path / "student")
    words = put(source / name)
    with pytest.raises(UserError) as caught:
        checkpoint_files.inspect(source)
    one_sentence(caught.value, str(source / name), words)


def test_a_registered_student_whose_file_is_none_any_more(lake: Lake, tmp_path: Path) -> None:
    source = make_tiny_student(tmp_path / "student")
    slug = checkpoints.add(settings_for(), lake, str(source)).slug
    for name in ("tokenizer.json", "model.safetensors"):
        (source / name).rename(source / "away")
        os.mkfifo(source / name)
        with pytest.raises(UserError) as caught:
            checkpoints.get(lake, slug)
        one_sentence(caught.value, name, "a named pipe")
        (source / "away").replace(source / name)
    assert checkpoints.get(lake, slug)


@pytest.mark.parametrize(
    ("name", "megabytes"), [("tokenizer.json", 257), ("config.json", 65), ("generation_config.json", 65)]
)
def test_a_small_file_that_is_large(tmp_path: Path, name: str, megabytes: int) -> None:
    source = make_tiny_student(tmp_path / "student")
    os.truncate(source / name, megabytes << 20)
    with pytest.raises(UserError) as caught:
        checkpoint_files.inspect(source)
    one_sentence(caught.value, str(source / name), "larger than")


def test_the_watched_folder(tmp_path: Path, put: Callable[[Path], str]) -> None:
    """A student beside it runs all the same."""
    make_tiny_student(tmp_path / "good")
    bad = make_tiny_student(tmp_path / "bad")
    words = put(bad / "config.json")
    put(tmp_path / watch.LIST)
    put(tmp_path / "stray")
    whole, refused = watch.scan(tmp_path)
    assert list(whole) == ["good"]
    assert words in refused["bad"]
    for name in (watch.LIST, "stray"):  # a folder may be a student, but for its files
        assert ("config.json" if words == "a folder" else words) in refused[name]


def test_a_watched_folder_that_is_none(tmp_path: Path, put: Callable[[Path], str]) -> None:
    put(tmp_path / "watched")
    assert watch.scan(tmp_path / "watched")[0] == {}


# -- the helper, and the home


def test_a_file_that_is_replaced_between_look_and_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "what_else", lambda path: "")
    for read in (files.opened, file_sha256, lambda path: files.read(path, 10)):
        with pytest.raises(files.NoFile, match="a named pipe"):
            read(tmp_path / "pipe")


def test_an_ordinary_file_is_read_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one\r\ntwo")
    assert files.read(file, 8) == b"one\r\ntwo" and files.read_text(file) == "one\ntwo"
    assert not files.what_else(file) and not files.what_else(tmp_path / "none")
    with pytest.raises(files.NoFile, match="larger than"):
        files.read(file, 7)
    with pytest.raises(FileNotFoundError):
        files.opened(tmp_path / "none")
    (tmp_path / "link").symlink_to(file)
    assert files.read(tmp_path / "link", 8) == b"one\r\ntwo"


def test_files_of_the_home(tmp_path: Path, put: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    lake = small_lake(tmp_path / "home")
    directory = lake.directory("raw_records")
    words = put(directory / manifest.NAME)
    with pytest.raises(Damaged, match=words):
        lake.manifest("raw_records")
    put(lake.directory("candidates") / FAILURE)
    with pytest.raises(Damaged, match=words):
        lake.failure("candidates")
    (lake.home / "students" / "tiny").mkdir(parents=True)
    put(lake.home / "students" / "tiny" / folders.RECORD)
    assert folders.record(lake.home / "students" / "tiny") == {}
    calls = lake.directory(ledger.TABLE)
    calls.mkdir(parents=True)
    put(calls / "part-0.parquet")
    with pytest.raises(Damaged, match=words):
        sealing.seal(lake)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (lake.home / "dagster").mkdir()
    put(lake.home / "dagster" / "dagster.yaml")
    with pytest.raises(UserError, match=words):
        prepare_instance(Settings(project=Project(home=lake.home)))


def test_pipes_in_place_of_a_lock_a_reader_and_the_published_file(tmp_path: Path) -> None:
    lake = small_lake(tmp_path / "home")
    (lake.home / "locks" / "reading").mkdir(parents=True, exist_ok=True)
    for path in ("locks/mine.lock", "locks/reading/x.parts", "srt.duckdb"):
        (lake.home / path).unlink(missing_ok=True)
        os.mkfifo(lake.home / path)
    with locks.file_lock(lake.home / "locks/mine.lock"), pytest.raises(BlockingIOError):
        locks.file_lock(lake.home / "locks/mine.lock", wait=False).__enter__()
    assert locks.kept(lake.home / "locks" / "reading") == set()
    assert catalog.ensure_published(lake).is_file()


def test_a_model_that_is_no_file_keeps_no_other_away(tmp_path: Path, put: Callable[[Path], str]) -> None:
    root = tmp_path / "sql"
    shutil.copytree(models.folder(), root)
    words = put(root / "models" / "marts" / "mine.sql")
    project = models.load(root)
    assert words in str(project.models["mine"].error) and not project.models["decisions"].error
