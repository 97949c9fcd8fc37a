"""What many students cost those who look at all of them: CPU seconds of commands, sensor ticks and a publish.

    python -m benchmarks.students                                  # 1, 30 and 300 students that have made everything
    python -m benchmarks.students --bare                           # registered, and nothing made
    python -m benchmarks.students --beside ../before               # another checkout measures the same homes too
    python -m benchmarks.students --students 300 --folder /tmp/s   # keeps the homes for the next run

Every number is of a process of its own, the second time it does the thing: a code server lives for days. Commands are
whole processes. Each student is a checkpoint of a few kilobytes in a watched folder, with its partition; its scores,
decisions and training are few rows, written through the lake.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RECORDS = 20
COMMANDS = {"srt status": ["status"], "srt students list": ["students", "list"], "srt sql": ["sql", "SELECT 1 AS x"]}


def make(place: Path, n: int, bare: bool) -> None:
    """A home with n students, beside it the watched folder they come from and the settings."""
    import dagster as dg

    from srt_assets.core.lake import Lake
    from srt_assets.core.students import checkpoints
    from srt_assets.defs import retirement
    from srt_assets.defs.instance import prepare_instance

    place.mkdir(parents=True)
    rows = [{"instruction": f"Do thing {i}", "input": "", "output": f"Thing {i} done"} for i in range(RECORDS)]
    (place / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "srt.toml").write_text(
        f'[project]\nhome = "home"\n[[datasets]]\nname = "d"\npath = "d.jsonl"\n'
        f'[automation]\nenabled = true\nwatch = "{place / "watched"}"\n[teacher]\nmodel = "openai/none"\n'
    )
    from srt_assets.settings import load_settings

    settings = load_settings(place / "srt.toml")
    lake = Lake(settings.home)
    one = _checkpoint(place / "one")
    slugs = [f"step-{i:04d}" for i in range(n)]
    for slug in slugs:
        shutil.copytree(one, place / "watched" / slug)
        checkpoints.add(settings, lake, str(place / "watched" / slug), slug)
    _teacher_side(settings, lake)
    if not bare:
        _student_side(settings, lake, slugs[0], one)
        for slug in slugs[1:]:
            _as_the_first(settings, lake, slugs[0], slug, one)
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        retirement.add_partitions(lake, instance, slugs)
        if not bare:
            _report(instance, slugs)
    os.environ.pop("DAGSTER_HOME")


def _report(instance, slugs: list[str]) -> None:
    """What the instance knows after a run of each student."""
    import dagster as dg

    from srt_assets.defs import names

    version = {"dagster/data_version": "1"}
    for asset, keys in (*((a, [None]) for a in names.TEACHER_SIDE), *((a, slugs) for a in names.STUDENT_SIDE)):
        for slug in keys:
            instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=slug, tags=version))


def _checkpoint(folder: Path) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return folder


def _teacher_side(settings, lake) -> None:
    from srt_assets.core.hashing import content_key
    from srt_assets.core.records import raw
    from srt_assets.core.tables import rows_as_dicts
    from srt_assets.core.teacher import instructions, responses

    raw.STAGE.run(settings, lake)
    with lake.connect() as con:
        records = rows_as_dicts(con.execute("SELECT sample_id, dataset, instruction, input, response FROM raw_records"))
    for stage, names in (
        (instructions.STAGE, ("original", "reflected_instruction")),
        (responses.STAGE, ("reflected_response", "reflected_both")),
    ):
        rows = []
        for record, name in ((r, name) for r in records for name in names):
            texts = {"instruction": record["instruction"], "input": "", "response": f"{name} {record['response']}"}
            key = content_key(**texts)
            rows.append({**record, **texts, "candidate": name, "status": "ok", "call_key": key, "content_key": key})
        _commit(lake, "candidates", rows, stage.wanted(settings, lake), stage.version, stage.share)


def _student_side(settings, lake, slug: str, checkpoint: Path) -> None:
    from srt_assets.core.scoring import stage as scores
    from srt_assets.core.selection import decide
    from srt_assets.core.students import stage as students
    from srt_assets.core.tables import PASSES, rows_as_dicts

    students.STAGE.run(settings, lake, slug)
    with lake.connect() as con:
        rows = rows_as_dicts(
            con.execute(
                f"SELECT '{slug}' AS student, sample_id, candidate, content_key, 'vicuna' AS template, "
                "'aligned' AS protocol, 2048 AS max_length, 'float32' AS dtype, "
                + ", ".join(
                    f"10 + length(candidate) % {i + 2} AS sum_nll_{p}, 8 AS n_tokens_{p}, false AS truncated_{p}, "
                    f"'ok' AS status_{p}"
                    for i, p in enumerate(PASSES)
                )
                + " FROM candidates"
            )
        )
    partition = f"student={slug}"
    wanted = scores.STAGE.wanted(settings, lake, slug)
    _commit(lake, "student_scores", rows, wanted, scores.STAGE.version, partition)
    decide.STAGE.run(settings, lake, slug)
    run = {"student": slug, "run": "run", "arm": "selective", "is_active_policy": True}
    steps = [{"student": slug, "run": "run", "step": i, "loss": 1.0} for i in range(3)]
    _trained(settings, lake, slug, {"training_steps": steps, "training_runs": [run]}, checkpoint)


def _trained(settings, lake, slug: str, rows: dict[str, list], checkpoint: Path) -> None:
    from srt_assets.core.training.stage import STAGE

    made = lake.home / "checkpoints" / slug / "run"
    shutil.copytree(checkpoint, made)
    wanted = STAGE.wanted(settings, lake, slug)
    for table, of_it in rows.items():
        of_it = [row | {"path": str(made)} for row in of_it]
        _commit(lake, table, of_it, wanted, STAGE.version, f"student={slug}", runs="run")


def _as_the_first(settings, lake, first: str, slug: str, checkpoint: Path) -> None:
    """A student with the rows of the first one: deciding takes a second, and is not what is measured."""
    import duckdb

    from srt_assets.core.scoring import stage as scores
    from srt_assets.core.selection import decide
    from srt_assets.core.students import stage as students
    from srt_assets.core.tables import rows_as_dicts
    from srt_assets.core.training import stage as training

    def rows(table: str) -> list[dict]:
        with duckdb.connect() as con:
            source = lake.source(table, f"student={first}")
            return rows_as_dicts(con.execute(f"SELECT * REPLACE ('{slug}' AS student) FROM {source}"))

    students.STAGE.run(settings, lake, slug)
    for stage in (scores.STAGE, decide.STAGE):
        wanted = stage.wanted(settings, lake, slug)
        for table in reversed(stage.tables):
            _commit(lake, table, rows(table), wanted, stage.version, f"student={slug}")
    _trained(settings, lake, slug, {table: rows(table) for table in reversed(training.STAGE.tables)}, checkpoint)


def _commit(lake, table: str, rows: list, wanted, version: str, partition: str, **stats: str) -> None:
    part = lake.write_part(table, rows, partition)
    lake.commit(table, [part], fingerprint=wanted, code_version=version, partition=partition, stats=stats)


def _things(place: Path) -> dict[str, Callable[[Any], object]]:
    """What is measured inside a process, each a function of the Dagster instance."""
    import dagster as dg

    from srt_assets.core.lake import Lake
    from srt_assets.core.sql import catalog
    from srt_assets.core.status import standings
    from srt_assets.core.students import checkpoints
    from srt_assets.defs import automation
    from srt_assets.settings import load_settings

    settings = load_settings(place / "srt.toml")
    lake = Lake(settings.home)
    sensors = {sensor.name: sensor for sensor in automation.sensors(settings)}
    when = datetime(2030, 1, 1, 2, tzinfo=UTC)
    cursors: dict[str, str | None] = {}

    def tick(name: str) -> Callable[[Any], object]:
        def do(instance: Any) -> object:
            found = sensors[name](dg.build_sensor_context(instance, cursor=cursors.get(name)))
            cursors[name] = getattr(found, "cursor", None)
            return found

        return do

    def changed(instance: Any) -> object:
        from srt_assets.definitions import defs

        found = dg.evaluate_automation_conditions(defs, instance, cursor=cursors.get("changed"))
        cursors["changed"] = found.cursor  # type: ignore[assignment]
        return found

    return {
        "standings": lambda _: standings(settings, lake, checkpoints.list_students(lake)),
        **{name: tick(name) for name in ("new_student_checkpoints", "retired_students", "status_after_runs")},
        "nightly": lambda instance: automation.nightly(settings)(
            dg.build_schedule_context(instance, scheduled_execution_time=when)
        ),
        "changed_inputs": changed,
        "publish": lambda _: catalog.publish(lake),
        "lake.connect": lambda _: lake.connect().close(),
    }


NAMES = (
    *COMMANDS,
    "standings",
    "new_student_checkpoints",
    "retired_students",
    "status_after_runs",
    "nightly",
    "changed_inputs",
    "publish",
    "lake.connect",
    "load definitions",
)


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def measure(place: Path, name: str) -> float:
    """CPU seconds, in this process or of the process that is the thing."""
    if command := COMMANDS.get(name):
        srt = [sys.executable, "-c", "from srt_assets.cli import main; main()"]
        subprocess.run([*srt, *command], cwd=place, check=True, capture_output=True)
        before = _cpu(resource.RUSAGE_CHILDREN)
        subprocess.run([*srt, *command], cwd=place, check=True, capture_output=True)
        return _cpu(resource.RUSAGE_CHILDREN) - before
    os.chdir(place)
    if name == "load definitions":
        import srt_assets.definitions  # noqa: F401

        return _cpu(resource.RUSAGE_SELF)
    import dagster as dg

    os.environ["DAGSTER_HOME"] = str(place / "home" / "dagster")
    thing = _things(place)[name]
    with dg.DagsterInstance.get() as instance:
        thing(instance)
        before = _cpu(resource.RUSAGE_SELF) + _cpu(resource.RUSAGE_CHILDREN)
        thing(instance)
        return _cpu(resource.RUSAGE_SELF) + _cpu(resource.RUSAGE_CHILDREN) - before


def in_process(place: Path, name: str, checkout: Path) -> float:
    """The number of one thing, with the program of a checkout; nan if it fails there."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [sys.executable, str(Path(__file__).absolute()), "--one", name, "--folder", str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return float("nan")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", default="1,30,300")
    parser.add_argument("--bare", action="store_true", help="students that have made nothing yet")
    parser.add_argument("--beside", type=Path, help="another checkout of the project")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="", help="names of what to measure, with commas")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(options.folder, options.one))
        return
    here = Path(__file__).absolute().parents[1]
    checkouts = [options.beside.absolute(), here] if options.beside else [here]
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.folder or Path(temporary)).absolute()
        sizes = [int(size) for size in options.students.split(",")]
        places = {n: root / f"{n}{'-bare' if options.bare else ''}" for n in sizes}
        for n, place in places.items():
            if not place.exists():
                started = time.perf_counter()
                make(place, n, options.bare)
                print(f"made {n} students in {time.perf_counter() - started:.0f} s", flush=True)
        print(f"CPU seconds, students {'that have made nothing' if options.bare else 'that have made everything'}")
        heads = [f"{n:,}{' beside' if c != here else ''}" for n in sizes for c in checkouts]
        print(f"{'':<24}" + "".join(f"{head:>12}" for head in heads) + f"{'last/first':>12}", flush=True)
        for name in options.only.split(",") if options.only else NAMES:
            found = [in_process(places[n], name, c) for n in sizes for c in checkouts]
            ratio = found[-1] / max(found[len(checkouts) - 1], 0.001)
            print(f"{name:<24}" + "".join(f"{x:>12.2f}" for x in found) + f"{ratio:>12.1f}", flush=True)


if __name__ == "__main__":
    main()
