"""`srt students remove`: retires a student; with --purge also deletes its results, after showing a list and asking."""

import sys

import typer
from rich.console import Console
from rich.text import Text

from srt_assets.commands import terminal
from srt_assets.commands.run import instance_of
from srt_assets.core import purge as purging
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.sql.catalog import publish
from srt_assets.core.students import retire, retired
from srt_assets.defs.retirement import remove, runs_of
from srt_assets.settings import Settings


def run(settings: Settings, lake: Lake, slug: str, purge: bool = False, yes: bool = False) -> None:
    """Retire the student; with `purge` delete its results after asking (`yes`: without asking).

    UserError: there is no such student, another student needs its checkpoints, or there is no terminal to ask on.
    StageError: a run of the student is going on.
    """
    console = terminal.console(highlight=False)
    retire.known(settings, lake, slug)  # fail before an instance is created for an unknown student
    with instance_of(settings) as instance:
        going_on = [run_id[:8] for run_id in runs_of(instance, slug)]
        if purge:
            if going_on:
                raise StageError(
                    f"the run {going_on[0]} of {slug} goes on; nothing was deleted",
                    "wait for it or stop it (srt ui), then run this again",
                )
            purging.check(lake, slug)
            with purging.held(lake, slug):
                items = purging.find(lake, slug)
            _list(console, lake, slug, items)
            if items and not yes and not _agreed():
                console.print("nothing was changed")
                return
        before = retired.get(lake, slug)
        now = remove(settings, lake, instance, slug)
        if purge:
            purging.purge(lake, slug)
        publish(lake)
    _say(console, f"student {slug} {'has been' if before else 'is'} retired since {now.at[:10]}: runs leave it out.")
    if purge and items:
        _say(console, f"deleted: {sum(item.size for item in items) / 1e6:,.1f} MB")
    elif not now.purged:
        _say(console, f"Its results stay; srt students remove {slug} --purge deletes them.")
    _say(console, f"{now.error.remedy}.")
    if going_on and not purge:
        _say(console, f"The run {going_on[0]} of it goes on, and its next step will fail: stop it in srt ui.")


def _list(console: Console, lake: Lake, slug: str, items: list[purging.Item]) -> None:
    for item in items:
        _say(console, f"{item.path}  {item.size / 1e6:,.1f} MB, {item.what}")
    if items:
        _say(console, f"to be deleted: {sum(item.size for item in items) / 1e6:,.1f} MB of {slug}")
    else:
        _say(console, f"{slug} has no results to delete")
    for path in purging.stays(lake, slug):
        _say(console, f"stays: {path}, which srt repair has set aside")
    _say(console, "stays: the teacher's ledger, the candidates, and the student's source")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError("nothing was changed: there is no terminal to ask for confirmation", "add --yes to delete it")
    return typer.confirm("Delete it for good?")


def _say(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
