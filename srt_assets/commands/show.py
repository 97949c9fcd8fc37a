"""Tables on the terminal: what a run ended with, the students, where every asset stands."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from srt_assets.commands import terminal
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.lake import Lake
from srt_assets.core.sql.catalog import publish
from srt_assets.core.sql.faults import faults
from srt_assets.core.status import standings
from srt_assets.core.students import checkpoints, retired
from srt_assets.core.training.finished import directory
from srt_assets.settings import Settings

if TYPE_CHECKING:
    from srt_assets.core.repair import Repaired
    from srt_assets.core.teacher.estimate import Estimate
    from srt_assets.core.training.prune import Waste

_EVER = datetime(1970, 1, 1, tzinfo=UTC)
# Rewrites that could be there under other settings, or on another day.
_LEFT = {
    "over_budget": ("were not asked for", "raise teacher.budget_usd and run again"),
    "teacher_busy": ("were not answered by a busy teacher", "run again"),
    "unknown_finish": (
        "ended with a finish reason that is not known",
        "srt sql \"SELECT DISTINCT error FROM teacher_calls WHERE finish_reason = 'unknown'\"",
    ),
    "unreadable_reply": (
        "came in a shape that cannot be read",
        "srt sql \"SELECT DISTINCT error FROM teacher_calls WHERE status = 'unreadable_reply'\"",
    ),
}
STYLES = {"fresh": "green", "changed": "yellow", "missing": "dim", "failed": "red", "damaged": "red"}


def summary(lake: Lake, students: Sequence[str], since: datetime) -> None:
    """What happened to every input row, and what came of it; teacher calls in all and `since` (UTC)."""
    with lake.connect() as con:
        records, rejected = con.execute(
            "SELECT (SELECT count(*) FROM raw_records), (SELECT count(*) FROM raw_rejects)"
        ).fetchall()[0]
        everything, now = (_calls(con, f"created_at >= TIMESTAMP '{at:%Y-%m-%d %H:%M:%S}'") for at in (_EVER, since))
        terminal.console().print(f"{records} records, {rejected} rows rejected")
        terminal.console().print(f"teacher calls of this run: {now}; in all: {everything}", soft_wrap=True)
        counts = dict(con.execute("SELECT status, count(*) FROM candidates GROUP BY status").fetchall())
        for status, (what, remedy) in _LEFT.items():
            if n := counts.get(status):
                terminal.console().print(f"[yellow]{n} rewrites {what}[/]: {remedy}", soft_wrap=True)
        if students:
            table, checkpoints = _per_student(lake, con, students)
            terminal.console().print(table)
            for path in checkpoints:
                # Whole on its line, so that it can be copied.
                terminal.console().print(terminal.text(f"finetuned: {path}"), soft_wrap=True)


def _calls(con, where: str) -> str:
    answered, failed, cost, unpriced = con.execute(
        "SELECT count(*) FILTER (status = 'ok'), count(*) FILTER (status <> 'ok'), sum(cost_usd), "
        f"count(*) FILTER (status = 'ok' AND cost_usd IS NULL) FROM teacher_calls WHERE {where}"
    ).fetchone()
    price = f", {cost:.4f} USD" if cost else ""
    unknown = f", {unpriced} of them without a known price" if unpriced else ""
    return f"{answered} answered{price}{unknown}" + (f", {failed} failed" if failed else "")


def _per_student(lake: Lake, con, students: Sequence[str]) -> tuple[Table, list[str]]:
    table = Table(title="rows by outcome, and the loss on records held out of training")
    for name in ("student", "kept", "not chosen", "rejected", "held-out loss"):
        table.add_column(name, justify="left" if name == "student" else "right", overflow="fold")
    checkpoints = []
    for slug in students:
        kept, lost, rejected = con.execute(
            "SELECT count(*) FILTER (kept), count(*) FILTER (NOT kept AND NOT starts_with(reason, 'rejected')), "
            "count(*) FILTER (starts_with(reason, 'rejected')) FROM decisions WHERE student = ?",
            [slug],
        ).fetchall()[0]
        runs = con.execute(
            "SELECT eval_loss_before, eval_loss_after, run FROM training_runs WHERE student = ? "
            "AND is_active_policy ORDER BY finished_at DESC LIMIT 1",
            [slug],
        ).fetchall()
        before, after, run = runs[0] if runs else (None, None, "")
        loss = f"{before:.4f} -> {after:.4f}" if before is not None and after is not None else ""
        table.add_row(slug, str(kept), str(lost), str(rejected), loss)
        checkpoints += [str(directory(lake, slug) / run)] if run else []
    return table, checkpoints


def students(lake: Lake) -> None:
    """The registered students with what they are and where they come from; then the retired ones."""
    # Not the table of that name: a student has its row there only after its first run.
    slugs, out = checkpoints.list_students(lake), retired.every(lake)
    if not slugs and not out:
        terminal.console().print("no student is registered; srt students add smollm2 registers the packaged one")
        return
    table = Table()
    for name in ("student", "what", "generation", "fingerprint", "source"):
        table.add_column(name, overflow="fold")
    for slug in slugs:
        try:
            s = checkpoints.get(lake, slug)
        except UserError as error:
            table.add_row(slug, *[""] * 3, terminal.text(str(error)))
        else:
            what = f"{s.architecture.removesuffix('ForCausalLM')}, {s.n_parameters / 1e6:,.1f} M"
            generation = f"{s.generation}, of {s.parent}" if s.parent else str(s.generation)
            table.add_row(
                slug, terminal.text(what), terminal.text(generation), s.fingerprint[:8], terminal.text(s.source_now)
            )
    for known in out.values():
        what = f"retired {known.at[:10]}{', purged' if known.purged else ''}"
        table.add_row(known.slug, what, "", known.fingerprint[:8], terminal.text(known.source), style="dim")
    terminal.console().print(table)


def status(settings: Settings, lake: Lake, students: Sequence[str]) -> None:
    """One line per asset and student with its state and the reason."""
    table = Table()
    for name in ("asset", "student", "state", "why"):
        table.add_column(name, overflow="fold")
    for s in standings(settings, lake, list(students)):
        table.add_row(s.asset, s.student or "-", terminal.text(s.state, STYLES[s.state]), terminal.text(s.why))
    terminal.console().print(table)
    if change := _reading(settings, lake):
        terminal.console().print(terminal.text(f"raw_dataset, read again: {change}", "yellow"), soft_wrap=True)
    if not students:
        terminal.console().print("no student is registered; srt students add PATH|MODEL_ID registers one")
    for error in faults():
        terminal.console().print(Text.assemble(("SQL model left out: ", "yellow"), str(error)), soft_wrap=True)


def _reading(settings: Settings, lake: Lake) -> str:
    """What srt estimate counted of the records that reading again would change; '' if reading has not changed."""
    from srt_assets.core.records import again

    try:
        if not again.is_due(settings, lake):
            return ""
        return str(again.remembered(settings, lake) or "srt estimate counts and prices the records that would change")
    except (UserError, StageError):  # the table above says it
        return ""


def notes(settings: Settings, lake: Lake) -> None:
    """What is up to date and yet worth a word: an older program made it."""
    for s in standings(settings, lake, []):
        if s.state == "fresh" and s.why:
            terminal.console(stderr=True).print(Text.assemble((f"{s.asset}: ", "yellow"), s.why), soft_wrap=True)


def calls(settings: Settings, lake: Lake, sample_id: str) -> None:
    """The teacher calls a record needs now: hit, or why not."""
    from srt_assets.core.teacher.why_call import explain

    console = terminal.console(highlight=False)
    for finding in explain(settings, lake, sample_id):
        console.print(terminal.text(f"{finding.purpose}: {finding.verdict}, {finding.why}"), soft_wrap=True)
        console.print(terminal.text(f"  call_key {finding.call_key}", "dim"), soft_wrap=True)


def estimate(settings: Settings, lake: Lake) -> None:
    """What the teacher side would still cost, one line a number."""
    from srt_assets.core.teacher.estimate import estimate as still_to_pay

    _estimated(still_to_pay(settings, lake))


def estimate_again(settings: Settings, lake: Lake) -> None:
    """The same where an older program read the files: what a run would cost, which reads them again."""
    from srt_assets.core.records import again
    from srt_assets.core.teacher.estimate import estimate as still_to_pay

    with again.ahead(settings, lake) as (after, change):
        found = still_to_pay(settings, after)
        if change.more:
            now = still_to_pay(settings, lake)
            usd = None if found.usd is None or now.usd is None else max(0.0, found.usd - now.usd)
            change = replace(change, calls=max(0, found.calls - now.calls), usd=usd)
    again.remember(settings, lake, change)
    _estimated(found)
    what = f"raw_dataset was read by an older program; srt run reads its files again: {change}"
    terminal.console().print(terminal.text(what, "yellow"), soft_wrap=True)


def _estimated(found: "Estimate") -> None:
    console = terminal.console(highlight=False)
    price = "price unknown" if found.usd is None else f"{found.usd:.4f} USD"
    console.print(f"{found.calls} calls, {found.prompt_tokens} + {found.completion_tokens} tokens, {price}")
    for purpose, calls in found.by_purpose.items():
        console.print(terminal.text(f"  {purpose}: {calls} calls"))
    for assumption in found.assumptions:
        console.print(terminal.text(f"  assumes: {assumption}"), soft_wrap=True)


def repaired(lake: Lake, done: "Iterable[Repaired]") -> None:
    """What was damaged, as it is mended: what is lost, what happens next, where the file is now."""
    console = terminal.console(highlight=False)
    any_damage = False
    for item in done:
        any_damage = True
        console.print(terminal.text(item.what, "yellow"), soft_wrap=True)
        console.print(terminal.text(f"  lost: {item.lost}"), soft_wrap=True)
        console.print(terminal.text(f"  next: {item.next}"), soft_wrap=True)
        if item.place:
            console.print(terminal.text(f"  now in {item.place}"), soft_wrap=True)
    if any_damage:
        publish(lake)
    else:
        console.print("nothing is damaged")


def waste(found: "Sequence[Waste]", deleted: bool) -> None:
    """What was, or would be, deleted: a line each, and the sum."""
    console = terminal.console(highlight=False)
    for item in found:
        console.print(terminal.text(f"{item.path}  {item.size / 1e6:,.1f} MB, {item.why}"), soft_wrap=True)
    total = f"{len(found)} directories, {sum(item.size for item in found) / 1e6:,.1f} MB"
    if not found:
        console.print("nothing to delete")
    else:
        console.print(f"deleted: {total}" if deleted else f"would delete {total}; srt prune --yes does")
