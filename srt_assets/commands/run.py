"""`srt run`: pick the assets, run them through Dagster with a progress bar, say how it ended."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
import duckdb
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from srt_assets.commands import show, terminal
from srt_assets.core import rights, stages
from srt_assets.core.errors import UserError, damage, nearest
from srt_assets.core.lake import Lake
from srt_assets.core.progress import Fact, on_terminal, throttled
from srt_assets.core.progress import Progress as Listener
from srt_assets.core.sql.catalog import publish
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints, retired
from srt_assets.defs.execute import has_passed, is_recorded, materialize
from srt_assets.defs.instance import fail_dead_runs, prepare_instance
from srt_assets.defs.retirement import add_partitions, settle
from srt_assets.home import dagster_home
from srt_assets.settings import Settings

PLAIN_EVERY_S = 15.0


@contextmanager
def instance_of(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The home's Dagster instance, with runs of dead processes failed and their pool slots freed.

    Students whose partition was deleted in the UI are retired.
    """
    folder = prepare_instance(settings)
    try:
        with dg.DagsterInstance.get() as instance:
            fail_dead_runs(instance)
            _settle(settings, instance)
            yield instance
    finally:
        rights.share_databases(folder)


def look_for_deleted(settings: Settings) -> None:
    """Retire the students whose partition was deleted in the UI, and say so. There must be an instance."""
    os.environ["DAGSTER_HOME"] = str(dagster_home(settings))
    with dg.DagsterInstance.get() as instance:
        _settle(settings, instance)


def _settle(settings: Settings, instance: dg.DagsterInstance) -> None:
    for slug in settle(settings, Lake(settings.home), instance):
        what = f"student {slug}: its partition was deleted, so it is retired; srt students add brings it back"
        terminal.console(stderr=True).print(Text(what, "yellow"), soft_wrap=True)


def run(
    settings: Settings,
    lake: Lake,
    assets: Sequence[str],
    students: Sequence[str],
    verbose: bool = False,
    renew: bool = False,
) -> int:
    """Bring the assets (none: the whole graph) up to date for the students (none: all). Gives the exit code."""
    from srt_assets.definitions import build_defs

    console = terminal.console(stderr=True)
    payable = {stage.asset for stage in stages.STAGES if stage.costs_money}
    if renew and not payable & set(assets):
        raise UserError(
            "--renew pays again, but no asset is named that costs money", f"name {' or '.join(sorted(payable))}"
        )
    defs = build_defs(settings)
    plan = _plan(defs, assets)
    _chosen(lake, plan, students)  # an unknown name must not make anything
    started, began = time.monotonic(), datetime.now(UTC)
    with instance_of(settings) as instance:
        chosen = _chosen(lake, plan, students)
        add_partitions(lake, instance, chosen)
        if not assets and _nothing_to_do(settings, lake, defs, instance, chosen):
            publish(lake)
            show.summary(lake, chosen, began)
            console.print("[green]everything is up to date[/], nothing to do")
            show.notes(settings, lake)
            return 0
        try:
            code = _run_all(
                console, defs, instance, plan, chosen, verbose, sorted(payable & set(assets)) if renew else []
            )
        except KeyboardInterrupt:
            # Here, for typer ends a command that is interrupted without a word.
            console.print("[yellow]stopped[/]; everything done so far is kept, `srt run` goes on from here")
            return 130
        finally:
            publish(lake)
    try:
        show.summary(lake, chosen if plan.per_student else [], began)
    except duckdb.Error as error:
        if not (code and damage(error)):  # what is damaged has been said
            raise
    console.print(f"{'[red]failed[/]' if code else '[green]done[/]'} in {time.monotonic() - started:.0f} s")
    return code


def _chosen(lake: Lake, plan: "Plan", students: Sequence[str]) -> list[str]:
    """The students named, or else all. UserError if one is not registered, or none is and one is needed."""
    registered = checkpoints.list_students(lake)
    for slug in students:
        if out := retired.get(lake, slug):
            raise out.error
        if slug not in registered:
            known = f"registered: {', '.join(registered)}" if registered else "none is registered yet"
            raise UserError(f"unknown student {slug!r}; {known}", "srt students add PATH|MODEL_ID registers one")
    if plan.per_student and not registered:
        raise UserError("no student is registered", "srt students add smollm2 (or a directory, or a hub id)")
    return list(students) or registered


