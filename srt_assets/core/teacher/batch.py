"""OpenAI file batches through LiteLLM: the same calls at half the price, within a day instead of at once.

The program writes a JSON file beside the ledger before it submits a batch, so that a restart finds every submitted
batch. Replies go into the same ledger as those of single calls. Only failed calls go into the next batch.
"""

import asyncio
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from srt_assets.core.errors import StageError
from srt_assets.core.files import read_own
from srt_assets.core.lake import Lake
from srt_assets.core.locks import replace_text
from srt_assets.core.masking import redact
from srt_assets.core.progress import Progress
from srt_assets.core.teacher import ends, ledger, sealing
from srt_assets.core.teacher.answers import Answer, read_body
from srt_assets.core.teacher.ask import Ask, Verdict, must_ask, prompt_bound
from srt_assets.core.teacher.client import Client, connect, litellm
from srt_assets.core.teacher.engine import Tally, cost_of, ledger_row
from srt_assets.core.teacher.failures import Failure, Unreadable, classify, code_of, of_http
from srt_assets.core.teacher.lookup import Lookup
from srt_assets.core.teacher.money import Prices, prices_of
from srt_assets.core.teacher.steps import Step
from srt_assets.core.teacher.unfit import halt
from srt_assets.settings import Teacher

POLL_S = 30.0
# The provider's limits are 50,000 lines and 200 MB a file.
MAX_CALLS = 50_000
MAX_BYTES = 150_000_000
_OVER = ("completed", "failed", "expired", "cancelled")
_MARK = "srt_batch"


def ask_batches(
    teacher: Teacher,
    lake: Lake,
    stage: str,
    missing: Callable[[Lookup], Iterator[Step]],
    progress: Progress,
) -> tuple[dict[str, Verdict], Tally]:
    """Collect the open batches of this stage, then submit missing calls until none are missing. Blocks meanwhile.

    Returns the reason for each call (by key) that stays without a reply, and the counts.
    """
    desk = _Desk(connect(teacher), lake, stage, progress)
    while True:
        for state in desk.open():
            desk.collect(state)
        sealing.seal(lake)
        unanswered: dict[str, Verdict] = {}
        file, submitted = _File(), False
        with Lookup(lake) as lookup:
            for key, line in _lines(desk.client, desk.prices, lookup.spent_usd(), missing(lookup)):
                if isinstance(line, str):
                    unanswered[key] = line
                    continue
                if file.calls and not file.has_room(line):
                    desk.submit(file)
                    file = _File()
                file.add(key, line)
                submitted = True
            if file.calls:
                desk.submit(file)
        if not submitted:
            return unanswered, desk.tally


class _Line(NamedTuple):
    """A call to submit: its line in the file, and facts for the ledger (`row`; `most`: its highest price in USD)."""

    text: bytes
    facts: dict[str, Any]


@dataclass
class _File:
    """A batch to submit, within the provider's limits: its lines, and the facts for the ledger by call key."""

    lines: io.BytesIO = field(default_factory=io.BytesIO)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)

    def has_room(self, line: _Line) -> bool:
        return len(self.calls) < MAX_CALLS and self.lines.tell() + len(line.text) <= MAX_BYTES

    def add(self, key: str, line: _Line) -> None:
        self.lines.write(line.text)
        self.calls[key] = line.facts


def _lines(
    client: Client, prices: Prices, spent_usd: float, steps: Iterator[Step]
) -> Iterator[tuple[str, _Line | Verdict]]:
    """Each call's key, with its line, or with a verdict if it is too long, hopeless or over the budget."""
    teacher = client.teacher
    with asyncio.Runner() as loop:
        for step in steps:
            turn = step.missing(teacher.max_tokens)
            assert turn is not None
            call = turn.call
            ask = must_ask(turn, loop.run(client.room.allowance(call)), teacher.max_attempts)
            if isinstance(ask, Ask):
                most = prices.most(prompt_bound(call), ask.allowed)
                if not teacher.budget_usd or spent_usd + most <= teacher.budget_usd:
                    spent_usd += most
                    line = {"custom_id": call.key, "method": "POST", "url": "/v1/chat/completions"}
                    text = json.dumps(line | {"body": client.body(call, ask.allowed)}).encode() + b"\n"
                    row = ledger_row(teacher, call, ask.allowed, ask.attempt)
                    yield call.key, _Line(text, {"row": row, "most": most})
                    continue
                ask = "over_budget"
            if isinstance(ask, str):  # a verdict; a usable reply needs no call
                yield call.key, ask


