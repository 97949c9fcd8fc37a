"""Makes rows of `candidates` from pairs and their replies, and counts them. Asking for replies is in `asking.py`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from srt_assets.core.hashing import content_key
from srt_assets.core.lake import Lake
from srt_assets.core.tables import TABLES
from srt_assets.core.teacher import ends
from srt_assets.core.teacher.answers import THOUGHTS_USED_UP
from srt_assets.core.teacher.ask import Verdict
from srt_assets.core.teacher.call import Prompter, Source
from srt_assets.core.teacher.fill import Filler
from srt_assets.core.teacher.known import Reply
from srt_assets.core.teacher.parse import Parsed
from srt_assets.core.teacher.steps import Step
from srt_assets.core.teacher.survey import Subject, Survey

TABLE = "candidates"
PART_ROWS = 20_000
_NO_VERDICTS: Mapping[str, Verdict] = {}
_PLACE = pa.field("place", pa.int64())


class Rows:
    """Collects rows in any order, in the survey's connection, and writes them in the order of their places.

    `counts`: rows by status, and other numbers. `words`: counts of unknown finish reasons.
    """

    def __init__(self, survey: Survey, prompter: Prompter) -> None:
        self.counts: Counter[str] = Counter(original_rows=0, from_teacher=0)
        self.words: Counter[str] = Counter()
        self._con, self._prompter = survey.con, prompter
        schema = TABLES[TABLE].arrow_schema
        columns = ", ".join(f'"{name}" VARCHAR' for name in schema.names)
        self._con.execute(f"CREATE TABLE rows (place BIGINT, {columns})")
        self._filler = Filler(self._con, "rows", schema.insert(0, _PLACE))
        for place, subject in survey.all():
            if subject.source is None:
                self.counts["original_rows"] += subject.candidate == "original"
                self._add(place, subject, subject.status, subject.texts, None)

    def take(
        self, settled: Iterable[tuple[int, Subject, Step]], unanswered: Mapping[str, Verdict] = _NO_VERDICTS
    ) -> Iterator[int]:
        """Make the rows of these steps; after each one, yields the number of pairs that have a row.

        `unanswered`: the reason for each call without a reply.
        """
        for place, subject, step in settled:
            self.counts["from_teacher"] += 1
            parsed, key = step.result(self._prompter, unanswered)
            if any(turn.is_older for turn in step.turns):
                self.counts["replies_to_older_prompts"] += 1
            if decisive := step.decisive:
                self._count_end(parsed, decisive)
            self._add(place, subject, parsed.status, _texts(step.source, parsed), key)
            yield self.counts["from_teacher"]

    def flush(self) -> None:
        """Write the buffered rows to the table `rows` of the survey's connection."""
        self._filler.flush()

    def parts(self, lake: Lake, share: str) -> list[str]:
        """Write all rows as parts, in the order of their places, and return the parts' names."""
        self.flush()
        columns = ", ".join(f'"{name}"' for name in TABLES[TABLE].arrow_schema.names)
        batches = self._con.sql(f"SELECT {columns} FROM rows ORDER BY place").to_arrow_reader(PART_ROWS)
        parts = [lake.write_part(TABLE, pa.Table.from_batches([batch]), share) for batch in batches if len(batch)]
        return parts or [lake.write_part(TABLE, [], share)]

    @property
    def unknown_words(self) -> str:
        """The unknown finish reasons, each with its count."""
        return ", ".join(f"{word or 'none'} ({n})" for word, n in self.words.most_common())

    def _add(
        self, place: int, subject: Subject, status: str, texts: tuple[str, str, str] | None, call_key: str | None
    ) -> None:
        if subject.candidate != "original":
            self.counts[status] += 1
        row: dict[str, Any] = {
            "place": place,
            "sample_id": subject.sample_id,
            "dataset": subject.dataset,
            "candidate": subject.candidate,
            **dict(zip(("instruction", "input", "response"), texts or (None, None, None), strict=True)),
            "status": status,
            "call_key": call_key,
            "content_key": content_key(*texts) if texts else None,
        }
        self._filler.add(row)

    def _count_end(self, parsed: Parsed, reply: Reply) -> None:
        """Count how the finish reason of a reply affected its row."""
        if parsed.no_end_marker:
            self.counts["no_end_marker"] += 1
        if (reply.note or "").startswith(THOUGHTS_USED_UP):
            self.counts["thoughts_used_up_tokens"] += 1
        if parsed.status == "unknown_finish":
            self.words[reply.native_finish_reason or ""] += 1
        elif reply.finish_reason == ends.UNKNOWN and reply.native_finish_reason is not None:
            self.counts["ended_by_setting"] += 1


def _texts(source: Source, parsed: Parsed) -> tuple[str, str, str] | None:
    if parsed.status != "ok" or parsed.response is None:
        return None
    if parsed.instruction is not None:
        return parsed.instruction, "", parsed.response
    return source.instruction, source.input, parsed.response
