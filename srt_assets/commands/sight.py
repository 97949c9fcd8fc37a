"""`srt students show`: prints one record as the student's tokens, as text or JSON."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srt_assets.commands import terminal
from srt_assets.core.lake import Lake
from srt_assets.core.training.sight import as_json, sight
from srt_assets.settings import Settings
from srt_assets.text import printable

MEANING = {
    "response": "the answer alone",
    "response_given_prompt": "the answer after its prompt",
    "instruction": "the instruction alone",
    "instruction_given_response": "the instruction, guessed from the answer",
}
BETWEEN = "│"


def run(
    settings: Settings, lake: Lake, slug: str, sample_id: str | None, format: str, console: Console | None = None
) -> None:
    """Print what `core.training.sight` found."""
    found = sight(settings, lake, slug, sample_id)
    if format == "json":
        terminal.print_json(as_json(found))
        return
    out = console or terminal.console(highlight=False)
    what = f"record {found['sample_id']} of {found['dataset']}, version {found['candidate']}"
    out.print(terminal.text(what if found["sample_id"] else "no record is there yet: an example", "bold"))
    out.print(
        terminal.text(f"as {found['student']} reads it: template {found['template']}, protocol {found['protocol']}")
    )
    if found["kept"] is False:
        out.print(terminal.text(f"it is not trained on: {found['reason']}", "yellow"))
    if found["note"]:
        out.print(terminal.text(found["note"], "yellow"))
    out.print(_passes(found["passes"]))
    given, trained = found["passes"]["response_given_prompt"], found["training"]
    out.print(terminal.text(f"The answer after its prompt, token by token ({BETWEEN} separates them):", "bold"))
    if "status" in given and "status" in trained:
        out.print(terminal.text(f"not scored: {given['status']}; not trained on: {trained['status']}", "red"))
        return
    _tokens(out, given, trained, found)


def _passes(passes: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Tokens are counted from 0", title_justify="left", pad_edge=False)
    table.add_column("pass", overflow="fold")
    for name in ("tokens", "loss from", "to"):
        table.add_column(name, justify="right", overflow="fold")
    for name, one in passes.items():
        if "status" in one:
            table.add_row(MEANING[name], Text(one["status"], "red"), "", "")
        else:
            cut = " (cut)" if one["truncated"] else ""
            table.add_row(MEANING[name], f"{len(one['ids'])}{cut}", str(one["start"]), str(len(one["ids"]) - 1))
    return table


def _tokens(out: Console, given: dict[str, Any], trained: dict[str, Any], found: dict[str, Any]) -> None:
    """The tokens of the sample, with a line at each place where a loss begins or ends."""
    longer = given if "status" in trained else trained
    ends: dict[int, list[str]] = {}
    for one, name in ((trained, "training"), (given, "scoring")):
        if "status" not in one:
            ends.setdefault(one["start"], []).append(f"the loss of {name} starts")
            ends.setdefault(len(one["ids"]), []).append(f"the loss of {name} ends")
    last = 0
    for place in [*sorted(ends), len(longer["ids"])]:
        if place > last:
            style = "" if last >= min(ends) else "dim"
            out.print(_row(longer["tokens"][last:place], style), soft_wrap=False)
        if place in ends:
            where = f"token {place}" if "starts" in ends[place][0] else f"token {place - 1}"
            out.print(terminal.text(f"── {', '.join(ends.pop(place))}: {where}", "bold green"))
        last = place
    if "status" in trained:
        why = f"not trained on: {trained['status']} (training.max_length is {found['training_max_length']})"
        out.print(terminal.text(why, "red"))
    names = ", ".join(f"{text!r} ({id})" for id, text in found["stops"].items())
    out.print(terminal.text(f"generation stops on {names}"))


def _row(tokens: list[str], style: str) -> Text:
    # A line feed is shown and also ends the line, so that the text keeps its shape.
    shown = [printable(token).replace("\n", "\\n") + ("\n" if token.endswith("\n") else "") for token in tokens]
    return Text(BETWEEN.join(shown).replace(f"\n{BETWEEN}", "\n").rstrip("\n"), style)
