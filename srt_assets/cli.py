"""The command line `srt`. Exit code 0: done, 1: failed, 2: the user must change something. The work is in `commands/`.

Heavy imports are inside the commands, so that `srt --help` is fast.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from srt_assets.commands import terminal
from srt_assets.core import rights
from srt_assets.core.children import protect, wait_asleep
from srt_assets.core.errors import StageError, UserError, explained
from srt_assets.core.masking import mask_uncaught
from srt_assets.core.signals import listen, not_lost
from srt_assets.paths import expanded
from srt_assets.settings import Settings

if TYPE_CHECKING:
    from srt_assets.core.lake import Lake

# No pretty tracebacks: they show local variables, which may hold data or keys.
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Recycle instruction-tuning data with Selective Reflection-Tuning: a teacher rewrites, the student chooses.",
)
students_app = typer.Typer(no_args_is_help=True, help="The students: register, list and retire them.")
app.add_typer(students_app, name="students")

StudentOption = Annotated[
    str | None, typer.Option("--student", help="Slug of a student; all registered ones if left out.")
]


def main() -> None:
    """Entry point: runs a command and turns errors with a remedy into one message and an exit code."""
    listen()
    protect()
    wait_asleep()
    mask_uncaught()
    terminal.guard()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Dagster warns that parts of its API (checks by partition, the Pipes client) are in preview, which no user needs.
    warnings.filterwarnings("ignore", message=".*is currently in preview.*")
    try:
        with rights.restored(), not_lost(KeyboardInterrupt):
            app()
    except (UserError, StageError) as error:
        _say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe has closed it (`srt sql … | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        _say(known)
        sys.exit(known.exit_code)


def _say(error: UserError | StageError) -> None:
    from rich.text import Text

    terminal.console(stderr=True).print(Text(f"error: {error}", "red"), soft_wrap=True)


def _open() -> "tuple[Settings, Lake]":
    from srt_assets import home
    from srt_assets.core.lake import Lake

    settings = home.project()
    rights.keep(settings.home)
    return settings, Lake(settings.home)


def _open_to_read() -> "tuple[Settings, Lake]":
    """For commands that need an existing home."""
    from srt_assets import home

    settings, lake = _open()
    home.to_read(settings.home)
    return settings, lake


def _slugs(lake: "Lake") -> list[str]:
    from srt_assets.core.students import checkpoints

    return checkpoints.list_students(lake)


# -- running


@app.command()
def demo() -> None:
    """Run the whole graph on the settings found (the project's own: the built-in sample) with the packaged student."""
    from srt_assets.commands import run

    settings, lake = _open()
    if "smollm2" not in _slugs(lake):
        _register(settings, lake, "smollm2", None)
    sys.exit(run.run(settings, lake, [], ["smollm2"]))


@app.command(name="run")
def run_command(
    assets: Annotated[
        list[str] | None, typer.Argument(help="Assets to bring up to date; the whole graph if left out.")
    ] = None,
    student: StudentOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Ask the teacher again for what the assets named have of an older program."),
    ] = False,
) -> None:
    """Materialize assets, and whatever upstream of them is missing or changed, through Dagster."""
    from srt_assets.commands import run

    settings, lake = _open()
    sys.exit(run.run(settings, lake, assets or [], [] if student is None else [student], verbose, renew))


# -- students


def _register(settings: Settings, lake: "Lake", source: str, name: str | None) -> str:
    from srt_assets.commands.run import instance_of
    from srt_assets.core.students import checkpoints, retired, sources
    from srt_assets.core.students.checkpoint_files import slugify
    from srt_assets.defs import retirement

    slug = slugify(name or sources.resolve(source).default_name)
    typer.echo(f"registering {source} …")
    with instance_of(settings) as instance:
        retirement.forget(lake, instance, slug)
        was_out = retired.get(lake, slug)
        with terminal.bars():
            student = checkpoints.add(settings, lake, source, slug)
        if was_out:
            retired.note_return(lake, slug)
        retirement.add_partitions(lake, instance, [student.slug])
    typer.echo(f"student {student.slug}{' is back' if was_out else ''}")
    return student.slug