class _Desk:
    """Submits and collects the batches of one stage."""

    def __init__(self, client: Client, lake: Lake, stage: str, progress: Progress) -> None:
        self.client = client
        self.teacher = client.teacher
        self.lake = lake
        self.prices = prices_of(client.teacher)
        self.tally = Tally(priced=self.prices.known)
        self.progress = progress
        self.folder = lake.directory(ledger.TABLE) / "batches"
        # Only batches of this stage, model and endpoint are collected.
        self._mine = {"stage": stage, "model": client.teacher.model, "api_base": client.teacher.api_base}
        self._at = client.endpoint()
        self._module = litellm()
        self._ends = ends.Streak(client.teacher.good_finish_reasons)

    def open(self) -> list[Path]:
        """The state files of batches that were submitted and not yet collected."""
        files = self.folder.glob("*.json")
        return sorted(path for path in files if self._mine.items() <= json.loads(read_own(path)).items())

    def submit(self, batch: _File) -> None:
        """Write the state file, upload the calls, create the batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex
        path = self.folder / f"{mark}.json"
        state = self._mine | {"mark": mark, "submitted_at": time.time(), "batch_id": None, "calls": batch.calls}
        _write(path, state)
        with self._explained(submitted=path):
            file = self._module.create_file(file=("calls.jsonl", batch.lines.getvalue()), purpose="batch", **self._at)
            made = self._module.create_batch(
                completion_window="24h",
                endpoint="/v1/chat/completions",
                input_file_id=file.id,
                metadata={_MARK: mark},
                **self._at,
            )
        _write(path, state | {"batch_id": made.id})

    def collect(self, path: Path) -> None:
        """Wait for the batch to end and put its lines into the ledger."""
        state = json.loads(read_own(path))
        batch_id = state["batch_id"] or self._find(state["mark"])
        if batch_id is None:  # the run died before the batch was created, so nothing was asked
            path.unlink()
            return
        while True:
            with self._explained():
                batch = self._module.retrieve_batch(batch_id=batch_id, **self._at)
            counts = batch.request_counts
            self.progress(counts.completed if counts else 0, len(state["calls"]), "batched calls")
            if batch.status in _OVER:
                break
            time.sleep(POLL_S)
        lines = [*self._lines(batch.output_file_id), *self._lines(batch.error_file_id)]
        rows, stop = asyncio.run(self._keep(state["calls"], lines))
        path.unlink()
        if stop and stop.action != "stop":
            raise StageError(
                f"every call of the batch {batch_id} met a teacher that is down or too busy; the last: {stop.told}",
                "run again later: it is submitted in a new batch, and no record is given up for it",
            )
        if stop:
            raise halt(stop, self.teacher)
        for row in rows:
            if row["status"] == "ok":
                self._ends.add(row["finish_reason"], row["native_finish_reason"])
        if batch.status == "failed" and not lines:
            why = redact(str(batch.errors))
            raise StageError(f"the provider refused the batch {batch_id}: {why}", "see its message, run again")
        if batch.status == "cancelled":
            raise StageError(
                f"the batch {batch_id} was cancelled; {len(lines)} of its {len(state['calls'])} calls had ended",
                "run again: the rest is submitted in a new batch",
            )

    async def _keep(
        self, calls: dict[str, dict[str, Any]], lines: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], Failure | None]:
        """Write the lines into the ledger. Returns its rows, and a failure that all further calls would have too."""
        rows = []
        stop: Failure | None = None
        refused: list[Failure] = []
        outage: list[tuple[Failure, dict[str, Any]]] = []
        for line in lines:
            if (key := line.get("custom_id")) not in calls:
                continue
            row = calls[key]["row"] | {"created_at": datetime.now(UTC).replace(tzinfo=None)}
            most = calls[key]["most"]
            answer, failure = _read(line)
            if answer:
                cost = cost_of(answer, self.prices, most)
                row |= answer.columns | {"cost_usd": cost}
                self.tally.add(answer, cost)
            elif failure is None:
                continue  # the batch expired before this call was tried
            elif failure.action == "stop":
                stop = failure
                continue
            else:
                self.tally.failures[failure.kind] += 1
                row |= failure.columns
                if failure.kind == "unreadable_reply":
                    row["cost_usd"] = cost_of(failure, self.prices, most)
                refused += [failure] if failure.kind == "bad_request" else []
                if failure.action != "record":
                    outage.append((failure, row))
                    continue
            rows.append(row)
        if rows or len(outage) == 1:  # other calls were answered, so the calls themselves are at fault
            rows += [row for failure, row in outage if failure.action == "transient"]
        elif outage:
            stop = outage[-1][0]
        if refused and not self.tally.calls and len(refused) == len(rows):
            stop = replace(refused[-1], action="stop")
        with Lookup(self.lake) as lookup, ledger.Ledger(self.lake) as book:
            # A run that died before it deleted the state file has already written these rows.
            known = lookup.known(calls, self.teacher.api_base)

            def is_new(row: dict[str, Any]) -> bool:
                if (before := known.get(row["call_key"])) is None:
                    return True
                if row["status"] == "ok":
                    return before.reply is None or before.reply.max_tokens < row["max_tokens"]
                tried = before.tried.get(row["max_tokens"])
                return tried is None or tried.count < row["attempt"]

            await asyncio.gather(*(book.append(row) for row in rows if is_new(row)))
        return rows, stop

    def _lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if not file_id:
            return []
        with self._explained():
            content = self._module.file_content(file_id=file_id, **self._at).content
        return [json.loads(line) for line in content.splitlines() if line.strip()]

    def _find(self, mark: str) -> str | None:
        """The id of the batch with this mark; None if the batch was never created.

        Looks through all batches. Their times come from the provider's clock, so it cannot stop at batches that look
        older than this one: a batch that is not found would be paid for again.
        """
        after: dict[str, str] = {}
        while True:
            with self._explained():
                page = self._module.list_batches(limit=100, **after, **self._at)
            batches = list(getattr(page, "data", None) or [])
            for batch in batches:
                if (getattr(batch, "metadata", None) or {}).get(_MARK) == mark:
                    return str(batch.id)
            if not batches or not getattr(page, "has_more", False):
                return None
            if after.get("after") == batches[-1].id:
                what = f"the batch API of {self.client.api_base or self.teacher.model} does not list all its batches"
                remedy = f"look there for one whose {_MARK} is {mark}; if there is none, delete {mark}.json"
                raise StageError(what, remedy)
            after = {"after": batches[-1].id}

    @contextmanager
    def _explained(self, submitted: Path | None = None) -> Iterator[None]:
        """Turn errors of the batch API into errors with a remedy. `submitted`: state file of the batch to create."""
        try:
            yield
        except Exception as error:
            failure = classify(error)
            # Delete the state file only if the batch was refused. After a timeout the batch may exist, and the next run
            # looks for it.
            if submitted and failure.action in ("record", "stop"):
                submitted.unlink()
            if failure.action == "stop":
                raise halt(failure, self.teacher) from error
            what = f"the batch API of {self.client.api_base or self.teacher.model} failed: {failure.message}"
            raise StageError(what, "run again; open batches are found again") from error


def _read(line: dict[str, Any]) -> tuple[Answer | None, Failure | None]:
    """The answer or the failure in a line of a batch's files; neither if the call was never tried."""
    response = line.get("response") or {}
    body = response.get("body") or {}
    if response.get("status_code") == 200 and not line.get("error"):
        try:
            return read_body(body), None
        except Unreadable as unreadable:
            return None, unreadable.failure
    error = body.get("error") or line.get("error") or {}
    code = code_of(error)
    if code == "batch_expired":
        return None, None
    failure = of_http(response.get("status_code") or 500, code, "batch", str(error.get("message", "")))
    return None, replace(failure, param=error["param"]) if isinstance(error.get("param"), str) else failure


def _write(path: Path, state: dict[str, Any]) -> None:
    replace_text(path, json.dumps(state, default=str))