@dataclass(frozen=True)
class Plan:
    """Assets to run, in order: shared ones, then for each student its own, then what reads all students."""

    before: list[str]
    per_student: list[str]
    after: list[str]


def _plan(defs: dg.Definitions, assets: Sequence[str]) -> Plan:
    graph = defs.resolve_asset_graph()
    known = {key.to_user_string(): key for key in graph.get_all_asset_keys()}
    for name in assets:
        if name not in known:
            raise UserError(f"unknown asset {name!r}", nearest(name, known))
    wanted = dg.AssetSelection.assets(*assets).upstream() if assets else dg.AssetSelection.all()
    keys = wanted.resolve(graph)
    ordered = [key for level in graph.toposorted_asset_keys_by_level for key in sorted(level) if key in keys]
    partitioned = [key for key in ordered if graph.get(key).partitions_def is not None]
    readers = [
        key
        for key in ordered
        if key not in partitioned and any(p in graph.get_ancestor_asset_keys(key) for p in partitioned)
    ]
    return Plan(
        before=[k.to_user_string() for k in ordered if k not in partitioned and k not in readers],
        per_student=[k.to_user_string() for k in partitioned],
        after=[k.to_user_string() for k in readers],
    )


def _run_all(
    console: Console,
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    plan: Plan,
    students: Sequence[str],
    verbose: bool,
    renew: Sequence[str],
) -> int:
    """Run the plan. One student's failure does not stop the others; a failure before them does."""

    def step(assets: list[str], student: str | None) -> int:
        if not assets:
            return 0
        with terminal_progress(console, student, shown=not verbose), terminal.shared_with(console):
            result = materialize(defs, instance, assets, student, verbose, renew)
        for error in result.errors:
            console.print(Text.assemble(("error ", "red"), error), soft_wrap=True)
        return result.exit_code

    if code := step(plan.before, None):
        return code
    codes = [step(plan.per_student, slug) for slug in students] if plan.per_student else []
    codes.append(step(plan.after, None))
    bad = [c for c in codes if c]
    return 0 if not bad else 2 if all(c == 2 for c in bad) else 1


def _nothing_to_do(
    settings: Settings, lake: Lake, defs: dg.Definitions, instance: dg.DagsterInstance, students: Sequence[str]
) -> bool:
    """Everything is made, this instance knows it, and no blocking check has anything against it."""
    found = standings(settings, lake, list(students))
    waiting = {stage.asset for stage in stages.STAGES if stage.waits_for_person}
    if any(s.asset in waiting and s.why for s in found):  # an older program made it: now a person is here
        return False
    return all(
        s.state == "fresh"
        and is_recorded(instance, s.asset, s.student)
        and has_passed(defs, instance, s.asset, s.student)
        for s in found
    )


@contextmanager
def terminal_progress(console: Console, student: str | None, shown: bool) -> Iterator[None]:
    """A bar per asset on a terminal; elsewhere a line every 15 s and one at its end."""
    if not shown:
        yield
        return
    if not console.is_terminal:
        with on_terminal(lambda asset: throttled(_plain(console, asset, student), PLAIN_EVERY_S)):
            yield
        return
    bars = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]:>16}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        # What is written beside the bars comes through terminal.shared_with.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bars:

        def bar(asset: str) -> Listener:
            task = bars.add_task(asset, total=None, count="", facts=student or "")

            def report(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
                count = f"{done}/{total} {unit}" if total else f"{done} {unit}"
                bars.update(task, completed=done, total=total or None, count=count, facts=_facts(facts))

            return report

        with on_terminal(bar):
            yield


def _plain(console: Console, asset: str, student: str | None) -> Listener:
    def report(done: int, total: int, unit: str = "rows", **facts: Fact) -> None:
        name = f"{asset} [{student}]" if student else asset
        console.print(f"{name}: {done}/{total or '?'} {unit} {_facts(facts)}", markup=False, highlight=False)

    return report


def _facts(facts: dict[str, Fact]) -> str:
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in facts.items())