@students_app.command("add")
def students_add(
    source: Annotated[
        str, typer.Argument(help="A checkpoint directory, a hub id (org/name or org/name@revision), or smollm2.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Slug to give it; made from the source if left out.")
    ] = None,
) -> None:
    """Register a student model; its scores, selection and finetuned successor are then made by `srt run`."""
    settings, lake = _open()
    _register(settings, lake, source, name)


@students_app.command("list")
def students_list() -> None:
    """The registered students, and those that are retired."""
    from srt_assets.commands import show

    settings, lake = _open()
    _settle(settings, lake)
    show.students(lake)


@students_app.command("show")
def students_show(
    slug: Annotated[str, typer.Argument(help="Slug of a registered student.")],
    sample_id: Annotated[
        str | None, typer.Argument(help="Id of a record, or its first digits; the first record if left out.")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """One record exactly as it is scored and trained: tokens, where the loss starts and ends, what stops it."""
    from srt_assets.commands import sight

    settings, lake = _open_to_read()
    sight.run(settings, lake, slug, sample_id, _format(format, ("table", "json")))


@students_app.command("remove")
def students_remove(
    student: Annotated[str, typer.Argument(help="Slug of the student.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="List what it has made (scores, decisions, checkpoints), ask, delete it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --purge: delete without asking.")] = False,
) -> None:
    """Retire a student: runs leave it out, and the watched folder does not bring it back."""
    from srt_assets.commands import remove

    settings, lake = _open()
    remove.run(settings, lake, student, purge, yes)


def _settle(settings: Settings, lake: "Lake") -> None:
    """Retire students whose partition was deleted in the UI, if there is an instance and it has changed."""
    from srt_assets import home
    from srt_assets.core.students import news

    if not home.has_instance(settings) or news.none(lake, home.dagster_home(settings)):
        return
    from srt_assets.commands import run

    try:
        run.look_for_deleted(settings)
    except Exception as error:  # noqa: BLE001 - the instance's storage may raise anything; the home can still be shown
        _say_no_answer(error)


def _say_no_answer(error: Exception) -> None:
    from rich.text import Text

    from srt_assets.core.masking import redact

    why = redact(f"{type(error).__name__}: {error}").partition("\n")[0]
    what = f"the Dagster instance does not say which students were deleted there: {why}"
    terminal.console(stderr=True).print(Text(what, "yellow"), soft_wrap=True)


# -- looking


@app.command()
def status() -> None:
    """Asset by student: fresh, changed (and why), missing or failed."""
    from srt_assets.commands import show

    settings, lake = _open()
    _settle(settings, lake)
    show.status(settings, lake, _slugs(lake))


def _format(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise UserError(f"unknown format {value!r}", f"use one of {', '.join(allowed)}")
    return value


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the tables and views of srt.duckdb.")],
    format: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Ask one SELECT of everything the project knows; read-only, also while a run is writing."""
    from srt_assets.commands import sql as queries

    _, lake = _open_to_read()
    queries.run(lake, query, _format(format, ("table", "csv", "json")))


@app.command()
def explain(
    sample_id: Annotated[str, typer.Argument(help="Id of the record, or its first digits.")],
    student: StudentOption = None,
    format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Why a record was kept or not: candidates, teacher's replies, losses, every comparison, the verdict."""
    from srt_assets.commands import explain as command

    _, lake = _open_to_read()
    command.run(lake, sample_id, student, _format(format, ("table", "json")))


@app.command()
def export(
    student: Annotated[str, typer.Option("--student", help="Slug of the student whose selected set it is.")],
    out: Annotated[
        Path, typer.Option("--out", help="NAME.json or NAME.jsonl; without ending: a `datasets` folder with its card.")
    ],
    format: Annotated[str, typer.Option("--format", help="alpaca, sharegpt or messages.")] = "alpaca",
) -> None:
    """Write a student's selected set for other trainers; the same set gives the same bytes."""
    from srt_assets.commands import export as exports

    settings, lake = _open_to_read()
    rows = exports.export(settings, lake, student, format, expanded(out, "--out"))
    typer.echo(f"{rows:,} rows in {out}")


@app.command()
def report(
    student: Annotated[str, typer.Option("--student", help="Slug of the student it is about.")],
    out: Annotated[Path, typer.Option("--out", help="NAME.html or NAME.md.")],
) -> None:
    """Write one page about a student: counts, branches, scores, policies, cost, loss before and after."""
    from srt_assets.commands import report as reports

    _, lake = _open_to_read()
    reports.report(lake, student, expanded(out, "--out"))
    typer.echo(f"written to {out}")


@app.command()
def preview(
    source: Annotated[str, typer.Argument(help="A file, a pattern, a hub id, or the name of a dataset in srt.toml.")],
    rows: Annotated[int, typer.Option("--rows", min=0, help="Read so many rows; 0 reads all.")] = 10_000,
    form: Annotated[str, typer.Option("--form", help="Value for datasets.format.")] = "",
    column: Annotated[
        list[str] | None, typer.Option("--column", help="COLUMN=FIELD, as in datasets.columns; may be repeated.")
    ] = None,
    unwrap: Annotated[str, typer.Option("--unwrap", help="The field whose fields are the row.")] = "",
    multi_turn: Annotated[str, typer.Option("--multi-turn", help="Value for datasets.multi_turn.")] = "",
    split: Annotated[str, typer.Option("--split", help="Split of a hub dataset.")] = "",
    config: Annotated[str, typer.Option("--config", help="Config of a hub dataset.")] = "",
    format: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Show what rows would become before anything is run: form, records, fields, rejects, lengths, settings."""
    from srt_assets.commands import preview as command
    from srt_assets.core.lake import Lake
    from srt_assets.settings import load_settings

    settings = load_settings()  # no project is needed to look at a file
    rights.keep(settings.home)
    options = {"format": form, "unwrap": unwrap, "multi_turn": multi_turn, "split": split, "config": config}
    dataset = command.dataset_of(settings, source, options | {"columns": command.columns_of(column)})
    command.run(settings, Lake(settings.home), dataset, rows, _format(format, ("table", "json")))


@app.command()
def estimate() -> None:
    """Calls, tokens and money (USD) still to pay the teacher, and what that assumes. Pays nothing."""
    from srt_assets.commands import show
    from srt_assets.core.records import again, raw

    settings, lake = _open()
    if again.is_due(settings, lake):
        show.estimate_again(settings, lake)
        return
    # Reading the files is free, and without records there is nothing to estimate.
    raw.STAGE.run(settings, lake)
    show.estimate(settings, lake)


@app.command("why-call")
def why_call(
    sample_id: Annotated[str, typer.Argument(help="A sample_id of raw_records.")],
) -> None:
    """Say for each teacher call of a record if the ledger already holds its reply, and if not, what has changed."""
    from srt_assets.commands import show

    settings, lake = _open_to_read()
    show.calls(settings, lake, sample_id)


@app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it they are only listed.")] = False,
) -> None:
    """List, and with --yes delete, finetuned checkpoints beyond training.keep_last; never one that is in use."""
    from srt_assets.commands import show
    from srt_assets.core.training import prune as pruning

    settings, lake = _open()
    found, busy = pruning.remove(settings, lake) if yes else (pruning.find(settings, lake), [])
    show.waste(found, deleted=yes)
    if busy:
        raise StageError(
            f"a training of {', '.join(busy)} is running; nothing of these students was deleted",
            "run it again when that is done",
        )


@app.command()
def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file of the home, and say what is damaged.")
    ] = False,
    ping: Annotated[
        bool, typer.Option("--ping", help="Ask the teacher for one line: key, model, speed, price, how replies end.")
    ] = False,
) -> None:
    """Check this machine and the settings; every finding comes with its remedy."""
    from srt_assets.commands import doctor as checks

    sys.exit(checks.run(verify, ping))


@app.command()
def repair() -> None:
    """Set damaged files of the home aside and say what is lost; `srt run` makes it again. Deletes nothing."""
    from srt_assets.commands import show
    from srt_assets.core import repair as repairs

    _, lake = _open_to_read()
    show.repaired(lake, repairs.repair(lake))


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 3000,
) -> None:
    """Open the Dagster UI (web server and daemon) on loopback, with an instance that lives in the home."""
    from srt_assets.commands import ui as site

    settings, lake = _open()
    sys.exit(site.run(settings, lake, port))
